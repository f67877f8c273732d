"""Runs in folders: the same bits after any end, damage noticed before it is used, and nothing destroyed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import loschmidt as lo
from loschmidt import cli, files
from loschmidt.trajectory import chain, manifest
from reference.flips import flips, load, make_run, state_of
from reference.kills import parts
from reference.networks import Network, clip, dataset, loss, run, warm_up


def reopen(folder, **how):
    """The run of `reference.networks`, rebuilt from its folder."""
    given = {"model": Network(seed=5), "loss": loss, "data": lo.data.Schedule(dataset(), batch_size=7, seed=1)}
    return lo.Trajectory.load(folder, **{**given, "lr": warm_up, "after_backward": clip, **how})


def digests(name, *steps):
    traj = run(name)
    return {step: traj.seek(step).digest() for step in steps}


def flip_byte(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# -- commits and resuming ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamW-int32", "ECD-rescaled", "ECD-decoupled"])
def test_a_run_goes_on_from_its_folder_on_either_leg_with_the_same_bits(name, tmp_path):
    good = digests(name, 0, 40, 70, 120)
    traj = run(name, tape=tmp_path, commit_every=25)
    for step in (120, 40, 70, 0):
        assert traj.seek(step).digest() == good[step]
        traj.close()
        traj = reopen(tmp_path)
        assert traj.step == step and traj.digest() == good[step]
    assert traj.tape.bits == traj.journal.bytes == 0
    traj.close()


CHANGES = {
    "a learning rate": lambda traj: traj.optimizer.param_groups[0].update(lr=0.02),
    "a group": lambda traj: traj.optimizer.add_param_group({"params": [traj.model.outside.weight]}),
    "a frozen parameter": lambda traj: traj.model.gru.weight_hh_l0.requires_grad_(False),
    "a state that was loaded": lambda traj: traj.optimizer.load_state_dict(traj.kept),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_without_a_step_is_committed_too(what, tmp_path):
    """Settings, groups, flags, a loaded state: before `close`, before a branch, and by hand."""
    traj = run("AdamW", tape=tmp_path / "run", lr=None)
    traj.seek(10)
    traj.kept = traj.optimizer.state_dict()
    traj.seek(14)
    CHANGES[what](traj)
    with traj.branch():
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
    traj.close()
    number, groups = manifest.read_manifest(tmp_path / "run").last.number, traj.optimizer.param_groups
    settings, sizes = groups[0]["lr"], [len(group["params"]) for group in groups]
    step, before, after = traj.step, traj.digest(), traj.seek(20).digest()
    for folder in ("run", "killed"):
        with reopen(tmp_path / folder, lr=None) as again:
            assert again.step == step and again.digest() == before
            again.commit()
            assert again.folder.manifest.last.number == number, "nothing had changed, and yet it was committed"
            groups = again.optimizer.param_groups
            assert groups[0]["lr"] == settings and [len(group["params"]) for group in groups] == sizes
            assert again.seek(20).digest() == after


def test_a_run_that_moves_to_another_folder_takes_its_tape_along(tmp_path):
    with run("SGD", tape=tmp_path / "a") as traj:
        start, before = traj.digest(), traj.seek(130).digest()
    again = lo.Trajectory(
        traj.model, traj.optimizer, loss, traj.data, lr=warm_up, after_backward=clip, tape=tmp_path / "b"
    )
    again.close()
    with reopen(tmp_path / "b") as moved:
        assert moved.digest() == before and moved.tape.lanes[0].words > 0 and len(moved.journal.checks) == 130
        moved.first = 0  # the second Trajectory began at 130
        assert moved.seek(0).digest() == start


def test_a_flipped_bit_of_the_state_does_not_resume_alike(tmp_path):
    good = digests("AdamW", 60)
    with run("AdamW", tape=tmp_path) as traj:
        traj.seek(60)
    traj = reopen(tmp_path)
    traj.optimizer.state[traj.model.out.bias]["m"].view(-1)[0] ^= 1
    assert traj.digest() != good[60]
    traj.folder.close()


def test_commits_come_by_steps_by_seconds_and_at_the_end(tmp_path, monkeypatch):
    made = []
    commit = lo.Trajectory.__init__.__globals__["Folder"].commit
    monkeypatch.setattr(
        "loschmidt.trajectory.folder.Folder.commit",
        lambda self, t, **how: (made.append(t.step), commit(self, t, **how)),
    )
    with run("SGD", tape=tmp_path / "a", commit_every=10, commit_seconds=None) as traj:
        traj.seek(25), traj.seek(5), traj.seek(5)
    assert made == [0, 10, 20, 25, 15, 5]
    made.clear()
    with run("SGD", tape=tmp_path / "b", commit_seconds=0) as traj:
        traj.folder._took = 0.0
        traj.seek(3)
    assert made[0] == 0 and made[-1] == 3 and len(made) >= 2
    made.clear()
    with run("SGD", tape=tmp_path / "c", commit_seconds=None) as traj:
        traj.seek(30)
        with traj.edit() as model:
            model.out.bias.data += 1.0
    assert made == [0, 30, 30]


def test_a_branch_is_never_committed(tmp_path):
    with run("SGD", tape=tmp_path, commit_every=5) as traj:
        traj.seek(30)
        before, there = traj.digest(), sorted(p.name for p in tmp_path.iterdir())
        with traj.branch():
            traj.seek(3)
            with traj.edit() as model:
                model.out.bias.data += 1.0
            traj.seek(50)
            assert sorted(p.name for p in tmp_path.iterdir()) == there
            shutil.copytree(tmp_path, tmp_path / "killed" / "inside")
        assert traj.digest() == before and traj.folder is not None
        traj.seek(40)
    killed = reopen(tmp_path / "killed" / "inside")
    assert killed.step == 30 and killed.digest() == before
    killed.close()


def test_the_tape_lies_on_disk_at_its_bits_and_segments_stay_few(tmp_path):
    task = lo.tasks.modular_addition()
    opt = lo.optim.SGD(task.model.parameters(), lr=0.03, momentum=0.9)
    with lo.Trajectory(
        task.model, opt, task.loss, lo.data.Schedule(task.train), tape=tmp_path, commit_every=20
    ) as traj:
        traj.seek(700)
        segments = traj.folder.manifest.tape
        heads = 8.5 * sum(
            lanes.heads.numel() for lanes in traj.tape
        )  # a head may hold that many bits less than at first
        on_disk = sum((tmp_path / s.name).stat().st_size for s in segments)
        assert 8 * on_disk <= 1.002 * (traj.tape.bits + heads)
        assert len(segments) <= 7 and sum(map(len, (x.stack for x in traj.tape))) * 2 <= on_disk
        assert not any(hasattr(words, "nbytes") for words in traj.tape.lanes[0].stack.chunks), "still in memory"
        named = {f.name for f in traj.folder.manifest.files()}
    kept = {p.name for p in tmp_path.iterdir()} - {manifest.MANIFEST, manifest.COPY, manifest.LOCK}
    assert kept == named


def test_segments_are_taken_in_as_a_counter_carries():
    def segment(i, size):
        return manifest.Segment(
            name=f"tape-{i:08d}.safetensors", bytes=size, digest="0" * 64, start=(i,), stop=(i + 1,), steps=(i, i + 1)
        )

    held = [segment(0, 40_000), segment(1, 20_000), segment(2, 10_000)]
    assert chain.absorbing(held, 3, 10_000) == 0 and chain.absorbing(held, 3, 5_000) == 3
    assert chain.absorbing([segment(0, chain.LARGEST)], 1, chain.LARGEST) == 1
    assert [chain.kept_below(held, (x,)) for x in (0, 1, 2, 3, 9)] == [0, 1, 2, 3, 3]
    assert chain.needed(held, [(1,), (2,)]) == tuple(held[:2])


# -- ends ----------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone."""


