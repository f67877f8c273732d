"""Every bit of a state by name, what differs between two states, and how to damage one bit."""

import struct

import numpy as np
import torch

State = dict[str, torch.Tensor]


def raw(x: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor's bytes, so that -0.0 and 0.0 differ and comparisons are of integers."""
    x = x.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return x.view(torch.uint8) if x.numel() else torch.empty(0, dtype=torch.uint8)


def bits_of_stack(stack) -> State:
    tensors, about = stack.state()
    return {k: raw(v) for k, v in tensors.items()} | {"forgotten": torch.tensor(about["forgotten"])}


def units_of(lattice) -> torch.Tensor:
    """Exponents and logarithms of a lattice."""
    text = repr((lattice.e.tolist(), lattice.logs, lattice.pushed)).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def bits_of(optimizer, model=None) -> State:
    """Integers, step counts, tape, and the parameters and buffers of the model."""
    out = {}
    for i, state in enumerate(optimizer.state.values()):
        out |= {f"{k} of parameter {i}": raw(torch.as_tensor(v)) for k, v in state.items()}
    for i, stack in enumerate(optimizer.tape):
        out |= {f"{k} of tape {i}": v for k, v in bits_of_stack(stack).items()}
    out |= {f"units of lattice {i}": units_of(x) for i, x in enumerate(optimizer.tape.lattices)}
    if model is not None:
        out |= {k: raw(v) for k, v in model.state_dict().items()}
    return out | {"steps": torch.tensor(optimizer.steps)}


def differences(a: State, b: State) -> list[str]:
    """Names of what is not the same, bit for bit."""
    return [k for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k])]


def flip(x: torch.Tensor, index: int = 0, bit: int = 0) -> None:
    """Flip one bit of one whole number, in place; `x` holds integers."""
    flat = x.view(-1)
    flat[index] = int(flat[index]) ^ (1 << bit)


def flip_float(x: float, bit: int) -> float:
    """The float with one bit flipped."""
    (word,) = struct.unpack("<q", struct.pack("<d", x))
    return struct.unpack("<d", struct.pack("<q", word ^ (1 << bit)))[0]


def flip_plane(stack, index: int = -1) -> None:
    """Flip a bit of a plane (whose arrays are shared, so a copy takes the place)."""
    planes = stack.planes.since(0)
    planes[index] ^= np.uint8(1)
    stack.planes.settle([planes])


def damage(optimizer, place: str) -> None:
    """Flip one bit: "q", "p", "m", "v" (a lattice), "plane", "check", or a number of the journal, by its name.

    "scalar" is the factor of a rescaling.
    """
    journal = optimizer.journal
    if place == "plane":
        flip_plane(optimizer.tape.stacks[0])
    elif place == "check":
        journal.checks[-1] ^= 1
    elif place not in next(iter(optimizer.state.values())):
        name = "rescale" if place == "scalar" else place
        step = max(s for s, entry in journal.entries.items() if name in entry.get("scalars", {}))
        entry = journal.entries[step]
        c = flip_float(entry["scalars"][name], 30)  # lower bits are below the fractions' accuracy
        journal.entries[step] = entry | {"scalars": entry["scalars"] | {name: c}}
    else:
        flip(next(iter(optimizer.state.values()))[place])
