"""Bad inputs: each is refused with the error that fits, which says what was seen and what helps; nothing is lost.

One table, one runner. A row prepares a site, and then does the bad thing; what stood before must stand after: weights,
modes and random states, every byte of every file, and the run in memory. Then the hindrance is removed, and the run
goes on, and ends, forward and back, with the digests of one that was never disturbed.
"""

import errno
import math
import os
import re
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt import cli
from loschmidt.optim import ECD, SGD, Adam, AdamW
from loschmidt.trajectory import environment, manifest
from reference.bits import flip
from reference.sites import (
    END,
    OFTEN,
    SETTINGS,
    STEP,
    Refused,
    Site,
    another_world,
    at,
    bad_later,
    begin,
    both,
    buffer_edited,
    cut,
    dataset,
    deleted_under_way,
    denied,
    digests,
    disk_full_while_saving,
    edited,
    eval_mode,
    first,
    flipped,
    forged,
    goes_on,
    held_by_another_process,
    hollow,
    huge,
    in_folder,
    in_run,
    linked,
    load,
    loss,
    moved_away,
    network,
    nothing,
    of_another_class,
    older_commit,
    one,
    other_batch,
    read_only,
    replaced,
    restless,
    salvages,
    sample_edited,
    saved_in_a_newer_format,
    saved_in_the_earlier_format,
    schedule,
    seek,
    segments_lost,
    starts,
    stays_above,
    swapped,
    with_function,
    with_loss,
)


def parameter(value):
    """An optimizer of a good parameter and a bad one."""
    return at(lambda site: SGD([*site.model.parameters(), nn.Parameter(value, requires_grad=False)], momentum=0.9))


def option(kind, **settings):
    return at(lambda site: site.settings(kind, **settings))


def given(**arguments):
    """A run begun with bad arguments."""
    return at(lambda site: site.start(**arguments))


def data(*arguments, **how):
    return at(lambda site: lo.data.Schedule(*arguments, **how))


def command(*arguments):
    return at(lambda site: site.command(*arguments))


