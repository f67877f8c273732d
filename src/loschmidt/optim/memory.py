"""Parameters that an optimizer may be given: dense, real, and each element with a place of its own in memory."""

from collections.abc import Sequence

import torch

from ..errors import InvalidSetting


def refuse_parameter(p: torch.Tensor, name: str) -> None:
    """Raise InvalidSetting for a parameter that cannot be wound back exactly."""
    if p.is_sparse:
        raise InvalidSetting(f"{name} is sparse; its lattice would not be.", "use a dense parameter.")
    if p.is_complex():
        raise InvalidSetting(f"{name} is complex ({p.dtype}).", "use torch.view_as_real and two real components.")
    if _overlaps_itself(p):
        raise InvalidSetting(
            f"{name}, of shape {tuple(p.shape)} and strides {p.stride()}, is expanded: several of its elements are one "
            "number in memory, which cannot follow several integers.",
            "give it memory of its own: torch.nn.Parameter(parameter.detach().contiguous()).",
        )
    if p.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        half = " float16 needs a GradScaler, whose skipped steps are not reversible."
        raise InvalidSetting(
            f"{name} has dtype {p.dtype}.{half if p.dtype is torch.float16 else ''}",
            "use float32, float64 or bfloat16.",
        )


def refuse_overlap(parameters: Sequence[torch.Tensor]) -> None:
    """Raise InvalidSetting if a parameter is given twice, or two share memory: each would overwrite the other."""
    if len({id(p) for p in parameters}) != len(parameters):
        raise InvalidSetting("a parameter is given twice.", "pass each parameter once (model.parameters() does).")
    near: list[tuple[int, torch.Tensor]] = []  # where memory ends, of those that may reach as far as the present one
    for start, end, p in sorted(map(_extent, parameters), key=lambda x: x[:2]):
        near = [(e, other) for e, other in near if e > start]
        for _, other in near if end > start else ():
            if p.element_size() != other.element_size() or bool(torch.isin(_places(p), _places(other)).any()):
                raise InvalidSetting(
                    f"two parameters of shapes {tuple(other.shape)} and {tuple(p.shape)} share one memory.",
                    "tie them by assigning the same Parameter object to both modules.",
                )
        near.append((end, p))


def _overlaps_itself(p: torch.Tensor) -> bool:
    """Whether two of its elements lie in one place."""
    reach = 0  # of the dimensions with shorter strides
    for stride, size in sorted((stride, size) for stride, size in zip(p.stride(), p.shape, strict=True) if size > 1):
        if stride <= reach:
            places = _places(p)
            return p.numel() > 0 and len(places.unique()) < len(places)
        reach += stride * (size - 1)
    return False


def _extent(p: torch.Tensor) -> tuple[int, int, torch.Tensor]:
    """First byte, and the one behind the last; the same for what has no memory."""
    if not p.numel() or not p.untyped_storage().data_ptr():
        return 0, 0, p
    reach = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    return p.data_ptr(), p.data_ptr() + (reach + 1) * p.element_size(), p


def _places(p: torch.Tensor) -> torch.Tensor:
    """Addresses of its elements."""
    start, end, _ = _extent(p)
    offsets = torch.arange((end - start) // p.element_size()).as_strided(p.shape, p.stride())
    return (start + offsets * p.element_size()).reshape(-1)
