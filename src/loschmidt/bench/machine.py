"""The machine: what it is, how much memory is free and was used, how fast it copies."""

import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .timing import summary, timed

_PEAK = "VmHWM"


def describe(device: str) -> dict[str, Any]:
    """Processor, cores and memory; no names of hosts or people."""
    facts = {"cpu": _cpu(), "cores": os.cpu_count(), "memory_bytes": _total_memory()}
    if hasattr(os, "sched_getaffinity"):
        facts["usable_cores"] = len(os.sched_getaffinity(0))
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        facts |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _proc(file: str, key: str) -> int | None:
    """A number of bytes from a file of Linux's /proc with lines "key: count kB"."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def free_memory(device: str) -> int | None:
    """Bytes that can be had, or None where that is not known."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else _proc("meminfo", "MemAvailable")


def empty(device: str) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def peak(device: str) -> Iterator[dict[str, Any]]:
    """The most memory in use inside the block, in a dict that is filled on leaving.

    On a CPU it is the resident memory of the process: what was there before is in it. Where the system can't begin
    the record anew (it can on Linux), `since_start` says that the peak may be of earlier times.
    """
    found: dict[str, Any] = {}
    empty(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield found
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
        found["since_start"] = False
    except OSError:
        found["since_start"] = True
    yield found
    found["peak_bytes"] = _proc("self/status", _PEAK) or _peak_of_process()


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def copy_bandwidth(size: int, repeats: int, device: str) -> dict[str, Any]:
    """Bytes a second, read and written, of copying one tensor of so many bytes to another."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(repeats + 2)][2:]
    return {"tensor_bytes": source.nbytes, "bytes_per_second": 2 * source.nbytes / summary(seconds)["median"]}


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Kernels that repeat their bits; on a CPU those of the models here do so anyway."""
    if device != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
