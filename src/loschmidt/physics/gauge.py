"""Gauge directions: changes of an attention head's weights that leave the function as it is.

R    rotation of a head's d dimensions, exp(A) with A antisymmetric: d (d - 1)/2 planes a head
qk   W_Q <- R W_Q, W_K <- R W_K     scores q.k do not change
ov   W_V <- R W_V, W_O <- W_O R^T   what the head writes does not change

With momenta turned along (p <- R p) a rotation commutes with the steps of SGD and ECD, and keeps the norm.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, Protocol

import torch
from torch import nn

from ..errors import InvalidSetting
from ..optim import ReversibleOptimizer


class HasHeads(Protocol):
    """A model with one attention whose projections have no bias: rows (of `out`: columns) belong to heads in order."""

    heads: int
    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    out: nn.Parameter


def gauge_directions(
    model: HasHeads,
    kinds: Sequence[Literal["qk", "ov"]] = ("qk", "ov"),
    heads: Sequence[int] | None = None,
    limit: int | None = None,
    optimizer: ReversibleOptimizer | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Infinitesimal rotations of a transformer's heads, one a plane.

    Guarantees: along each the function changes only from second order in the size on.

    Args:
        model: a `models.OneLayerTransformer`, or another with `heads`, `query`, `key`, `value`, `out`.
        kinds: rotations of query and key, of value and output, or both.
        heads: which; None: all.
        limit: the most to give; None: d (d - 1)/2 for each kind and head.
        optimizer: also turn its momenta ("p") along: then the direction is one of the joint state, and its norm is
            that of both.

    Returns:
        Directions for `tangent` and `Nudge`, float64, of norm 1; only the entries that are not zero.

    Raises:
        InvalidSetting: a model without these weights, a kind or a head that does not exist, momenta that have no "p".
    """
    for name in ("heads", "query", "key", "value", "out"):
        if not hasattr(model, name):
            raise InvalidSetting(
                f"{type(model).__name__} has no attribute {name!r}, so that its heads are not known.",
                "give a models.OneLayerTransformer, or a model with the same names.",
            )
    names = {id(p): name for name, p in model.named_parameters()}
    width, count = model.query.shape[0], model.heads
    d = width // count
    pairs = {"qk": (model.query, 0, model.key, 0), "ov": (model.value, 0, model.out, 1)}
    momenta = _momenta(optimizer) if optimizer is not None else {}
    out: list[dict[str, torch.Tensor]] = []
    for kind in kinds:
        if kind not in pairs:
            raise InvalidSetting(f"there is no gauge {kind!r}.", 'use "qk" or "ov".')
        first, rows, second, columns = pairs[kind]
        for head in range(count) if heads is None else heads:
            if not 0 <= head < count:
                raise InvalidSetting(f"there is no head {head}; the model has {count}.", f"give 0 to {count - 1}.")
            for i, j in combinations(range(head * d, (head + 1) * d), 2):
                if limit is not None and len(out) == limit:
                    return out
                direction = {}
                for p, axis in ((first, rows), (second, columns)):
                    direction[names[id(p)]] = _turned(p.detach(), axis, i, j)
                    if momenta:
                        direction[f"{names[id(p)]}/p"] = _turned(momenta[id(p)], axis, i, j)
                norm = torch.stack([x.norm() for x in direction.values()]).norm()
                out.append({name: x / norm for name, x in direction.items()})
    return out


def _turned(w: torch.Tensor, axis: int, i: int, j: int) -> torch.Tensor:
    """A w (or w A^T), with A the generator of the rotation of the plane (i, j)."""
    rows = w.to(torch.float64).movedim(axis, 0)
    out = torch.zeros_like(rows)
    out[i], out[j] = -rows[j], rows[i]
    return out.movedim(0, axis)


def _momenta(optimizer: ReversibleOptimizer) -> dict[int, torch.Tensor]:
    if "p" not in optimizer.lattices:
        raise InvalidSetting(
            f"{type(optimizer).__name__} has no momentum that turns with the parameters.", "use SGD or ECD."
        )
    out = {}
    for s in optimizer._slots:
        value = s.block.lattices["p"].value(*s.rows_at)
        out[id(s.parameter)] = value.view(s.parameter.shape)
    return out
