"""A place where bad things are done to runs, and where it is seen that nothing was lost."""

import errno
import functools
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import loschmidt as lo
from loschmidt import cli, files
from loschmidt.optim import SGD, AdamW
from loschmidt.trajectory import environment, manifest

STEP, END = 30, 36
"""Where runs stand when the bad thing happens, and where they go afterwards."""


# -- a site --------------------------------------------------------------------------------------------


def network(dtype=torch.float32, width=128):
    """Small, with dropout and BatchNorm; the same at every call, and no global generator moves."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 1)
        )
    return model.to(dtype)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def dataset():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    return x, x[:, :1] * x[:, 1:2]


def schedule(**other):
    return lo.data.Schedule(dataset(), **{"batch_size": 16, "seed": 2} | other)


SETTINGS = {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.1}  # strong friction, so that the tape is used early
OFTEN = {"commit_every": 3, "commit_seconds": None, "digest_every": 10}


def begin(model=None, opt=None, loss=loss, data=None, **given):
    model = network() if model is None else model
    opt = AdamW(model.parameters(), **SETTINGS) if opt is None else opt
    return lo.Trajectory(model, opt, loss, schedule() if data is None else data, **given)


def load(path, model=None, **other):
    given = {"model": network() if model is None else model, "loss": loss, "data": schedule()}
    return lo.Trajectory.load(path, **given | other)


@functools.cache
def digests():
    """By step, of a run that nothing ever disturbs."""
    traj = begin(digest_every=10)
    path = {0: traj.digest()}
    traj.seek(END, on_step=lambda traj: path.update({traj.step: traj.digest()}))
    return path


class Refused(lo.LoschmidtError):
    """A command ended with exit code 2 and two lines on stderr."""


class Site:
    """Where a bad thing is done.

    Attributes:
        path: an empty folder.
        patch: whatever is patched is put back before the run goes on.
        model: the one that new runs are begun with, and that of `traj`.
        folder: of a run at step STEP.
        traj: that run, opened.
        moved: the bad thing happens under way: the run may stand at a later step.
        undo: takes the hindrance away.
        error: that was raised.
    """

    def __init__(self, path, template, patch, capsys):
        self.path, self.template, self.patch, self.capsys = path, template, patch, capsys
        self.model, self.folder, self.traj, self.error = network(), None, None, None
        AdamW(self.model.parameters())  # weights that lie on a lattice are not moved by the next optimizer
        self.moved, self.undo = False, lambda: None

    def start(self, **given):
        return begin(**{"model": self.model} | given)

    def settings(self, kind, **settings):
        return kind(self.model.parameters(), **settings)

    def file(self, text=b"a diary"):
        path = self.path / "file"
        path.write_bytes(text)
        return path

    def closed(self):
        self.folder = self.path / "run"
        shutil.copytree(self.template, self.folder)

    def load(self, path=None, **other):
        return load(self.folder if path is None else path, **{"model": self.model} | other)

    def command(self, *arguments):
        """Run a command that must be refused."""
        with pytest.raises(SystemExit) as end:
            cli.main([str(x) for x in arguments])
        said = self.capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in said
        seen, remedy = re.fullmatch(r"loschmidt: (.*)\nRemedy: (.*)\n", said).groups()
        raise Refused(seen, remedy)

    def refuse_to_write(self, number, part="", after=0, half=True):
        """Writing files with `part` in their names fails, half done, from the file number `after` on."""
        write, count = files.write_new, itertools.count()

        def failing(path, data):
            if part in path.name and next(count) >= after:
                if half:
                    path.write_bytes(data[: len(data) // 2])
                raise OSError(number, os.strerror(number), str(path))
            write(path, data)

        self.patch.setattr(files, "write_new", failing)

    def stands(self):
        """Everything that must be the same after the bad thing."""
        there = {}
        if not self.moved:
            for path in sorted(self.path.rglob("*")):
                if path.is_symlink() or (path.is_file() and path.name != manifest.LOCK):
                    huge = not path.is_symlink() and path.stat().st_size > 1 << 20
                    content = path.stat().st_size if huge else path.read_bytes()
                    there[str(path)] = os.readlink(path) if path.is_symlink() else content
            there |= {name: x.clone().numpy().tobytes() for name, x in self.model.state_dict().items()}
            there |= {f"wants {name}": p.requires_grad for name, p in self.model.named_parameters()}
            there |= {f"mode {name}": m.training for name, m in self.model.named_modules()}
        there["random"] = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
        if self.traj is not None:
            there["step"] = None if self.moved else self.traj.step
            tape = self.traj.tape
            held = [(len(x.planes), len(x.records)) for x in tape], [(x.e.tolist(), *x.logs) for x in tape.lattices]
            there["run"] = None if self.moved else (held, self.traj.optimizer.tensor_digests(), self.traj.journal.bytes)
        return there


# -- what is left afterwards ---------------------------------------------------------------------------


def goes_on(site):
    """With the hindrance gone, the run ends as if it had never been there; so does the one in the folder."""
    traj = site.traj
    if traj is None and site.folder is not None:
        traj = load(site.folder)
        assert traj.step == STEP
    if traj is not None:
        assert traj.digest() == digests()[traj.step]
        back = 0 if site.moved else STEP - 6  # a digest is of the way back, too
        assert traj.seek(END).digest() == digests()[END] and traj.seek(back).digest() == digests()[back]
        traj.close()
        if site.traj is not None:
            with load(site.folder) as traj:
                assert traj.step == back and traj.digest() == digests()[back]


def starts(site):
    """The folder that was refused or could not be written is as good as any, once that is over."""
    with begin(tape=site.path / "new") as traj:
        traj.seek(5)
    with load(site.path / "new") as traj:
        assert traj.digest() == digests()[5]


def salvages(site):
    with load(site.folder, salvage=True) as traj:
        assert traj.step == STEP and traj.digest() == digests()[STEP]
    goes_on(site)


def stays_above(site):
    """What the remedy says is true: down to that step the way back is whole."""
    lowest = int(re.search(r"seek\((\d+)\)", site.error.remedy)[1])
    assert 0 < lowest < STEP
    there = begin().seek(lowest).model.state_dict()
    assert all(torch.equal(there[k], x) for k, x in site.traj.seek(lowest).model.state_dict().items())
    assert site.traj.seek(2 * END).step == 2 * END  # and the way forward, with its commits
    site.traj.close()


def nothing(site):
    """Files stay damaged; that they are the same bytes is all there is to check."""


# -- how a row is put together: prepare, yield, do the bad thing ---------------------------------------


def at(act, before=None):
    """A site without a run."""

    def do(site):
        if before is not None:
            before(site)
        yield
        act(site)

    return do


def in_folder(harm=None, act=Site.load):
    """A run in a folder that is closed, and harmed; by default it is then loaded."""

    def do(site):
        site.closed()
        if harm is not None:
            harm(site.folder)
        yield
        act(site)

    return do


def in_run(act, before=None, moved=False, harm=None):
    """A run in a folder that is open; `before` hinders it, and may give what puts the hindrance away."""

    def do(site):
        site.closed()
        if harm is not None:
            harm(site.folder)
        site.traj = load(site.folder, site.model)
        site.moved = moved
        site.undo = (before(site) if before is not None else None) or (lambda: None)
        yield
        act(site)

    return do


def seek(step):
    return lambda site: site.traj.seek(step)


def with_loss(f, step=END):
    """A loss that is another one all of a sudden; f(loss, model, batch, number of calls so far)."""

    def before(site):
        calls = itertools.count()
        site.patch.setattr(site.traj, "loss_fn", lambda *given: f(loss(*given), *given, next(calls)))

    return in_run(seek(step), before)


def bad_later(bad):
    """A loss that turns bad in the third step (there are two calls before the first)."""

    def before(site):
        calls = itertools.count()
        site.patch.setattr(site.traj, "loss_fn", lambda *given: (bad if next(calls) >= 4 else loss)(*given))

    return in_run(seek(END), before, moved=True)


# -- harm ----------------------------------------------------------------------------------------------


def both(content):
    """Both manifests replaced."""

    def harm(folder):
        for name in (manifest.MANIFEST, manifest.COPY):
            (folder / name).write_bytes(content)

    return harm


def forged(change):
    """Both manifests changed, with a digest that is right: only what was changed is wrong."""

    def harm(folder):
        body = json.loads((folder / manifest.MANIFEST).read_text())
        del body["digest"]
        change(body)
        text = json.dumps(body, sort_keys=True).encode()
        body = {"digest": hashlib.blake2b(text, digest_size=32).hexdigest()} | body
        both((json.dumps(body, indent=1) + "\n").encode())(folder)

    return harm


def first(chain, **values):
    return forged(lambda body: body[chain][0].update(values))


def huge(folder):
    for name in (manifest.MANIFEST, manifest.COPY):
        with open(folder / name, "r+b") as f:
            f.truncate(1 << 40)  # sparse: takes no room


def one(kind, change):
    """The newest file of a kind changed."""
    return lambda folder: change(sorted(folder.glob(f"{kind}-*"))[-1])


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def linked(path):
    away = path.with_name("elsewhere")
    path.rename(away)
    path.symlink_to(away.name)


def hollow(path):
    path.unlink()
    path.mkdir()


def swapped(folder):
    """The state of another run of the same kind, of the same size."""
    other = folder.with_name("other")
    with begin(tape=other, data=schedule(seed=3), **OFTEN) as traj:
        traj.seek(STEP)
    name = manifest.read_manifest(folder).last.state.name
    theirs = manifest.read_manifest(other).last.state.name
    assert (folder / name).stat().st_size == (other / theirs).stat().st_size
    shutil.copy(other / theirs, folder / name)


def moved_away(site):
    site.folder.rename(site.path / "away")
    return lambda: (site.path / "away").rename(site.folder)


def replaced(site):
    site.folder.rename(site.path / "away")
    with begin(tape=site.folder, data=schedule(seed=3)) as traj:
        traj.seek(3)
    return lambda: (shutil.rmtree(site.folder), (site.path / "away").rename(site.folder))


def deleted_under_way(site):
    def away(traj):
        if traj.step == STEP + 4:
            shutil.copytree(site.folder, site.path / "copy")
            shutil.rmtree(site.folder)

    site.undo = lambda: shutil.copytree(site.path / "copy", site.folder)
    site.traj.seek(END, on_step=away)


def segments_lost(site):
    """Written by this very process, and known to be whole once."""
    site.traj.seek(END)
    held = {path: path.read_bytes() for path in site.folder.glob("tape-*")}
    for path in held:
        path.unlink()
    return lambda: [path.write_bytes(data) for path, data in held.items()]


def older_commit(site):
    """A copy of the folder from before, put back while the run is open."""
    shutil.copytree(site.folder, site.path / "before")
    site.traj.seek(STEP + 4)
    now = site.folder.with_name("now")
    site.folder.rename(now)
    (site.path / "before").rename(site.folder)
    return lambda: (shutil.rmtree(site.folder), now.rename(site.folder))


def held_by_another_process(site):
    """Another process has the folder open (its lock is all that matters)."""
    code = "import filelock, sys; a = filelock.FileLock(sys.argv[1]); a.acquire(); print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(site.folder / manifest.LOCK)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    try:
        site.load()
    finally:
        other.communicate("\n")


def of_another_class(folder):
    """A run of an optimizer whose class this process does not know."""
    shutil.rmtree(folder)
    kind = type("Homemade", (SGD,), {"__doc__": "Somebody's own."})
    model = network()
    with begin(model, kind(model.parameters(), momentum=0.9), tape=folder) as traj:
        traj.seek(3)
    del lo.optim.ReversibleOptimizer.registry["Homemade"]


def with_function(folder):
    shutil.rmtree(folder)
    with begin(tape=folder, lr=lambda step: 0.5) as traj:
        traj.seek(3)


def saved_in_the_earlier_format(site):
    """As loschmidt wrote runs until units could change."""
    save_file({"x": torch.zeros(1)}, site.path / "file", {"loschmidt": "1"})


def saved_in_a_newer_format(site):
    save_file({"x": torch.zeros(1)}, site.path / "file", {"loschmidt": "3"})


def edited(site):
    weight = site.model[0].weight
    held = weight.detach().clone()
    weight.data[0, 0] += 1e-3
    return lambda: weight.data.copy_(held)


def buffer_edited(site):
    buffer = site.model[1].running_mean
    held = buffer.clone()
    buffer.add_(1)
    return lambda: buffer.copy_(held)


def sample_edited(site):
    x = site.traj.data.dataset[0]
    held = x.clone()
    x[0] += 1
    return lambda: x.copy_(held)


def eval_mode(site):
    site.model.eval()
    return site.model.train


def another_world(site):
    """Another torch, in which a step gives other bits."""
    now = environment.record
    site.patch.setattr(environment, "record", lambda *of: now(*of) | {"torch": "9.9"})
    site.patch.setattr(site.traj, "loss_fn", lambda model, batch: 1.0000001 * loss(model, batch))


def other_batch(site):
    batches = site.traj.data.batch
    site.patch.setattr(site.traj.data, "batch", lambda step: batches(step + (step == STEP - 11)))


def restless():
    """A source of batches that never gives the same one twice."""
    calls = itertools.count()
    return lambda step: (torch.full((4, 4), float(next(calls))), torch.zeros(4, 1))


def disk_full_while_saving(site):
    site.traj.save(site.file())
    said = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def failing(*arguments):
        raise said

    site.patch.setattr("loschmidt.trajectory.store.save_file", failing)


def read_only(site):
    """Nothing can be written any more, nor taken away."""
    site.refuse_to_write(errno.EROFS, after=4)
    site.patch.setattr(Path, "unlink", denied)


def denied(*arguments, **how):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