X = torch.zeros(40, 4)
SET, LOST, FULL, CHANGED = lo.InvalidSetting, lo.DamagedFile, lo.NotWritten, lo.SourceChanged
EMPTY = "a new or empty folder"
# name: (what is done, (error, what was seen, remedy[, what is left afterwards]))
TABLE = {
    # folders for new runs
    "tape is a file": (at(lambda s: s.start(tape=s.path / "file"), Site.file), (SET, "tape='.*file' is a file", EMPTY)),
    "tape is below a file": (
        at(lambda s: s.start(tape=s.path / "file/run"), Site.file),
        (SET, "tape='.*run' is not a folder", EMPTY),
    ),
    "tape is not empty": (at(lambda s: s.start(tape=s.path), Site.file), (SET, "tape='.*not empty", EMPTY)),
    "tape holds a run": (
        in_folder(act=lambda s: s.start(tape=s.folder)),
        (SET, "tape='.*run': that folder holds a run", r"Trajectory\.load\(folder, .*another folder"),
    ),
    "tape is a number": (given(tape=3), (SET, "tape is a int", "pass a folder, or None")),
    "tape cannot be made": (
        at(lambda s: (s.patch.setattr(Path, "mkdir", denied), s.start(tape=s.path / "new"))),
        (FULL, "new cannot be written: it may not be written to .Permission", "another place", starts),
    ),
    "tape is read-only": (
        at(lambda s: (s.refuse_to_write(errno.EROFS, half=False), s.start(tape=s.path / "new"))),
        (FULL, "new cannot be written: .*Read-only file system", "another place, or change its perm", starts),
    ),
    "disk full at the start": (
        at(lambda s: (s.refuse_to_write(errno.ENOSPC), s.start(tape=s.path / "new"))),
        (FULL, "new cannot be written: the disk is full", "make room, and go on", starts),
    ),
    "disk full at the first manifest": (
        at(lambda s: (s.refuse_to_write(errno.ENOSPC, "manifest.json"), s.start(tape=s.path / "new"))),
        (FULL, "new cannot be written: the disk is full", "make room, and go on", starts),
    ),
    "disk broken at the start": (
        at(lambda s: (s.refuse_to_write(errno.EIO), s.start(tape=s.path / "new"))),
        (FULL, "new cannot be written: Input/output error", "choose another place", starts),
    ),
    # folders that are open, and what happens to them meanwhile
    "open in this process": (
        in_run(lambda s: load(s.folder)),
        (lo.InUse, "run is open in another process, or in another Trajectory of this one", r"close\(\) that one"),
    ),
    "open in another process": (in_folder(act=held_by_another_process), (lo.InUse, "run is open in", r"close\(\)")),
    "the lock is read-only": (
        in_folder(act=lambda s: (s.patch.setattr("filelock.FileLock.acquire", denied), s.load())),
        (FULL, "run cannot be opened: its file 'lock' may not be written", "copy the folder to where you may write"),
    ),
    "disk full under way": (
        in_run(seek(END), lambda s: s.refuse_to_write(errno.ENOSPC, after=4), moved=True),
        (FULL, "run cannot be written: the disk is full", "make room, and go on"),
    ),
    "disk full under way, at the manifest": (
        in_run(seek(END), lambda s: s.refuse_to_write(errno.ENOSPC, ".manifest", after=2), moved=True),
        (FULL, "run cannot be written: the disk is full", "make room, and go on"),
    ),
    "disk full on the way back": (
        in_run(seek(0), lambda s: s.refuse_to_write(errno.ENOSPC, after=4), moved=True),
        (FULL, "run cannot be written: the disk is full", "make room, and go on"),
    ),
    "read-only under way, to the last byte": (
        in_run(seek(END), read_only, moved=True),
        (FULL, "run cannot be written: .*Read-only file system", "change its permissions"),
    ),
    "a rename fails under way": (
        in_run(seek(END), lambda s: s.patch.setattr(Path, "replace", denied), moved=True),
        (FULL, "run cannot be written: .*Permission denied", "change its permissions"),
    ),
    "too little room for a long way": (
        in_run(seek(9_000), lambda s: s.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9_999))),
        (FULL, r"seek\(9000\) will write about .* MB to .*run, where 10 kB are free", "or seek to a nearer step"),
    ),
    "the folder is moved away": (
        in_run(seek(END), moved_away),
        (CHANGED, "run no longer holds this run: .*manifest.json is missing", r"put it back, or call save\(path\)"),
    ),
    "the folder is moved away, and back asked for": (
        in_run(seek(0), moved_away),
        (CHANGED, "no longer", "put it back"),
    ),
    "the folder is deleted under way": (
        in_run(deleted_under_way, moved=True),
        (CHANGED, "run no longer holds this run: .*manifest.json is missing", r"put it back, or call save\(path\)"),
    ),
    "the folder holds another run by now": (
        in_run(seek(END), replaced),
        (CHANGED, "run holds another run by now", r"call save\(path\) to keep the run elsewhere"),
    ),
    "the folder holds an older commit": (
        in_run(seek(END), older_commit),
        (CHANGED, "run holds another commit than this process left there", r"call save\(path\)"),
    ),
    "segments are lost while the run is open": (
        in_run(seek(0), segments_lost),
        (LOST, r"tape-\d+.safetensors is missing: steps below \d+ are lost", r"seek\(\d+\) or later"),
    ),
    # manifests
    **{
        f"manifest of {what}": (
            in_folder(forged(lambda body, number=number: body.update(format=number)), act),
            (LOST, f"{seen} has format {number}; this version reads 2", "the version of loschmidt that wrote it", nothing),
        )
        for what, number, act, seen in (
            ("a newer format", 3, Site.load, "manifest.json"),
            ("the earlier format", 1, Site.load, "manifest.json"),
            ("the earlier format, salvaged", 1, lambda s: s.load(salvage=True), "neither .*"),
        )
    },
    "manifest that is no JSON": (in_folder(both(b"hello")), (LOST, "manifest.json is not a", "another copy", nothing)),
    "manifest of other bytes": (in_folder(both(b"\xff\xfe")), (LOST, "manifest.json is not", "another copy", nothing)),
    "manifest that is empty": (
        in_folder(both(b"")),
        (LOST, "manifest.json is not a manifest", "another copy", nothing),
    ),
    "manifest that is a list": (in_folder(both(b"[]")), (LOST, "json .*it holds a list", "another copy", nothing)),
    "manifest without a digest": (in_folder(both(b"{}")), (LOST, "json .*no 'digest'", "another copy", nothing)),
    "manifest of many brackets": (in_folder(both(b"[" * 100_000)), (LOST, "json is not", "another copy", nothing)),
    "manifest that is huge": (
        in_folder(huge, lambda s: (s.patch.setattr(Path, "read_bytes", None), s.load())),
        (LOST, "manifest.json has 1,099,511,627,776 bytes, and should have at most", "another copy", nothing),
    ),
    "manifest that names a file above": (
        in_folder(forged(lambda body: body["commits"][-1]["state"].update(name="../x"))),
        (LOST, r"manifest.json holds commits\.1\.state\.name = '\.\./x'", "another copy", nothing),
    ),
    "manifest that names a file elsewhere": (
        in_folder(first("tape", name="/etc/hostname")),
        (LOST, r"manifest.json holds tape\.0\.name = '/etc/hostname'", "another copy", nothing),
    ),
    "manifest with a line break in a name": (
        in_folder(first("tape", name="tape-00000001.safetensors\n")),
        (LOST, r"manifest.json holds tape\.0\.name = ", "another copy", nothing),
    ),
    "manifest without commits": (
        in_folder(forged(lambda body: body.update(commits=[]))),
        (LOST, r"manifest.json holds commits = \[\]", "another copy", nothing),
    ),
    "manifest with a gap": (
        in_folder(forged(lambda body: body["journal"][1]["start"].__setitem__(0, 9))),
        (LOST, "manifest.json names journal-.* which does not continue the segment before", "another copy", nothing),
    ),
    "manifest damaged, its copy whole": (
        in_folder(lambda folder: (folder / manifest.MANIFEST).write_bytes(b"{")),
        (LOST, "manifest.json is not a manifest", "open it with salvage=True: manifest.copy.json has", salvages),
    ),
    "manifest missing, its copy whole": (
        in_folder(lambda folder: (folder / manifest.MANIFEST).unlink()),
        (LOST, "manifest.json is missing", "open it with salvage=True: manifest.copy.json has", salvages),
    ),
    # the other files of a run
    "a segment of the tape cut short": (
        in_folder(one("tape", cut)),
        (LOST, r"run: tape-\d+.safetensors is [\d,]+ bytes, should be .*go on from step 30", "salvage=True", nothing),
    ),
    "a segment of the journal cut short": (
        in_folder(one("journal", cut)),
        (LOST, r"run: journal-\d+.safetensors is .*steps below \d+ lost", "another copy.*salvage=True", nothing),
    ),
    "a state is missing": (
        in_folder(one("state", Path.unlink)),
        (LOST, r"state-\d+.safetensors is missing: the commit of step 30 lost", "salvage=True", nothing),
    ),
    "a state is a folder": (in_folder(one("state", hollow)), (LOST, "not a regular file", "salvage=True", nothing)),
    "a state is a link": (in_folder(one("state", linked)), (LOST, "not a regular file", "salvage=True", nothing)),
    "the state of another run": (
        in_folder(swapped),
        (LOST, r"state-\d+.safetensors is not what was written .*digest", "salvage=True", nothing),
    ),
    "a segment is a link": (
        in_run(seek(0), harm=one("tape", linked)),
        (LOST, r"tape-\d+.safetensors is not a regular file: steps below \d+", r"seek\(\d+\) or later", stays_above),
    ),
    "a bit of a segment flipped": (
        in_run(seek(0), harm=one("tape", flipped)),
        (LOST, r"tape-\d+.safetensors is not what was written", r"seek\(\d+\) or later, or use", stays_above),
    ),
    # loading with something else
    "another architecture": (
        in_folder(act=lambda s: load(s.folder, network(width=9))),
        (SET, r"model is not that of .*parameter 0\.weight: .*\(8, 4\) there, .*\(9, 4\) here", "as for the run"),
    ),
    "another dtype": (
        in_folder(act=lambda s: load(s.folder, network(torch.float64))),
        (SET, r"0\.weight: torch\.float32 .* there, torch\.float64", "build the model as for the run"),
    ),
    "a layer less": (in_folder(act=lambda s: load(s.folder, network()[:3])), (SET, "none here", "as for the run")),
    "no model": (
        in_folder(act=lambda s: lo.Trajectory.load(s.folder, model=None, loss=loss, data=schedule())),
        (SET, "model is a NoneType", "torch.nn.Module"),
    ),
    "other samples": (
        in_folder(act=lambda s: s.load(data=lo.data.Schedule((X, X[:, :1]), batch_size=16, seed=2))),
        (CHANGED, "data changed since this run began: .*sample 0", "bring back the data it began with"),
    ),
    "another batch size": (
        in_folder(act=lambda s: s.load(data=schedule(batch_size=8))),
        (CHANGED, "batch_size was 16 and is now 8", "bring back the data"),
    ),
    "a function in place of a schedule": (
        in_folder(act=lambda s: s.load(data=lambda step: dataset())),
        (CHANGED, "began with a Schedule; data is now a function", "pass the same Schedule"),
    ),
    "no loss": (
        in_folder(act=lambda s: s.load(loss=None)),
        (SET, "loss is a NoneType", r"function loss\(model, batch"),
    ),
    "without the lr it had": (
        in_folder(with_function),
        (CHANGED, "this run has .*function lr", "pass lr= as at the start", nothing),
    ),
    "with an lr it had not": (
        in_folder(act=lambda s: s.load(lr=lambda step: 1.0)),
        (CHANGED, "no function lr", "leave lr="),
    ),
    "an unknown optimizer": (
        in_folder(of_another_class),
        (SET, "made with optimizer Homemade", "import the module that defines it", nothing),
    ),
    "no path": (
        at(lambda s: lo.Trajectory.load(None, model=s.model, loss=loss, data=schedule())),
        (SET, "path=None", "path of a"),
    ),
    "a path to nothing": (
        at(lambda s: s.load(s.path / "nowhere")),
        (LOST, "no saved run at .*nowhere", "given to save.*given as tape="),
    ),
    "a folder without a run": (
        at(lambda s: s.load(s.path)),
        (LOST, "no saved run", "the folder that was given as tape="),
    ),
    "a file in the folder of a run": (
        in_folder(act=lambda s: s.load(s.folder / manifest.MANIFEST)),
        (SET, "manifest.json is a file of the run in .*run", "give the folder"),
    ),
    "a file that is no run": (
        at(lambda s: s.load(s.path / "file"), Site.file),
        (LOST, "file cannot be read", "another copy"),
    ),
    "a saved run of a newer format": (
        at(lambda s: s.load(s.path / "file"), saved_in_a_newer_format),
        (LOST, "file has format 3; this version reads 2", "the version of loschmidt that wrote it"),
    ),
    "a saved run of the earlier format": (
        at(lambda s: s.load(s.path / "file"), saved_in_the_earlier_format),
        (LOST, "file has format 1; this version reads 2", "the version of loschmidt that wrote it"),
    ),
    # saving
    "save below a file": (
        in_run(lambda s: s.traj.save(s.path / "file/run"), lambda s: s.file() and None),
        (FULL, "run cannot be written: a file is where a folder should be", "another place, or move that file"),
    ),
    "save to no path": (in_run(lambda s: s.traj.save(None)), (SET, "path=None", "path of a file or of a folder")),
    "disk full while saving": (
        in_run(lambda s: s.traj.save(s.path / "file"), disk_full_while_saving),
        (FULL, "file cannot be written: the disk is full", "make room, and go on: what was written before is whole"),
    ),
    "a setting that no file can hold": (
        in_run(
            lambda s: s.traj.save(s.path / "new"),
            lambda s: s.patch.setitem(s.traj.optimizer.param_groups[0], "tag", {1}),
        ),
        (SET, r"setting tag=\{1\} is a set", "make tag a number, a text or a list"),
    ),
    # going somewhere
    "seek below 0": (in_run(seek(-1)), (lo.OutOfReach, r"seek\(-1\) is below 0", "seek to step 0 or later")),
    "seek to a fraction": (in_run(seek(2.5)), (SET, r"seek\(2\.5\): a step is a whole number", "pass an int")),
    "seek to a text": (in_run(seek("3")), (SET, r"seek\('3'\): a step is a whole number", "pass an int")),
    "seek to a truth": (in_run(seek(True)), (SET, r"seek\(True\)", "pass an int")),
    "progress is a text": (
        in_run(lambda s: s.traj.seek(END, progress="yes")),
        (SET, "progress='yes'", "True, False, or"),
    ),
    "on_step is a number": (in_run(lambda s: s.traj.seek(END, on_step=3)), (SET, "on_step=3", "pass a function")),
    "metrics is a path": (
        in_run(lambda s: s.traj.seek(END, metrics="a.jsonl")),
        (SET, "metrics='a.jsonl'", r"JSONL\("),
    ),
    "digest_every is 0": (given(digest_every=0), (SET, "digest_every=0", "100, or None")),
    "digest_every is a truth": (given(digest_every=True), (SET, "digest_every=True", "100, or None")),
    "commit_every is 0": (given(commit_every=0), (SET, "commit_every=0", "100, or None")),
    "commit_seconds below 0": (given(commit_seconds=-1), (SET, "commit_seconds=-1", "10, or None")),
    "commit_seconds is NaN": (given(commit_seconds=math.nan), (SET, "commit_seconds=nan", "10, or None")),
    "seed is a text": (given(seed="lucky"), (SET, "seed='lucky' is not a whole number", "pass an int as seed")),
    "lr is a number": (
        given(lr=1e-3),
        (SET, "lr=0.001 cannot be called", "function step -> factor.*setting of the opt"),
    ),
    "lr gives NaN": (
        in_run(seek(END), lambda s: s.patch.setattr(s.traj, "lr", lambda step: math.nan)),
        (SET, r"lr\(30\) gave nan", "return a finite number of at least 0"),
    ),
    "lr gives nothing": (
        in_run(seek(END), lambda s: s.patch.setattr(s.traj, "lr", lambda step: None)),
        (SET, r"lr\(30\) gave None", "return a finite number of at least 0"),
    ),
    "after_backward is a number": (
        given(after_backward=1.0),
        (SET, "after_backward=1.0 cannot be called", "of the model"),
    ),
    # models, losses, gradients
    "model is none": (
        at(lambda s: lo.Trajectory(3, s.settings(SGD, momentum=0.9), loss, schedule())),
        (SET, "model is a int", "Module"),
    ),
    "torch's optimizer": (
        at(lambda s: s.start(opt=torch.optim.SGD(s.model.parameters(), lr=0.1))),
        (SET, "opt is a torch.optim.* which cannot be wound back", r"use one of lo\.optim\.SGD"),
    ),
    "the optimizer of another model": (
        at(lambda s: s.start(opt=SGD(network().parameters(), momentum=0.9))),
        (SET, r"opt holds .* of shape \(8, 4\), which is no parameter of model", "from this model's parameters"),
    ),
    "loss is a number": (given(loss=0.5), (SET, "loss is a float, and cannot be called", r"loss\(model, batch\)")),
    "loss is NaN": (bad_later(lambda m, b: loss(m, b) * math.nan), (lo.NonFinite, "loss is nan at step 3", "lower lr")),
    "a gradient is infinite": (
        bad_later(lambda m, b: loss(m, b) + (m[0].weight.sum() * 0).sqrt()),
        (lo.NonFinite, r"the gradient of 0\.weight holds NaN or infinity at step 3\d", "clip the gradient"),
    ),
    "loss is no scalar": (
        with_loss(lambda value, m, b, n: (m(b[0]) - b[1]).square()),
        (SET, r"loss\(model, batch\) gave torch.float32 of shape \(16, 1\) at step 30", "one real number.*the mean"),
    ),
    "loss is a Python number": (
        with_loss(lambda value, *_: value.item()),
        (SET, "gave a float at step 30", "as a tensor"),
    ),
    "loss is complex": (with_loss(lambda value, *_: value * 1j), (SET, "gave torch.complex64", "one real number")),
    "loss is detached": (
        with_loss(lambda value, *_: value.detach()),
        (SET, "step 30 does not depend", r"without detach\(\)"),
    ),
    "loss is another at every call": (
        with_loss(lambda value, m, b, n: value * (1 + 1e-3 * n)),
        (lo.Nondeterministic, "the loss differs .* between two evaluations of step 30", "use_deterministic_algorithms"),
    ),
    "loss is another on the way back": (
        with_loss(lambda value, *_: 1.001 * value, step=0),
        (lo.ReplayMismatch, "undoing step 29: the gradient or the loss differs", "repeat step 29 as it was"),
    ),
    "weights are edited": (
        in_run(seek(END), edited),
        (lo.EditedOutside, "0.weight was edited outside the optimizer: 1 of 32 values", r"with trajectory.edit\(\):"),
    ),
    "weights are edited, and saved": (
        in_run(lambda s: s.traj.save(s.path / "new"), edited),
        (lo.EditedOutside, "0.weight was edited outside the optimizer: 1 of 32 values", r"with trajectory.edit\(\):"),
    ),
    "a buffer is edited": (
        in_run(seek(0), buffer_edited),
        (lo.EditedOutside, "buffer 1.running_mean was edited", r"with trajectory.evaluating\(\)"),
    ),
    "the model is in eval mode": (
        in_run(seek(END), eval_mode),
        (lo.EditedOutside, "the model was put in eval mode", r"with trajectory.evaluating\(\)"),
    ),
    "another environment, other bits": (
        in_run(seek(END), another_world),
        (CHANGED, "gives the last step other bits: torch was '2.* is '9.9'", "go back to the recorded environment"),
    ),
    # data
    "data is no function": (
        given(data=dataset()),
        (SET, "data is a tuple, and cannot be called", r"lo\.data\.Schedule\("),
    ),
    "data answers differently": (
        at(lambda s: s.start(data=restless()).seek(3)),
        (CHANGED, "gave two different batches for step 0", r"function of the step alone, .*Schedule"),
    ),
    "another batch on the way back": (
        in_run(seek(0), other_batch, moved=True),
        (CHANGED, "the batch of step 1?9 is not the one that this step was taken with", "bring the dataset"),
    ),
    "a sample is edited": (
        in_run(seek(END), sample_edited),
        (CHANGED, "data changed .*sample 0", "bring back the data"),
    ),
    "no samples": (data(X[:0]), (SET, "dataset: it has no samples", "give at least one")),
    "an empty list": (data([]), (SET, "dataset: it has no samples", "give at least one")),
    "unequal lengths": (data((X, X[:3])), (SET, r"dataset: .*not equally long: \{0: 40, 1: 3\}", "first dimension")),
    "a stream": (data(iter([X])), (SET, "dataset: a list_iterator has no length", "list.dataset. where it fits")),
    "arrays as columns": (data((X.numpy(), X.numpy())), (SET, r"dataset: a tuple of \['ndarray'\]", "torch.as_tensor")),
    "samples of two shapes": (
        at(lambda s: lo.data.Schedule([(X[0], 1), (X[0, :2], 1)], 2).batch(0)),
        (
            SET,
            r"dataset: its samples do not fit into one batch: .*\['float32\[\d\]', 'int'\] and ",
            "pad them, or crop",
        ),
    ),
    "without an id too large": (
        data(X, 8, without=[40]),
        (SET, "without: ids from 40 to 40, but .* 0 to 39", "from 0 to 39"),
    ),
    "without an id below 0": (data(X, 8, without=[-1]), (SET, "without: ids from -1", "give ids from 0 to 39")),
    "without a number": (data(X, 8, without=5), (SET, "without: 5 is not a list of ids", r"for example \[17\]")),
    "without a mask": (
        data(X, 8, without=X[:, 0] > 0),
        (SET, r"without: torch.bool of shape \(40,\) is a mask", "nonzero"),
    ),
    "batch_size 0": (data(X, 0), (SET, "batch_size: 0", "1 or more, or None")),
    "batch_size is a fraction": (data(X, 2.5), (SET, "batch_size: 2.5 is not a whole number", "an int for batch_size")),
    "replacement of all": (
        data(X, replacement=True),
        (SET, "replacement: True with batch_size=None", "give a batch_size"),
    ),
    "augment is a number": (data(X, 8, augment=3), (SET, "augment: 3 cannot be called", r"augment\(sample, rng\)")),
    "a batch between two steps": (at(lambda s: schedule().batch(2.5)), (SET, "step: 2.5", "an int for step")),
    # optimizers
    "an unknown setting": (
        option(SGD, lr=0.1, momentum=0.9, wobble=3),
        (SET, "SGD has no setting 'wobble'", "it has: lr, momentum"),
    ),
    "Nesterov": (option(SGD, nesterov=True), (SET, "nesterov=True is refused", "leave nesterov out")),
    "momentum of 0": (option(SGD, momentum=0), (SET, "momentum=0: without momentum", "for example 0.9")),
    "no momentum": (option(SGD, lr=0.1), (SET, "given no momentum, and torch's default of 0", "write momentum=0.9")),
    "b1 = 0": (option(Adam, betas=(0, 0.9)), (SET, r"betas=\(0, 0.9\)", "0.9")),
    "a resolution that is no power of two": (option(AdamW, resolution=0.3), (SET, "resolution=0.3", r"2\*\*-40")),
    "amsgrad": (option(AdamW, amsgrad=True), (SET, "amsgrad=True is refused", "leave amsgrad out")),
    "lr below 0": (option(ECD, lr=-1.0), (SET, "lr=-1.0", "set lr")),
    "a sparse parameter": (parameter(torch.eye(3).to_sparse()), (SET, "parameter 6 of group 0 is sparse", "dense")),
    "a complex parameter": (parameter(torch.ones(3, dtype=torch.cfloat)), (SET, "is complex", "view_as_real")),
    "a float16 parameter": (
        parameter(torch.ones(3).half()),
        (SET, "dtype torch.float16", "float32, float64 or bfloat16"),
    ),
    "a parameter that is NaN": (
        parameter(torch.tensor([math.nan])),
        (lo.NonFinite, "parameter 6 .* holds NaN", "finite"),
    ),
    # the command line: exit code 2, no traceback
    "echo: unknown task": (command("echo", "--task", "chess"), (Refused, "no task 'chess'", "modular-addition")),
    "echo: unknown optimizer": (
        command("echo", "--optimizer", "Lion"),
        (Refused, "no optimizer 'Lion'", "ECD, SGD, AdamW, Adam, BBI, ECDq1"),
    ),
    "echo: no steps": (command("echo", "--steps", "0"), (Refused, "steps=0", "positive number")),
    "echo: out is a file": (
        at(lambda s: s.command("echo", "--steps", "2", "--out", s.path / "file"), Site.file),
        (Refused, "--out .*file is a file", "give a folder"),
    ),
    "echo: out is below a file": (
        at(lambda s: s.command("echo", "--steps", "2", "--out", s.path / "file/out"), Site.file),
        (Refused, "file/out/echo.json cannot be written: a file is where a folder should be", "choose another place"),
    ),
    "echo: JSON is a folder": (
        at(lambda s: s.command("echo", "--steps", "2", "--out", s.path / "out", "--json", s.path)),
        (Refused, "cannot be written: it is a folder", "give the path of a file"),
    ),
    "runs: show nothing": (
        at(lambda s: s.command("runs", "show", s.path)),
        (Refused, "no run in", "loschmidt runs list"),
    ),
    "runs: show a file": (
        at(lambda s: s.command("runs", "show", s.path / "file"), Site.file),
        (Refused, "file is not a folder", "the folder that was given as tape="),
    ),
    "runs: show a damaged manifest": (
        in_folder(both(b""), lambda s: s.command("runs", "show", s.folder)),
        (Refused, "manifest.json is not a manifest", "another copy", nothing),
    ),
    "runs: list nowhere": (
        at(lambda s: s.command("runs", "list", s.path / "no")),
        (Refused, "there is no folder .*no", "tape="),
    ),
    "runs: prune what is open": (
        in_run(lambda s: s.command("runs", "prune", s.folder)),
        (Refused, "run is open in another", r"close\(\)"),
    ),
    "runs: prune beyond the run": (
        in_folder(act=lambda s: s.command("runs", "prune", s.folder, "--before", 31)),
        (Refused, "before=31: the run is at step 30", "give a step from 0 to 30"),
    ),
    "runs: prune below 0": (
        in_folder(act=lambda s: s.command("runs", "prune", s.folder, "--before", -1)),
        (Refused, "before=-1", "give a step from 0 to 30"),
    ),
    "runs: prune, and JSON nowhere": (
        in_folder(act=lambda s: s.command("runs", "prune", s.folder, "--before", 9, "--json", s.folder / "lock/x")),
        (Refused, "x cannot be written: a file is where a folder should be", "choose another place"),
    ),
    "runs: verify, and JSON on a folder": (
        in_folder(act=lambda s: s.command("runs", "verify", s.folder, "--json", s.folder)),
        (Refused, "run cannot be written: it is a folder", "give the path of a file"),
    ),
}


