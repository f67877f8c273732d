"""A run in one safetensors file: integers, tape, journal and buffers as tensors, all else as JSON in its header."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import DamagedFile, InvalidSetting, LoschmidtError, SourceChanged
from ..exact import digest
from ..files import written_atomically
from ..optim import ReversibleOptimizer, serial
from ..optim.buffers import Buffers
from ..optim.integers import from_description
from ..optim.serial import EXTRA
from ..optim.settings import as_tuples
from . import contents, record, surroundings
from .manifest import is_ours, is_run

if TYPE_CHECKING:
    from .trajectory import Trajectory

FORMAT = "2"


def save(traj: "Trajectory", path: str | os.PathLike) -> None:
    """Write the run; an existing file is replaced only when the new one is complete."""
    try:
        path, about = _file(path), describe(traj) | {"digest": traj.digest()}
    except DamagedFile as error:  # the tape of a run in a folder is there, and not in memory
        raise DamagedFile(
            f"the way back lies in the run's folder, and cannot be saved without it: {error.seen}",
            "put that back; or keep the weights alone, model.state_dict().",
        ) from error
    tensors = _state(traj)
    for i, stack in enumerate(traj.tape):
        tensors |= {f"tape.{i}.{k}": v for k, v in stack.state()[0].items()}
    tensors |= {f"journal.{k}": v for k, v in traj.journal.state().items()}
    tensors = {k: v.contiguous().clone() for k, v in tensors.items()}  # safetensors refuses shared memory
    text = json.dumps(about)
    with written_atomically(path) as temporary:
        try:
            save_file(tensors, temporary, {"loschmidt": FORMAT, "about": text, "digest": _digest(text, tensors)})
        except SafetensorError as error:  # its text has what the system said
            number = int((re.findall(r"os error (\d+)", str(error)) or [0])[0])
            raise OSError(number, os.strerror(number) if number else str(error)) from error


def core(traj: "Trajectory") -> dict[str, torch.Tensor]:
    """A run without its tape and its journal, as tensors, views where possible."""
    return _state(traj) | {"about": torch.frombuffer(bytearray(json.dumps(describe(traj)).encode()), dtype=torch.uint8)}


def about_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The description in what `core` gave."""
    return contents.about_of(tensors["about"].numpy().tobytes())


def _state(traj: "Trajectory") -> dict[str, torch.Tensor]:
    slots = traj.optimizer._slots
    tensors = {f"state.{s.index}.{k}": s.integers(k) for s in slots for k in s.block.lattices}
    tensors |= serial.exponents(traj.optimizer)
    tensors |= {f"buffer.{name}": value for name, value in traj.buffers.values().items()}
    return tensors | {f"untracked.{name}": p.detach() for name, p in surroundings.untracked(traj).items()}


def describe(traj: "Trajectory") -> dict[str, Any]:
    """Everything that is not a tensor, and from which the run is rebuilt, as JSON values."""
    opt = traj.optimizer
    traj.name_parameters()
    return {
        "optimizer": type(opt).__name__,
        "defaults": _plain(opt.defaults),
        "groups": [
            _plain({k: v for k, v in group.items() if k != "params"})
            | {"names": [s.name for s in opt._slots if s.group == g]}
            for g, group in enumerate(opt.param_groups)
        ],
        "meta": json.dumps(serial.describe(opt)),
        "layout": _layout(traj.model),
        "seed": traj.seed,
        "first": traj.first,
        "base_lr": traj.base_lr,
        "digest_every": traj.digest_every,
        "commit_every": traj.commit_every,
        "commit_seconds": traj.commit_seconds,
        "modes": traj.modes,
        "frozen": [name for name, p in surroundings.parameters(traj.model).items() if not p.requires_grad],
        "functions": _functions(traj.lr, traj.after_backward),
        "fingerprint": traj.fingerprint,
        "environment": traj.environment,
    }