def test_a_crash_between_any_two_writes_leaves_a_committed_step(tmp_path, monkeypatch):
    """Each system call of the commits in turn is the last one; a write then ends half way."""
    good = {}
    model, opt, loss, data = parts("SGD")
    lo.Trajectory(model, opt, loss, data, digest_every=20).seek(20, on_step=lambda t: good.update({t.step: t.digest()}))
    left = 0

    def counted(real, half=None):
        def call(*args, **how):
            nonlocal left
            left -= 1
            if left == 0:
                if half:
                    half(*args)
                raise Crash
            return real(*args, **how)

        return call

    half = lambda path, data: path.write_bytes(data[: len(data) // 2])  # noqa: E731
    with monkeypatch.context() as m:
        m.setattr(files, "write_new", counted(files.write_new, half))
        m.setattr(files, "sync_folder", counted(files.sync_folder))
        m.setattr(Path, "replace", counted(Path.replace))
        m.setattr(Path, "unlink", counted(Path.unlink))
        crashes = 0
        while True:
            folder = tmp_path / f"{crashes}"
            model, opt, loss, data = parts("SGD")
            left = 10**9
            traj = lo.Trajectory(model, opt, loss, data, tape=folder, commit_every=8, digest_every=20)
            good[0] = traj.digest()
            left = crashes + 1
            try:
                traj.seek(16), traj.seek(9)
                break
            except Crash:
                crashes += 1
            left = 10**9
            traj.folder.close()
            with load(folder, "SGD") as found:
                assert found.step in (0, 8, 9, 16) and found.digest() == good[found.step]
                assert found.seek(20).digest() == good[20] and found.seek(0).digest() == good[0]
                found.folder.tidy()
                left_over = manifest.strays(folder, found.folder.manifest)
                assert left_over == []
    assert crashes > 20
    traj.close()


def test_killed_runs_finish_with_the_digest_of_an_uninterrupted_one(tmp_path):
    """In a process of its own: what forks must have no threads. `benchmarks/durability.py` does a thousand."""
    code = (
        "import json, sys; from pathlib import Path; from reference.kills import kills; "
        "phases, wrong = kills(Path(sys.argv[1]), 50, seed=0, sync=False); print(json.dumps([phases, wrong]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    phases, wrong = json.loads(done.stdout)
    assert wrong == [] and sum(phases.values()) == 50 and len(phases) >= 4


def test_the_kill_harness_notices_a_commit_that_comes_too_early(tmp_path, monkeypatch):
    """Its twin: a folder whose manifest is put back to an older one is not accepted."""
    make_run(tmp_path, "SGD")
    old = (tmp_path / manifest.MANIFEST).read_bytes()
    with load(tmp_path, "SGD") as traj:
        traj.seek(0)
    (tmp_path / manifest.MANIFEST).write_bytes(old)
    with pytest.raises(lo.DamagedFile):
        load(tmp_path, "SGD")


@pytest.mark.parametrize("target", [60, 10])
def test_ctrl_c_ends_a_seek_at_a_step_that_is_committed(target, tmp_path):
    traj = run("AdamW", tape=tmp_path, commit_seconds=None)
    traj.seek(40)
    good = digests("AdamW", 50 if target > 40 else 30, 40)

    def press(traj):
        if traj.step in good:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="the run stands there"):
        traj.seek(target, on_step=press)
    assert traj.step in good and traj.digest() == good[traj.step] and not traj.folder.moved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert traj.seek(40).digest() == good[40]
    traj.close()


def test_a_second_ctrl_c_stops_inside_a_step_and_the_state_is_that_before_it():
    traj = run("SGD").seek(20)
    before = traj.digest()

    def twice(model, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return loss(model, batch)

    traj.loss_fn = twice
    with pytest.raises(KeyboardInterrupt):
        traj.seek(25)
    traj.loss_fn = loss
    assert traj.step == 20 and traj.digest() == before
    assert traj.seek(0).digest() == run("SGD").digest()


# -- damage --------------------------------------------------------------------------------------------


def test_flipped_bytes_are_noticed_before_they_are_used(tmp_path):
    kinds, wrong = flips(tmp_path, 500, seed=0)
    assert wrong == [] and set(kinds) == {"state", "tape", "journal", "manifest"}


def test_the_flip_harness_notices_what_is_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "trouble", lambda folder, file: None)
    monkeypatch.setattr("loschmidt.trajectory.salvage.trouble", lambda folder, file: None)
    assert flips(tmp_path, 20, seed=0)[1]


def segments(folder, kind):
    return sorted(folder.glob(f"{kind}-*"))


@pytest.fixture
def damaged(tmp_path):
    """A run at step 160 with several segments, and digests of its state."""
    good = make_run(tmp_path, "SGD")
    model, opt, loss, data = parts("SGD")
    traj = lo.Trajectory(model, opt, loss, data, digest_every=20)
    traj.seek(160, on_step=lambda t: good.update({t.step: state_of(t)}))
    return tmp_path, good


def test_a_damaged_segment_of_the_tape_costs_only_the_steps_below_it(damaged):
    folder, good = damaged
    flip_byte(segments(folder, "tape")[0])
    traj = load(folder, "SGD")
    with pytest.raises(
        lo.DamagedFile, match=r"tape-\d+.safetensors is not what was written .* steps below \d+ are lost"
    ) as e:
        traj.seek(0)
    lowest = int(e.value.remedy.split("(")[1].split(")")[0])
    assert traj.step == 160 and 0 < lowest < 160
    assert state_of(traj.seek(lowest)) == good[lowest]
    with pytest.raises(lo.DamagedFile):
        traj.seek(lowest - 1)
    traj.close()
    with load(folder, "SGD", salvage=True) as traj:
        assert traj.step == lowest
        with pytest.raises(lo.OutOfReach, match=f"below step {lowest}"):
            traj.seek(lowest - 1)
        traj.seek(170)
    with load(folder, "SGD") as traj:  # whole again, from there on
        assert (
            traj.step == 170 and state_of(traj.seek(160)) == good[160] and state_of(traj.seek(lowest)) == good[lowest]
        )


def test_a_damaged_segment_of_the_journal_costs_only_the_steps_below_it(damaged):
    folder, good = damaged
    flip_byte(segments(folder, "journal")[0])
    with pytest.raises(lo.DamagedFile, match=r"go on from step 160, and back to step \d+") as e:
        load(folder, "SGD")
    lowest = int(str(e.value).split("back to step ")[1].split(".")[0])
    assert 0 < lowest < 160 and "salvage=True" in e.value.remedy
    with load(folder, "SGD", salvage=True) as traj:
        assert traj.step == 160 and state_of(traj) == good[160]
        assert state_of(traj.seek(lowest)) == good[lowest]
        with pytest.raises(lo.OutOfReach):
            traj.seek(lowest - 1)
    with load(folder, "SGD") as traj:
        assert state_of(traj.seek(160)) == good[160] and state_of(traj.seek(lowest)) == good[lowest]


def test_a_damaged_state_leaves_the_commit_before(damaged):
    folder, good = damaged
    last = manifest.read_manifest(folder).last.state.name
    (folder / last).unlink()
    with pytest.raises(
        lo.DamagedFile,
        match=r"is missing: the commit of step 160 lost; the run can go on from step \d+, and back to step 0",
    ):
        load(folder, "SGD")
    with load(folder, "SGD", salvage=True) as traj:
        assert 90 <= traj.step < 160 and state_of(traj) == good[traj.step]
        assert state_of(traj.seek(160)) == good[160] and state_of(traj.seek(0)) == good[0]


def test_a_damaged_manifest_has_a_copy(damaged):
    folder, good = damaged
    flip_byte(folder / manifest.MANIFEST, 30)
    with pytest.raises(lo.DamagedFile, match="salvage=True"):
        load(folder, "SGD")
    with load(folder, "SGD", salvage=True) as traj:
        assert traj.step == 160 and state_of(traj.seek(0)) == good[0]
    with load(folder, "SGD") as traj:
        assert traj.step == 0


def test_where_nothing_is_left_it_says_so(damaged):
    folder, _ = damaged
    for path in segments(folder, "state"):
        flip_byte(path)
    for how in ({}, {"salvage": True}):
        with pytest.raises(lo.DamagedFile, match="no state is left"):
            load(folder, "SGD", **how)
    for name in (manifest.MANIFEST, manifest.COPY):
        flip_byte(folder / name, 40)
    with pytest.raises(lo.DamagedFile, match="neither"):
        load(folder, "SGD", salvage=True)


# -- runs ----------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(["runs", *map(str, arguments)])
    return end.value.code, capsys.readouterr()


def test_runs_are_listed_shown_verified_and_pruned(damaged, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, good = damaged
    out = folder.parent / "out.json"
    code, said = command(capsys, "list", folder, "--json", out)
    assert code == 0 and "SGD" in said.out and [x["step"] for x in json.loads(out.read_text())["runs"]] == [160]
    code, said = command(capsys, "show", folder, "--json", out)
    assert code == 0 and "tape-" in said.out and json.loads(out.read_text())["manifest"]["commits"][-1]["step"] == 160
    assert command(capsys, "verify", folder)[0] == 0
    flip_byte(segments(folder, "tape")[-1])
    code, said = command(capsys, "verify", folder, "--json", out)
    assert code == 1 and "steps below" in said.out and len(json.loads(out.read_text())["damaged"]) == 1
    code, said = command(capsys, "prune", folder)
    assert code == 2 and "salvage=True" in said.err
    flip_byte(segments(folder, "tape")[-1])
    (folder / "state-00000999.safetensors").write_bytes(b"left by a kill")
    code, said = command(capsys, "prune", folder, "--before", 120, "--json", out)
    pruned = json.loads(out.read_text())
    assert code == 0 and pruned["first"] == 120 and "state-00000999.safetensors" in pruned["removed"]
    assert command(capsys, "verify", folder)[0] == 0
    with load(folder, "SGD") as traj:
        assert state_of(traj.seek(120)) == good[120]
        with pytest.raises(lo.OutOfReach):
            traj.seek(119)
        traj.seek(200)
        traj.save(folder.parent / "pruned")  # what is left of the tape has a digest, and goes to a file
        model, _, loss, data = parts("SGD")
        saved = lo.Trajectory.load(folder.parent / "pruned", model=model, loss=loss, data=data)
        assert saved.digest() == traj.digest() and state_of(saved.seek(120)) == good[120]
        with pytest.raises(lo.OutOfReach):
            saved.seek(119)
    with load(folder, "SGD") as traj:
        assert state_of(traj.seek(160)) == good[160] and state_of(traj.seek(120)) == good[120]
        code, said = command(capsys, "prune", folder)
        assert code == 2 and "open in another process" in said.err
    code, said = command(capsys, "show", folder.parent / "nothing")
    assert code == 2 and "Remedy" in said.err


# -- what a file does not hold -------------------------------------------------------------------------


def test_functions_and_frozen_parameters_are_those_of_the_run(tmp_path):
    traj = run("SGD").seek(10)
    traj.save(tmp_path / "run")
    for other in ({"lr": None}, {"after_backward": None}):
        with pytest.raises(lo.SourceChanged, match=f"this run has a function {next(iter(other))},"):
            reopen(tmp_path / "run", **other)
    model = Network(seed=5).requires_grad_(True)
    again = reopen(tmp_path / "run", model=model)
    assert not model.frozen.weight.requires_grad and not model.outside.weight.requires_grad
    assert again.seek(40).digest() == traj.seek(40).digest()


def test_a_copy_in_memory_is_independent(tmp_path):
    import copy

    with run("AdamW", tape=tmp_path) as traj:
        twin = copy.deepcopy(traj.seek(30))
        before = traj.digest()
        assert twin.folder is None and twin.digest() == before
        assert twin.seek(45).digest() == digests("AdamW", 45)[45] and twin.seek(0).digest() == run("AdamW").digest()
        assert traj.digest() == before and torch.equal(traj.model.out.bias, reopen_bias(tmp_path, traj))


def reopen_bias(folder, traj):
    traj.close()
    with reopen(folder) as again:
        return again.model.out.bias
