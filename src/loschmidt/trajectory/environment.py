"""What the bits of a run depend on besides the code: recorded, and compared when a run goes on."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from ..exact import digest


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
        "compiled": "" if model is None else _compiled(model),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "cudnn": f"deterministic={torch.backends.cudnn.deterministic} benchmark={torch.backends.cudnn.benchmark}",
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        "loschmidt": package_version(),
    }


def _compiled(model: nn.Module) -> str:
    """Which modules torch.compile has taken over, and how, as far as can be seen."""
    found = []
    for name, module in model.named_modules():
        compiler = getattr(getattr(module, "dynamo_ctx", None), "compiler_config", None)
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            found.append(f"{name or 'the model'} {compiler or ''}".strip())
    return ", ".join(found)


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