def _file(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path / "run.safetensors" if path.is_dir() else path


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    return digest([text, *(x for name in sorted(tensors) for x in (name, tensors[name]))])


def _layout(model: nn.Module) -> dict[str, str]:
    """What a run fits: its modules, and dtype and shape of each parameter. Buffers may appear and grow on the way."""
    modules, parameters = surroundings.modules(model), surroundings.parameters(model)
    kinds = {f"module {name or '(the model)'}": type(m).__name__ for name, m in modules.items()}
    return kinds | {f"parameter {name}": f"{p.dtype} {tuple(p.shape)}" for name, p in parameters.items()}


def _functions(lr: Any, after_backward: Any) -> dict[str, bool]:
    """Which functions a run has; they themselves are not in a file."""
    return {"lr": lr is not None, "after_backward": after_backward is not None}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON values, in an order that does not tell how they came to be there."""
    plain = {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in sorted(settings.items())}
    for name, value in plain.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            seen = f"param group setting {name}={value!r} is a {type(value).__name__}, which JSON does not have."
            raise InvalidSetting(seen, f"make {name} a number, a text or a list of them, or remove it.") from error
    return plain


def load(cls: type["Trajectory"], path: str | os.PathLike, **functions: Any) -> "Trajectory":
    """Inverse of `save`. The file is checked before the model is touched, and put back if it is refused later."""
    path = _file(path)
    tensors, about = _read(path)
    with rebuilding(cls, path, tensors, about, **functions) as traj:
        with contents.checked(path):
            contents.check_records(traj.optimizer, traj.journal)
        if traj.digest() != about["digest"]:
            raise DamagedFile(f"{path}: what was read is not what was saved (its digest differs).", "use another copy.")
        record.begin(traj)
        traj.check_world()
    return traj


@contextmanager
def rebuilding(
    cls: type["Trajectory"],
    path: Path,
    tensors: dict[str, torch.Tensor],
    about: dict[str, Any],
    *,
    model: nn.Module,
    **functions: Any,
) -> Iterator["Trajectory"]:
    """A trajectory from the tensors and the description of a run; if the block raises, the model is put back."""
    try:
        _refuse_other_architecture(path, about["layout"], _layout(model))
        with contents.checked(path):
            contents.check_tensors(tensors, about)
        with _put_back_on_failure(model):
            traj = _rebuild(cls, tensors, about, model, **functions)
            yield traj
    except contents.FAULTS as error:
        if isinstance(error, LoschmidtError):
            raise
        raise DamagedFile(f"{path} does not hold a run that fits together ({error!r}).", "use another copy.") from error


def _rebuild(
    cls: type["Trajectory"],
    tensors: dict[str, torch.Tensor],
    about: dict[str, Any],
    model: nn.Module,
    *,
    loss: Callable,
    data: Callable,
    lr: Callable | None,
    after_backward: Callable | None,
) -> "Trajectory":
    for name, had in about["functions"].items():
        if had != _functions(lr, after_backward)[name]:
            raise SourceChanged(
                f"this run has {'a' if had else 'no'} function {name}, and functions are not in its file.",
                f"pass {name}= as at the start of the run." if had else f"leave {name}= out.",
            )
    for name, p in surroundings.parameters(model).items():
        p.requires_grad_(name not in about["frozen"])
    opt = _optimizer(about, model)
    with torch.no_grad():
        for name, p in surroundings.parameters(model).items():
            if f"untracked.{name}" in tensors:
                p.copy_(tensors[f"untracked.{name}"])
    state = {i: {k: tensors[f"state.{i}.{k}"] for k in s.block.lattices} for i, s in enumerate(opt._slots)}
    groups = [as_tuples({k: v for k, v in g.items() if k != "names"}) for g in about["groups"]]
    for g, group in enumerate(groups):
        group["params"] = [s.index for s in opt._slots if s.group == g]
    extra = {k: v for k, v in tensors.items() if k.startswith(("e.", "tape.", "journal."))}
    groups[0][EXTRA] = extra | {"meta": about["meta"]}
    opt.load_state_dict({"state": state, "param_groups": groups})
    traj = cls(model, opt, loss, data, about["seed"], None, lr, after_backward, digest_every=about["digest_every"])
    saved = {k.removeprefix("buffer."): v for k, v in tensors.items() if k.startswith("buffer.")}
    traj.buffers.put(dict.fromkeys(traj.buffers.copies()) | saved)  # None: not there when it was saved
    traj.first, traj.base_lr = about["first"], about["base_lr"]
    traj.commit_every, traj.commit_seconds = about["commit_every"], about["commit_seconds"]
    for name, module in surroundings.modules(model).items():
        module.training = about["modes"].get(name, module.training)
    traj._adopt_surroundings()
    traj.fingerprint, traj.environment = about["fingerprint"], about["environment"]
    return traj


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not path.is_file():
        seen = f"there is no saved run at {path}."
        raise DamagedFile(seen, "give the path that was given to save(), or the folder that was given as tape=.")
    if is_run(path.parent) and is_ours(path.name):
        raise InvalidSetting(f"{path} is a file of the run in {path.parent}.", "give the folder, not the file.")
    try:
        with safe_open(path, "pt") as f:
            metadata, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} cannot be read: {error}.", "use another copy.") from error
    if "loschmidt" not in metadata:
        raise DamagedFile(f"{path} is not a run saved by loschmidt.", "give the path that was given to save().")
    if metadata["loschmidt"] != FORMAT:
        raise DamagedFile(
            f"{path} has format {metadata['loschmidt']}; this version reads {FORMAT}.",
            "use the version of loschmidt that wrote it.",
        )
    text = metadata.get("about", "")
    if metadata.get("digest") != _digest(text, tensors):
        raise DamagedFile(f"{path} is not what was saved: its digest differs.", "use another copy.")
    with contents.checked(path):
        about = contents.about_of(text)
        journal = {k.removeprefix("journal."): v for k, v in tensors.items() if k.startswith("journal.")}
        contents.require(contents.journal_in(journal).steps >= about["first"], "a first step above the last one")
        for i in range(len(json.loads(about["meta"])["forgotten"])):
            for k in ("planes", "records"):
                contents.bytes_in(tensors, f"tape.{i}.{k}")
    return tensors, about


def _refuse_other_architecture(path: Path, saved: dict[str, str], present: dict[str, str]) -> None:
    for name in dict.fromkeys([*saved, *present]):
        theirs, ours = saved.get(name, "none"), present.get(name, "none")
        if theirs != ours:
            raise InvalidSetting(
                f"the model is not that of {path}. {name}: {theirs} there, {ours} here.",
                "build the model as for the run.",
            )


@contextmanager
def _put_back_on_failure(model: nn.Module) -> Iterator[None]:
    weights = [(p, p.detach().clone(), p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    buffers = Buffers()
    buffers.name(model)
    held = buffers.snapshot()
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, value, wants in weights:
                p.copy_(value).requires_grad_(wants)
        for module, mode in modes:
            module.training = mode
        buffers.restore(held)
        raise


def _optimizer(about: dict[str, Any], model: nn.Module) -> ReversibleOptimizer:
    kind, known = about["optimizer"], ReversibleOptimizer.registry
    if kind not in known:
        raise InvalidSetting(f"the run was made with optimizer {kind}.", "import the module that defines it first.")
    parameters, meta = surroundings.parameters(model), json.loads(about["meta"])
    lattice = from_description(meta["lattice"])
    named = any("param_names" in g for g in about["groups"])
    groups = [{"params": [(n, parameters[n]) if named else parameters[n] for n in g["names"]]} for g in about["groups"]]
    for group, saved in zip(groups, about["groups"], strict=True):  # a setting without a default has its values there
        group |= as_tuples({k: saved[k] for k, v in about["defaults"].items() if v is None and k in saved})
    try:
        return known[kind](
            groups, **as_tuples(about["defaults"]), resolution=meta["resolution"], lattice=lattice, seed=meta["seed"]
        )
    except LoschmidtError as error:
        raise InvalidSetting(f"the run's optimizer cannot be rebuilt: {error.seen}", error.remedy) from error