def error_is_good(error, kind, seen, remedy):
    """Of this very class, in one line without Python's own words; says what was seen, and one thing that helps."""
    assert type(error) is kind
    assert re.search(seen, error.seen) and re.search(remedy, error.remedy)
    assert error.remedy.endswith((".", ")")) and len(str(error)) < 600
    assert not re.search(r"\n|<class|object at 0x|Traceback", str(error))


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "run"
    with begin(tape=folder, **OFTEN) as traj:
        traj.seek(STEP)
    assert len(list(folder.glob("tape-*"))) >= 1 and len(list(folder.glob("journal-*"))) >= 2
    return folder


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_input_is_refused_with_a_remedy_and_takes_nothing_away(name, tmp_path, template, monkeypatch, capsys):
    do, (error, seen, remedy, *after) = TABLE[name]
    digests()
    site = Site(tmp_path, template, monkeypatch, capsys)
    doing = do(site)
    next(doing)
    before = site.stands()
    with pytest.raises(error) as caught:
        next(doing)
    site.error = caught.value
    error_is_good(caught.value, error, seen, remedy)
    monkeypatch.undo()
    assert site.stands() == before
    site.undo()
    (after[0] if after else goes_on)(site)


# -- what no row of the table can say ------------------------------------------------------------------


def test_the_runner_notices_what_was_taken_away(template, tmp_path, monkeypatch, capsys):
    """Its twin: a bit of a weight, of a file, of a random state, a step."""
    assert len(TABLE) >= 100
    site = Site(tmp_path, template, monkeypatch, capsys)
    next(in_run(seek(END))(site))
    for harm in (
        lambda: flip(site.model[0].weight.data.view(torch.int32)),
        lambda: site.model.eval(),
        lambda: (site.folder / "new").write_bytes(b"left over"),
        lambda: (site.folder / manifest.MANIFEST).write_bytes(b""),
        lambda: torch.rand(1),
        lambda: flip(site.traj.optimizer._slots[0].integers("m")),
        lambda: site.traj.tape.lattices[0].e.__setitem__(0, -3),
        lambda: site.traj.tape.stacks[0].take(1),
    ):
        before = site.stands()
        harm()
        assert site.stands() != before


