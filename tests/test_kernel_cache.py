"""The cache of compiled passes: damage is mended, and code that somebody else may have put there is never loaded."""

import ctypes
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt.exact import native

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that the cache is in, as long as it is trusted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._cache.cache_clear()
    yield tmp_path / "loschmidt"
    native._cache.cache_clear()


SOURCE = "void run(long *x) { x[0] = 3 * x[0]; }"


def steps(source=SOURCE):
    """What compiled code makes of a number."""
    x = ctypes.c_long(14)
    native.build(source)(ctypes.addressof(x))
    return x.value


def planted(cache, monkeypatch) -> tuple[Path, Path, list[Path]]:
    """A cache in which each kernel was exchanged for one that would leave a mark, with the right sum.

    It is at another place, since a library of the same path would not be loaded again.
    """
    steps()
    folder = cache.parent / "other" / "loschmidt"
    folder.mkdir(parents=True, mode=0o700)
    mark, source, evil = cache.parent / "ran", cache.parent / "evil.c", cache.parent / "evil.so"
    source.write_text(
        "#include <stdio.h>\n"
        f'__attribute__((constructor)) static void f(void) {{ fclose(fopen("{mark}", "w")); }}\n'
        "void run(long *args) {}"
    )
    assert native._run([*native.compiler(), str(source), "-o", str(evil)]) is None
    kernels = [folder / path.name for path in cache.glob("*.so")]
    for path in kernels:
        shutil.copy(evil, path)
        path.with_suffix(".sum").write_text(native._sum(path))
        for file in (path, path.with_suffix(".sum")):
            file.chmod(0o600)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    native._cache.cache_clear()
    return mark, folder, kernels


def test_a_planted_kernel_would_run(cache, monkeypatch):
    """The twin of what follows: with the user's own rights, in the user's own folder, nothing can be told."""
    mark, _, kernels = planted(cache, monkeypatch)
    assert steps() == 14 and len(kernels) == 1 and mark.exists()


UNSAFE = {
    "the folder may be written to by others": lambda cache: cache.chmod(0o777),
    "the folder may be written to by the group": lambda cache: cache.chmod(0o770),
    "the folder above may be written to by everybody": lambda cache: cache.parent.chmod(0o777),
    "the folder is a link": lambda cache: cache.symlink_to(cache.rename(cache.parent / "elsewhere")),
}
if os.getuid() == 0:
    UNSAFE["the folder is somebody else's"] = lambda cache: os.chown(cache, 12345, 12345)


@pytest.mark.parametrize("how", UNSAFE)
def test_code_is_never_loaded_from_a_folder_that_others_may_write_to(how, cache, monkeypatch):
    good = steps()
    assert good == 42
    native._cache.cache_clear()
    mark, folder, _ = planted(cache, monkeypatch)
    UNSAFE[how](folder)
    with pytest.warns(RuntimeWarning, match=r"kernels are not kept in .*Remedy"):
        assert steps() == good
    assert not mark.exists()
    instead = native._cache()
    assert instead != folder and stat.S_IMODE(instead.stat().st_mode) == 0o700 and list(instead.glob("*.so"))


@pytest.mark.parametrize("what", ["a mode", "a link", "an owner"])
def test_a_kernel_that_others_may_write_to_is_made_anew(what, cache, monkeypatch):
    good = steps()
    native._cache.cache_clear()
    mark, _, kernels = planted(cache, monkeypatch)
    for path in kernels:
        if what == "a mode":
            path.chmod(0o666)
        elif what == "a link":
            path.symlink_to(path.rename(cache.parent / path.name))
        elif os.getuid():
            pytest.skip("only root can give files away")
        else:
            os.chown(path, 12345, 12345)
    assert steps() == good and not mark.exists()
    assert all(native._is_own(path) for path in kernels)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80", b"", b"0" * 32], ids=["no text", "empty", "another"])
def test_a_damaged_sum_is_made_anew(content, cache):
    steps()
    (path,) = cache.glob("*.sum")
    path.write_bytes(content)
    assert steps() == 42 and path.read_bytes() == native._sum(path.with_suffix(".so")).encode()


def test_an_optimizer_steps_with_a_damaged_cache(cache, monkeypatch):
    digests = set()
    for _ in range(2):
        monkeypatch.setattr(native, "_functions", {})
        p = nn.Parameter(torch.ones(70_000))  # deep enough for passes
        opt = lo.optim.SGD([p], lr=0.1, momentum=0.9)
        p.grad = torch.ones_like(p)
        opt.step()
        assert native._functions and None not in native._functions.values()
        digests.add(opt.digest())
        for path in cache.glob("*.sum"):
            path.write_bytes(b"\xff\x00")
    assert len(digests) == 1


def test_a_relative_cache_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    native._cache.cache_clear()
    steps()
    assert not (tmp_path / "here").exists() and list((tmp_path / "home/.cache/loschmidt").glob("*.so"))
    native._cache.cache_clear()


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_kernels_are_kept_whatever_the_umask(umask, cache, monkeypatch):
    before = os.umask(umask)
    try:
        steps()
    finally:
        os.umask(before)
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    native._cache.cache_clear()
    steps()
    assert made and {path: path.stat().st_mtime_ns for path in cache.iterdir()} == made


def test_arguments_of_the_compiler_are_honoured_and_are_part_of_the_key(cache, monkeypatch):
    good, first = steps(), {path.name for path in cache.glob("*.so")}
    found = native.compiler()[0]
    try:
        for given in (f"{found} -O0 -ffast-math", f"'{found}' -O1"):
            monkeypatch.setenv("CC", given)
            native.compiler.cache_clear()
            native._cache.cache_clear()
            command = native.compiler()
            assert command[0] == found and given.split()[1] in command
            assert command.index(native.FAST) < command.index(given.split()[1]) < command.index("-fno-fast-math")
            assert steps() == good
            second = {path.name for path in cache.glob("*.so")} - first
            assert second
            first |= second
        monkeypatch.setenv("CC", "'unfinished")
        native.compiler.cache_clear()
        assert native.compiler() is not None
    finally:
        monkeypatch.undo()
        native.compiler.cache_clear()
        native._cache.cache_clear()
