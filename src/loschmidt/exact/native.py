"""Passes compiled to machine code: one walk over memory for all that a step does to an element.

The lanes are cut into tiles, a thread takes a tile through all rows, so that heads stay in its cache and no thread
waits for another. Tiles are as long as the number of threads allows: at each end of one, memory's prefetching begins
anew. `csource` prints the code. (`torch.compile` gives the same bits from `rowwise`, but is slower on processors: see
`benchmarks/kernel_modes.py`.)

Compiled with the C compiler that is found (CC, cc, gcc, clang), once for each program, into the user's cache. Code that
somebody else may have put there is never loaded: see `_cache` and `_is_own`.
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
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidSetting
from .csource import Layout, places, printed
from .digest import digest
from .trace import Instruction

FAST = "-O3"  # before what CC says, which may ask for another level
FLAGS = (  # after it
    *("-std=gnu11", "-fPIC", "-shared"),
    *("-fwrapv", "-fno-strict-aliasing", "-fno-fast-math", "-ffp-contract=off"),  # what exactness asks for
    *("-fno-math-errno", "-fno-trapping-math"),  # what vector instructions ask for
)
_NATIVE, _THREADS = "-march=native", "-fopenmp"
MOST = 8  # lattices of a pass
RANGE = {torch.int64: 0.999 * 2.0**63, torch.int32: 2.0**31 - 8}  # what may not be left, even on the way


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
    """How passes are run on a device: "native", "eager" or "compile".

    The environment variable LOSCHMIDT_KERNELS chooses; by default the CPU's are native, if there is a C compiler, and
    other devices' eager. "compile" hands them to `torch.compile`.
    """
    chosen = os.environ.get("LOSCHMIDT_KERNELS", "native" if device.type == "cpu" else "eager")
    if chosen not in ("native", "eager", "compile"):
        raise InvalidSetting(f"LOSCHMIDT_KERNELS={chosen!r} is unknown.", "use native, eager or compile.")
    return "eager" if chosen == "native" and (device.type != "cpu" or compiler() is None) else chosen


@dataclass(frozen=True, eq=False)
class Code:
    """Passes with the same C source; one object for each, so that it is found by its identity.

    Attributes:
        shape: the instructions without the n and d of exchanges, which are in P.
        layout: of the operands.
        at: see `csource.places`.
        forward: which way.
    """

    shape: tuple[Instruction, ...]
    layout: Layout
    at: dict[Any, int]
    forward: bool


@functools.cache
def code(shape: tuple[Instruction, ...], layout: Layout, parameters: int, forward: bool) -> Code:
    """That of a pass whose trace has so many parameters."""
    return Code(shape, layout, places(shape, layout, parameters), forward)


_functions: dict[Code, Any] = {}


def function(of: Code) -> tuple[Any, bool]:
    """The compiled pass, from memory, from the cache on disk, or made now; None if it does not compile here.

    And whether it was not in memory yet.
    """
    new = of not in _functions
    if new:
        _functions[of] = build(printed(of.shape, of.layout, of.at, of.forward))
    return _functions[of], new


def build(source: str) -> "ctypes._CFuncPtr | None":
    """The function `run` of a C source; None if it does not compile here."""
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
        function = ctypes.CDLL(str(path)).run
    except OSError:  # no room, or the folder is gone
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function


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


def call(
    function: Any,
    numbers: Sequence[int],
    operands: Sequence[array],
    lattices: Sequence[int],
    heads: Sequence[int],
    others: Sequence[array],
    squares: int,
) -> None:
    """Run a pass; the GIL is released meanwhile. Arguments in the order of `Args` in `pass.h`: words of 64 bits, also
    the addresses."""
    starts, rest = ([x.buffer_info()[0] for x in arrays] for arrays in (operands, others))
    lattices, heads = [*lattices] + [0] * (MOST - len(lattices)), [*heads] + [0] * (2 - len(heads))
    args = array("q", (*numbers, *starts, *lattices, *heads, *rest, squares))
    function(args.buffer_info()[0])
