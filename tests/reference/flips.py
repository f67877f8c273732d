"""Flip single bytes of a run's files, and see whether anybody notices: the harness of the test and of the benchmark."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import loschmidt as lo
from loschmidt.exact import digest
from loschmidt.trajectory import store
from loschmidt.trajectory.manifest import COPY, LOCK
from loschmidt.trajectory.salvage import survey

from .kills import parts


def make_run(folder: Path, name: str) -> dict[int, str]:
    """A run that went forward, back and forward again, in several segments. Returns digests by step."""
    model, opt, loss, data = parts(name)
    digests: dict[int, str] = {}
    with lo.Trajectory(model, opt, loss, data, tape=folder, commit_every=25, digest_every=20) as traj:
        for step in (0, 140, 90, 160):
            digests[step] = state_of(traj.seek(step))
    return digests


def state_of(traj: lo.Trajectory) -> str:
    """Digest of integers and buffers, without the tape, which is read only when the way back needs it."""
    return digest(x for pair in sorted(store.core(traj).items()) if pair[0] != "about" for x in pair)


def load(folder: Path, name: str, **how: bool) -> lo.Trajectory:
    model, _, loss, data = parts(name)
    return lo.Trajectory.load(folder, model=model, loss=loss, data=data, **how)


def unnoticed(folder: Path, name: str, digests: dict[int, str], path: Path, place: int, byte: int) -> str:
    """Damage one byte, try everything, and mend it. Returns what passed unnoticed, or ""."""
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([whole[place] ^ byte]) + whole[place + 1 :])
    try:
        if path.name not in survey(folder).damaged:
            return f"verify missed byte {place} of {path.name}"
        try:
            traj = load(folder, name)
        except lo.DamagedFile as error:
            return "" if error.remedy else "no remedy"
        with traj:
            if state_of(traj) != digests[160]:
                return f"wrong state from byte {place} of {path.name}"
            if path.name in (COPY, traj.folder.manifest.commits[0].state.name):
                return ""  # spares: nobody reads them while the last commit is whole
            try:
                traj.seek(0)
            except lo.DamagedFile:
                return (
                    "" if traj.step == 160 else f"moved to {traj.step} before byte {place} of {path.name} was noticed"
                )
            return f"byte {place} of {path.name} was used"
    finally:
        path.write_bytes(whole)


def flips(folder: Path, count: int, seed: int, tick: Callable[[], None] = lambda: None) -> tuple[Counter, list[str]]:
    """Flip `count` bytes, one at a time. Returns how many by kind of file, and what was not noticed."""
    torch.set_num_threads(1)
    dice, kinds, wrong = random.Random(seed), Counter(), []
    runs = {name: (folder / name, make_run(folder / name, name)) for name in ("SGD", "ECD")}
    for i in range(count):
        name, (where, digests) = [*runs.items()][i % len(runs)]
        files = sorted(p for p in where.iterdir() if p.name != LOCK)
        path = dice.choice(files)
        place, byte = dice.randrange(path.stat().st_size), dice.randrange(1, 256)
        kinds[path.name.split("-")[0].split(".")[0]] += 1
        what = unnoticed(where, name, digests, path, place, byte)
        if what:
            wrong.append(f"{name}: {what}")
        tick()
    return kinds, wrong
