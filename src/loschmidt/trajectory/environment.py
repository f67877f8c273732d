"""What the bits of a run depend on besides the code: recorded, and compared when a run goes on."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from ..exact import digest
from ..optim.buffers import uncompiled


def record(device: torch.device | str = "cpu", model: nn.Module | None = None) -> dict[str, Any]:
    """Versions, machine, flags and compile mode that kernels depend on, as JSON values."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "build": digest([torch.__config__.show()], 8),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device.type),
        "threads": torch.get_num_threads(),
        "compiled": "" if model is None else ", ".join(f"{k}: {v}" for k, v in compiled(model).items()),
        "autocast": str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else "",
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "cudnn": f"deterministic={torch.backends.cudnn.deterministic} benchmark={torch.backends.cudnn.benchmark}",
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        "loschmidt": package_version(),
    }


def compiled(model: nn.Module) -> dict[str, str]:
    """Which modules torch.compile has taken over, and how: backend, options, and `dynamic` as it was given."""
    found = {}
    for name, module in model.named_modules():
        wrapper = getattr(module, "dynamo_ctx", None)
        in_place = getattr(module, "_compiled_call_impl", None)
        if wrapper is not None or in_place is not None:
            found[uncompiled(name) or "the model"] = _how(wrapper or in_place)
    return found


def _how(by: Any) -> str:
    """What can be found out about a call of torch.compile, which has no public record of it."""
    for cell in getattr(by, "__closure__", None) or ():
        by = cell.cell_contents if hasattr(cell.cell_contents, "callback") else by
    backend = getattr(by, "callback", None)
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend = backend._torchdynamo_orig_backend
    name = getattr(backend, "compiler_name", getattr(backend, "__name__", type(backend).__name__))
    options = getattr(backend, "config", None) or getattr(backend, "kwargs", None) or {}
    about = {"dynamic": getattr(backend, "dynamic", None)} | dict(sorted(options.items()))
    return " ".join([name, *(f"{k}={v}" for k, v in about.items())])


def depends_on_history(model: nn.Module) -> list[str]:
    """Modules whose kernels depend on the shapes that came before.

    Inductor with `dynamic=None` compiles for the first shape, and at the second for all; which kernel serves the first
    shape then, and with what rounding, depends on what ran last.
    """
    found = [name for name, how in compiled(model).items() if how.startswith("inductor dynamic=None")]
    return found if found and torch._dynamo.config.automatic_dynamic_shapes else []


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("loschmidt")
    except PackageNotFoundError:  # run from a source tree
        return "0"


def differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One sentence fragment for each entry that differs."""
    keys = dict.fromkeys([*recorded, *now])
    return [f"{k} was {recorded.get(k)!r}, is {now.get(k)!r}" for k in keys if recorded.get(k) != now.get(k)]
