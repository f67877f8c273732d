"""What a bench does, as data: which sections, at which sizes, how often."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from ..errors import InvalidSetting
from . import machine

SECTIONS = ("steps", "training", "gpt2", "alternatives", "growth")
"""In the order in which they run."""

BYTES_PER_PARAMETER = 120
"""Memory that AdamW and its two twins take at most, temporaries of eager steps included (measured: 111)."""

_GROWTH = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)


class GPTPlan(BaseModel):
    """A GPT with random weights, and the batches it is shown (random symbols).

    Attributes:
        symbols: size of the vocabulary.
        context: positions of the model.
        width: of the residual stream.
        layers: how many.
        heads: of each attention.
        batch_size: windows a step.
        length: symbols that a window predicts, at most `context`.
        steps: there, and back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    symbols: int = 50_257
    context: int = 1_024
    width: int = 768
    layers: int = 12
    heads: int = 12
    batch_size: int = Field(default=1, ge=1)
    length: int = Field(default=64, ge=1)
    steps: int = Field(default=3, ge=2)


class BenchPlan(BaseModel):
    """One bench.

    Attributes:
        only: sections to run.
        sizes: parameters, of the section `steps`.
        growth_sizes: parameters, of the section `growth`; those that do not fit into memory are skipped.
        repeats: paired measurements of each thing.
        threads: of torch.
        seed: of weights, gradients, batches, and of the order within each repeat.
        device: where to measure.
        copy_bytes: size of the tensor whose copy shows the bandwidth.
        block: steps of a training run that are timed at once.
        gpt2: the large model.
        alternatives_steps: length of the run that is swept back.
        alternatives_width: of the small GPT in `alternatives`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    only: tuple[str, ...] = SECTIONS
    sizes: tuple[int, ...] = (1_000_000, 10_000_000, 50_000_000)
    growth_sizes: tuple[int, ...] = _GROWTH
    repeats: int = Field(default=15, ge=1)
    threads: int = Field(default=1, ge=1)
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    copy_bytes: int = Field(default=1 << 28, ge=8)
    block: int = Field(default=10, ge=1)
    gpt2: GPTPlan = GPTPlan()
    alternatives_steps: int = Field(default=64, ge=2)
    alternatives_width: int = Field(default=192, ge=4)


def default_plan(
    only: Sequence[str] = (),
    sizes: Sequence[float] = (),
    growth_sizes: Sequence[float] = (),
    repeats: int = 15,
    threads: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    steps: int | None = None,
) -> BenchPlan:
    """The plan for some settings.

    Args:
        only: names from `SECTIONS`; none: all.
        sizes: parameters, whole numbers; none: 1, 10 and 50 million.
        growth_sizes: the same for `growth`; none: 1e5 to 1e8.
        repeats: paired measurements.
        threads: None: as many as torch would use.
        seed: of everything random.
        device: "cpu" or "cuda".
        steps: of the section `gpt2`; None: 3 on a CPU, 1,000 on CUDA.

    Raises:
        InvalidSetting: unknown sections or devices, numbers out of range, a size that does not fit into memory.
    """
    for name in only:
        if name not in SECTIONS:
            raise InvalidSetting(f"there is no section {name!r}.", f"choose from: {', '.join(SECTIONS)}.")
    for option, least, value in (("repeats", 1, repeats), ("threads", 1, threads), ("steps", 2, steps)):
        if value is not None and value < least:
            raise InvalidSetting(f"{option}={value}: must be at least {least}.", "pass a larger number.")
    if device not in ("cpu", "cuda"):
        raise InvalidSetting(f"device={device!r} is not measured here.", "choose from: cpu, cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidSetting("device='cuda': torch sees no CUDA device.", "use --device cpu, or a torch with CUDA.")
    chosen: dict[str, object] = {}
    if sizes:
        chosen["sizes"] = _whole("sizes", sizes)
    if growth_sizes:
        chosen["growth_sizes"] = _whole("growth-sizes", growth_sizes)
    large = {"batch_size": 8, "length": 512, "steps": 1_000} if device == "cuda" else {}
    plan = BenchPlan(
        only=tuple(name for name in SECTIONS if not only or name in only),
        repeats=repeats,
        threads=threads or torch.get_num_threads(),
        seed=seed,
        device=device,
        gpt2=GPTPlan(**large | ({"steps": steps} if steps is not None else {})),
        **chosen,
    )
    if "growth" in plan.only and len(plan.growth_sizes) < 3:
        raise InvalidSetting("growth-sizes: a slope with an interval needs at least 3 sizes.", "pass more.")
    if "steps" in plan.only:
        _refuse_too_large(max(plan.sizes), device)
    return plan


def _whole(option: str, sizes: Sequence[float]) -> tuple[int, ...]:
    for size in sizes:
        if not 16 <= size < 1e12 or size != int(size):
            raise InvalidSetting(f"{option}: {size:g} is not a number of parameters of at least 16.", "pass like 1e6.")
    return tuple(sorted({int(size) for size in sizes}))


def _refuse_too_large(size: int, device: str) -> None:
    free, needed = machine.free_memory(device), BYTES_PER_PARAMETER * size
    if free is not None and needed > free:
        raise InvalidSetting(
            f"sizes: {size:,} parameters may take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
            "pass smaller --sizes, for example --sizes 1e6 1e7.",
        )
