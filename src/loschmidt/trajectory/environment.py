"""What the bits of a run depend on besides the code: recorded, and compared when a run goes on."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


def record(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, machine and flags that kernels depend on, as JSON values."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device.type),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": f"deterministic={torch.backends.cudnn.deterministic} benchmark={torch.backends.cudnn.benchmark}",
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        "loschmidt": package_version(),
    }


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
