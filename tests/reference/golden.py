"""Short runs whose bits are pinned in tests/golden.json: forward and back can agree although all bits have changed.

    python tests/reference/golden.py

writes that file anew. Raise `loschmidt.exact.BITS` by hand first: it refuses to pin other bits under the same version.

A step uses the four operations and the square root, which IEEE 754 rounds alike on all machines, and sums in a fixed
order. Only what a C library computes may differ between machines: nothing here needs a sine or a tangent (scattering,
bounces), and the one exponential that there is (`conserve="rescale"`) is exp(log 2).
"""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import loschmidt as lo
from loschmidt.exact import BITS
from loschmidt.files import write_json
from loschmidt.optim import flat

if __package__:
    from . import programs
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from reference import programs

PATH = Path(__file__).resolve().parents[1] / "golden.json"
SIZES = ((torch.float32, 23), (torch.bfloat16, 16), (torch.float32, 25))
SHELL = {"lr": 2**-5, "delta_energy": 1.0}
INT32 = {"lattice": torch.int32, "resolution": 2.0**-24}


@dataclass(frozen=True)
class Golden:
    """A run.

    Attributes:
        kind: of the optimizer.
        settings: of it.
        steps: how many.
    """

    kind: type
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 16


SGD, ADAM, ADAMW, ECD, BBI, Q1 = (getattr(lo.optim, x) for x in ("SGD", "Adam", "AdamW", "ECD", "BBI", "ECDq1"))
RUNS = {
    "SGD": Golden(SGD, {"lr": 2**-4, "momentum": 0.9}),
    "SGD, much friction": Golden(SGD, {"lr": 2**-4, "momentum": 0.5, "dampening": 0.5, "weight_decay": 2**-5}),
    "SGD, none": Golden(SGD, {"lr": 2**-4, "momentum": 1.0, "maximize": True}),
    "SGD, int32": Golden(SGD, {"lr": 2**-4, "momentum": 0.5} | INT32),
    "Adam": Golden(ADAM, {"lr": 2**-6, "betas": (0.75, 0.5), "eps": 2**-10}),
    "AdamW": Golden(ADAMW, {"lr": 2**-6, "betas": (0.75, 0.5), "eps": 2**-10, "weight_decay": 0.5}),
    "AdamW, int32 parameters": Golden(
        ADAMW,
        {"lr": 2**-6, "betas": (0.5, 0.5), "eps": 2**-10, "resolution": 2.0**-20}
        | {"lattice": {"q": torch.int32, "m": torch.int64, "v": torch.int64}},
    ),
    "AdamW, 16-bit moments": Golden(ADAMW, {"lr": 2**-6, "betas": (0.75, 0.5), "moments": "16-bit"}),
    "ECD": Golden(ECD, SHELL, 8),
    "ECD, friction and decay": Golden(ECD, SHELL | {"momentum": 0.5, "weight_decay": 1.0, "decoupled": True}, 8),
    "ECD, rescaled": Golden(ECD, SHELL | {"conserve": "rescale"}, 8),
    "ECD, leapfrog": Golden(ECD, SHELL | {"integrator": "leapfrog"}, 8),
    "ECD, yoshida": Golden(ECD, SHELL | {"integrator": "yoshida"}, 3),
    "ECD, mirrored": Golden(ECD, SHELL | {"mirrored": True}, 8),
    "BBI": Golden(BBI, {"lr": 2**-5, "delta_energy": 0.25}, 8),
    "ECDq1": Golden(Q1, {"lr": 2**-6, "eta": 8.0}, 8),
    "ECDq1, per tensor": Golden(Q1, {"lr": 2**-6, "eta": 8.0, "projection": "per-tensor"}, 8),
}


def pinned() -> dict[str, Any]:
    """The file."""
    return json.loads(PATH.read_text())


def parameters() -> list[nn.Parameter]:
    """64 elements, multiples of 1/64, of two dtypes in turn."""
    at, out = 0, []
    for dtype, size in SIZES:
        out.append(nn.Parameter(((torch.arange(at, at + size) * 37 % 101 - 50) / 64).to(dtype)))
        at += size
    return out


def set_gradients(given: list[nn.Parameter], step: int) -> float:
    """+-1/8, by step and place; the loss."""
    at = 0
    for p in given:
        i = torch.arange(at, at + p.numel())
        p.grad = (((i * i + 3 * step * i + i * (step // 3)) % 7 < 3).to(torch.float64) / 4 - 1 / 8).to(p.dtype)
        at += p.numel()
    return 1.0


def bits(name: str, kernels: str = "eager", each=lambda optimizer: None) -> dict[str, str]:
    """Digests of a run at its end: of each lattice, and of the tape. `each` is called after each step."""
    run, given = RUNS[name], parameters()
    with programs.kernels(kernels):
        optimizer = run.kind(given, **run.settings)
        for step in range(run.steps):
            optimizer.step(lambda step=step: set_gradients(given, step))
            each(optimizer)
    return digests(optimizer)


def digests(optimizer) -> dict[str, str]:
    """SHA-256 (its first 16 digits) of the integers and units of each lattice, and of the tape."""
    hashes = {name: hashlib.sha256() for name in ("q", *optimizer.lattices, "tape")}
    for block, _ in flat.by_block(optimizer._slots):
        for name, lattice in block.lattices.items():
            hashes[name].update(f"{lattice.e.tolist()} {lattice.logs} {lattice.n.dtype}".encode())
            hashes[name].update(lattice.n.numpy())
        for stack in (block.stack.planes, block.stack.records):
            hashes["tape"].update(stack.since(0))
    return {name: h.hexdigest()[:16] for name, h in hashes.items()}


def main() -> None:
    torch.set_num_threads(1)
    found = {name: bits(name) for name in RUNS}
    before = pinned() if PATH.exists() else {"bits": None, "runs": {}}
    changed = [name for name, x in before["runs"].items() if name in found and x != found[name]]
    if changed and before["bits"] == BITS:
        sys.exit(f"Other bits in {', '.join(changed)}. If they are meant to change, raise loschmidt.exact.BITS first.")
    write_json(PATH, {"bits": BITS, "runs": found})
    print(f"{PATH.name}: {len(found)} runs, version {BITS} of the bits")


if __name__ == "__main__":
    main()
