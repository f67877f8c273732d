"""The joint state of a run (parameters and momenta) as one tensor of real numbers, and directions in it.

A state has shape (lattices, size): row 0 is "q", the parameters; the others are the optimizer's own, in its order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InvalidSetting, LatticeOverflow
from ..exact import Block, Lattice, random
from ..exact.lattice import peaks
from ..exact.ops import TooLarge, room, unroom
from ..exact.tape import by_rows
from ..optim import ReversibleOptimizer, flat

Direction = torch.Tensor | Mapping[str, Any]
"""A state-shaped tensor, or "name of a parameter" (or "name/p": of its momentum) -> tensor of its shape."""


class Layout:
    """Where each parameter lies in the joint state of an optimizer.

    Attributes:
        names: of the lattices, "q" first.
        size: elements of a row.
        places: by the parameter's name: (start, stop, shape).
        live: shape (size,), 1.0 where the parameter wants a gradient, else 0.0.
    """

    def __init__(self, optimizer: ReversibleOptimizer):
        self.names = ("q", *optimizer.lattices)
        self.blocks = [block for block, _ in flat.by_block(optimizer._slots)]
        self.offsets, at = {}, 0
        for block in self.blocks:
            self.offsets[id(block)] = at
            at += block.size
        self.size = at
        self.device = self.blocks[0].device if self.blocks else torch.device("cpu")
        self.places, self.live = {}, torch.zeros(at, dtype=torch.float64, device=self.device)
        for s in optimizer._slots:
            start = self.offsets[id(s.block)]
            self.live[start + s.start : start + s.stop] = float(s.parameter.requires_grad)
            self.places[s.name] = (start + s.start, start + s.stop, tuple(s.parameter.shape))

    @property
    def shape(self) -> tuple[int, int]:
        """Of a state."""
        return len(self.names), self.size

    def read(self) -> torch.Tensor:
        """The present state: float64, integers rounded to 53 bits."""
        rows = [torch.cat([b.lattices[k].value().to(self.device) for b in self.blocks]) for k in self.names]
        return torch.stack(rows)

    def move(self, optimizer: ReversibleOptimizer, change: torch.Tensor) -> torch.Tensor:
        """Add to the integers, rounded; returns what was added. The way back is no longer compared with the record.

        Rows with units of their own get coarser ones where that is needed.

        Raises:
            LatticeOverflow: nothing was changed.
        """
        pieces = [
            (block, block.lattices[name], row, change[row, start : start + block.size].to(block.device))
            for block, start in ((b, self.offsets[id(b)]) for b in self.blocks)
            for row, name in enumerate(self.names)
        ]
        made: list[tuple[Lattice, tuple[np.ndarray, list[np.ndarray]]]] = []
        try:
            for block, lattice, row, piece in pieces:
                _make_room(block, lattice, self.names[row], piece, made)
        except LatticeOverflow:
            for lattice, (counts, planes) in reversed(made):
                unroom(lattice, (0, len(lattice.rows)), counts, planes)
            raise
        moved = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        for block, lattice, row, piece in pieces:
            u = block.rows.spread(lattice.units(), 0, len(block.rows), block.device)
            k = (piece / u).round_()
            lattice.n.add_(k.to(lattice.n.dtype))
            lattice.replaced()
            start = self.offsets[id(block)]
            moved[row, start : start + block.size] = (k * u).to(self.device)
        flat.write(optimizer._slots)
        optimizer.journal.edited()
        return moved

    def vector(self, direction: Direction) -> torch.Tensor:
        """A direction as a state-shaped float64 tensor.

        Raises:
            InvalidSetting: naming the parameter that is unknown or has another shape.
        """
        if isinstance(direction, torch.Tensor):
            if tuple(direction.shape) != self.shape:
                seen = f"a direction of shape {tuple(direction.shape)}, where states have {self.shape}."
                raise InvalidSetting(seen, "give a tensor of that shape, or a dict of parameters' names.")
            return direction.detach().to(self.device, torch.float64)
        out = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        for key, value in direction.items():
            row, (start, stop, shape) = self._place(key)
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            if tuple(value.shape) != shape:
                seen = f"a direction has shape {tuple(value.shape)} for {key}, which has {shape}."
                raise InvalidSetting(seen, "give tensors of the parameters' shapes.")
            out[row, start:stop] = value.reshape(-1).to(self.device)
        return out

    def _place(self, key: str) -> tuple[int, tuple[int, int, tuple[int, ...]]]:
        name, _, lattice = key.rpartition("/")
        if key in self.places:
            return 0, self.places[key]
        if name in self.places and lattice in self.names:
            return self.names.index(lattice), self.places[name]
        known = ", ".join([*self.places][:6])
        raise InvalidSetting(
            f"a direction names {key!r}, which the optimizer does not hold.",
            f"name parameters ({known}, ...), and momenta as {next(iter(self.places), 'name')}/{self.names[-1]}.",
        )

    def vectors(self, directions: int | Direction | Sequence[Direction], seed: int) -> torch.Tensor:
        """Several directions, shape (k, lattices, size): given ones, or `directions` random ones.

        Random ones are in the parameters, where there are enough of them: beside Adam's v a length means nothing.

        Raises:
            InvalidSetting: if there is none, or one is zero or not finite.
        """
        if isinstance(directions, int) and not isinstance(directions, bool):
            if directions < 1:
                raise InvalidSetting(f"directions={directions}: there is nothing to follow.", "give 1 or more.")
            return self.random(directions, seed, ["q"] if directions <= int(self.live.sum()) else None)
        if isinstance(directions, Mapping):
            directions = [directions]
        if isinstance(directions, torch.Tensor) and directions.dim() == 2:
            directions = [directions]
        out = [self.vector(d) for d in directions]
        for i, v in enumerate(out):
            norm = float(v.norm())
            if not 0 < norm < float("inf"):
                raise InvalidSetting(f"direction {i} has norm {norm:g}.", "give finite directions that are not zero.")
        if not out:
            raise InvalidSetting("directions is empty: there is nothing to follow.", "give 1 or more.")
        return torch.stack(out)

    def random(self, count: int, seed: int, rows: Sequence[str] | None = None) -> torch.Tensor:
        """Normal directions of norm 1, shape (count, lattices, size), keyed by the seed; frozen parameters stay.

        `rows`: only in these lattices.
        """
        draw = random.generator("directions", seed).standard_normal((count, *self.shape))
        out = torch.from_numpy(draw).to(self.device) * self.live
        if rows is not None:
            out *= torch.tensor([float(name in rows) for name in self.names], device=self.device)[:, None]
        return out / out.flatten(1).norm(dim=1)[:, None, None]


def _make_room(block: Block, lattice: Lattice, name: str, piece: torch.Tensor, made: list) -> None:
    """Let a lattice hold what is to be added; notes in `made` what undoes that."""
    rows, lengths = (0, len(lattice.rows)), lattice.rows.lengths(0, len(lattice.rows))
    most = peaks(piece, lattice.rows.starts)
    try:
        if lattice.resolution is None:
            counts, planes = room(lattice, rows, most, block.work)
            made.append((lattice, (counts, by_rows(counts, lengths, planes))))
        elif (peaks(lattice.n, lattice.rows.starts) + most / lattice.units() > lattice.limit).any():
            raise TooLarge(0)
    except TooLarge:
        seen = f"a perturbation by {most.max():.3g} does not fit lattice {name!r}."
        raise LatticeOverflow(seen, "perturb by less.") from None