@pytest.mark.parametrize("friction", ["little", "much"])
def test_a_run_whose_folder_is_gone_for_good_goes_on_in_memory(friction, tmp_path):
    """With little friction all of the way back is in memory; much puts words of the tape in the folder, to be lost."""
    settings = SETTINGS | ({} if friction == "much" else {"betas": (0.9, 0.999)})
    model, other = network(), network()
    traj = begin(model, AdamW(model.parameters(), **settings), tape=tmp_path / "run", **OFTEN).seek(STEP)
    twin = begin(other, AdamW(other.parameters(), **settings), digest_every=10).seek(STEP)
    shutil.rmtree(tmp_path / "run")
    if friction == "much":
        with pytest.raises(lo.DamagedFile, match=r"way back lies in the run's folder.*state_dict\(\)"):
            traj.save(tmp_path / "elsewhere")
        assert not (tmp_path / "elsewhere").exists()
    else:
        traj.save(tmp_path / "elsewhere")
        again = load(tmp_path / "elsewhere")
        assert again.digest() == twin.digest() and again.seek(0).digest() == begin().digest()
    traj.folder.moved = True
    with pytest.raises(lo.SourceChanged, match=r"call save\(path\)"):
        traj.close()
    assert traj.folder is None
    assert traj.seek(END).optimizer.tensor_digests() == twin.seek(END).optimizer.tensor_digests()
    assert traj.seek(STEP).optimizer.tensor_digests() == twin.seek(STEP).optimizer.tensor_digests()


