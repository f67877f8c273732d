"""The interpreter of `rows.c` as machine code: one walk over memory for all that a step does to a row.

Compiled with the C compiler that is found (CC, cc, gcc, clang), once, into the user's cache. Code that somebody else
may have put there is never loaded: see `_cache` and `_is_own`.
"""

import atexit
import ctypes
import functools
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ...errors import InvalidSetting
from ..digest import digest

FAST = "-O3"  # before what CC says, which may ask for another level
FLAGS = (  # after it
    *("-std=gnu11", "-fPIC", "-shared"),
    *("-fwrapv", "-fno-strict-aliasing", "-fno-fast-math", "-ffp-contract=off"),  # what exactness asks for
    *("-fno-math-errno", "-fno-trapping-math"),  # what vector instructions ask for
)
_NATIVE, _THREADS = "-march=native", "-fopenmp"


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The C compiler and its flags, with threads and for this very processor if it can; None if none works."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        words = _words(name)
        found = shutil.which(words[0]) if words else None
        for extra in ((_NATIVE, _THREADS), (_NATIVE,), (_THREADS,), ()):
            command = (found, FAST, *extra, *words[1:], *FLAGS)
            if found and _compiles(command):
                return command
    return None


def _words(name: str) -> list[str]:
    """A compiler and its arguments, as a shell takes them: CC="gcc -O0"."""
    try:
        return [name] if shutil.which(name) else shlex.split(name)
    except ValueError:  # a quotation that does not end
        return []


_TRIAL = "void f(int *x, int n) {\n#pragma omp parallel for\nfor (int i = 0; i < n; i++) x[i] = i; }"


def _compiles(command: Sequence[str]) -> bool:
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "t.c")
            source.write_text(_TRIAL)
            return _run([*command, str(source), "-o", str(Path(folder, "t.so"))]) is None
    except OSError:  # no place for it
        return False


def _run(command: list[str]) -> str | None:
    """What went wrong, if anything."""
    try:
        # a session of its own: Ctrl-C is not meant for the compiler
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr if done.returncode else None


@functools.cache
def _cache() -> Path:
    """The user's cache; a temporary folder of this process where there is none, or where others could put code.

    A relative XDG_CACHE_HOME is ignored, as its specification says: it would be below whatever folder one is in.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(base if os.path.isabs(base) else Path.home() / ".cache", "loschmidt")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        why = _open_to_others(folder)
        if why:
            warnings.warn(
                f"kernels are not kept in {folder}: {why}. Remedy: chmod go-w, or another XDG_CACHE_HOME.",
                RuntimeWarning,
            )
        elif os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError, AttributeError):
        pass
    folder = Path(tempfile.mkdtemp(prefix="loschmidt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _open_to_others(folder: Path) -> str | None:
    """Why code in a folder may be another user's, if it may."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        return "it is a link, or no folder"
    if about.st_uid != os.getuid():
        return "it is another user's"
    if about.st_mode & 0o022:
        return "others may write to it"
    base = folder.parent.resolve()
    for above in (base, *base.parents):
        if above.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            return f"everybody may rename what is in {above}"
    return None


def _is_own(path: Path) -> bool:
    """Whether a file is regular, the user's own, and written to by nobody else."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return False
    own = about.st_uid == os.getuid() if hasattr(os, "getuid") else True
    return stat.S_ISREG(about.st_mode) and own and not about.st_mode & 0o022


def mode(device: torch.device) -> str:
    """How walks are done on a device: "native" or "eager".

    The environment variable LOSCHMIDT_KERNELS chooses; by default the CPU's are native, if there is a C compiler, and
    other devices' eager.
    """
    chosen = os.environ.get("LOSCHMIDT_KERNELS", "native" if device.type == "cpu" else "eager")
    if chosen not in ("native", "eager"):
        raise InvalidSetting(f"LOSCHMIDT_KERNELS={chosen!r} is unknown.", "use native or eager.")
    return "eager" if chosen == "native" and (device.type != "cpu" or library() is None) else chosen


@functools.cache
def library() -> ctypes.CDLL | None:
    """The interpreter, from the cache on disk, or made now; None if it does not compile here."""
    here = Path(__file__)
    ops = here.with_name("row_ops.h").read_text()
    return build(here.with_name("rows.c").read_text().replace('#include "row_ops.h"', ops))


def build(source: str) -> ctypes.CDLL | None:
    """A C source as a library; None if it does not compile here."""
    command = compiler()
    if command is None:
        return None
    name = digest([source, *command, _processor()], 12)
    try:
        path, known = _cache() / f"{name}.so", _cache() / f"{name}.sum"
        if not (_is_own(path) and _is_own(known) and known.read_bytes() == _sum(path).encode()):
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                file, made, check = Path(folder, "pass.c"), Path(folder, "pass.so"), Path(folder, "pass.sum")
                file.write_text(source)
                if _run([*command, str(file), "-o", str(made), "-lm"]) is not None:
                    return None
                check.write_text(_sum(made))  # a power cut can leave half a file
                for file in (made, check):
                    file.chmod(0o600)  # whatever the umask: see `_is_own`
                os.replace(made, path)
                os.replace(check, known)
        return ctypes.CDLL(str(path))
    except OSError:  # no room, or the folder is gone
        return None


def _sum(path: Path) -> str:
    return digest([path.read_bytes().hex()])


@functools.cache
def _processor() -> str:
    """Tells machines apart whose native code differs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        import platform

        return platform.processor() + platform.machine()