def test_a_file_that_vanishes_under_way_stops_the_run_between_two_steps(template, tmp_path):
    shutil.copytree(template, tmp_path / "run")
    traj = load(tmp_path / "run")
    tape = sorted((tmp_path / "run").glob("tape-*"))[-1]
    held = tape.read_bytes()
    border = next(s.steps[1] for s in traj.folder.manifest.tape if s.name == tape.name)
    assert 0 < border < STEP
    with pytest.raises(lo.DamagedFile, match="is missing"):
        traj.seek(0, on_step=lambda traj: traj.step == border + 1 and tape.unlink())
    assert traj.step == border
    tape.write_bytes(held)
    assert traj.digest() == digests()[border] and traj.seek(0).digest() == digests()[0]
    traj.close()


def test_a_first_commit_that_was_killed_does_not_spoil_the_folder(tmp_path):
    for name in (manifest.LOCK, *manifest.TEMPORARY, "state-00000001.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    with begin(tape=tmp_path) as traj:
        traj.seek(5)
    with load(tmp_path) as traj:
        assert traj.digest() == digests()[5]


def test_a_clock_that_goes_backwards_disturbs_nobody(template, tmp_path, monkeypatch, capsys):
    shutil.copytree(template, tmp_path / "run")
    late = [datetime(2001, 1, 1, tzinfo=UTC) - timedelta(days=i) for i in range(200)]
    monkeypatch.setattr("loschmidt.trajectory.commit.datetime", SimpleNamespace(now=lambda zone: late.pop(0)))
    monkeypatch.setattr(time, "time", lambda: float(len(late)))
    with lo.live.JSONL(tmp_path / "log.jsonl") as log, load(tmp_path / "run") as traj:
        assert traj.seek(END, metrics=log).digest() == digests()[END]
        assert traj.seek(STEP - 5, metrics=log).digest() == digests()[STEP - 5]
    assert len(lo.live.read(tmp_path / "log.jsonl")) == 2 * (END - STEP) + 5
    for command, folder in (("show", "run"), ("list", "."), ("verify", "run")):
        with pytest.raises(SystemExit) as end:
            cli.main(["runs", command, str(tmp_path / folder)])
        assert end.value.code == 0
    assert "2000-" in capsys.readouterr().out
    with load(tmp_path / "run") as traj:
        assert traj.step == STEP - 5 and traj.seek(0).digest() == digests()[0]


def test_an_environment_with_the_same_bits_is_warned_of_once(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path / "run")
    now = environment.record
    monkeypatch.setattr(environment, "record", lambda *of: now(*of) | {"torch": "9.9"})
    with pytest.warns(lo.errors.EnvironmentChanged, match="torch was '2.*Remedy: call preflight") as said:
        traj = load(tmp_path / "run")
        traj.seek(END)
    assert len(said) == 1 and traj.seek(0).digest() == digests()[0]
    traj.close()
