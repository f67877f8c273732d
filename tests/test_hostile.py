"""Files that were made to do harm: refused by name, nothing run, nothing written elsewhere, nothing odd printed."""

import contextlib
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import loschmidt as lo
from loschmidt import cli
from loschmidt.trajectory import contents, manifest
from reference import hostile
from reference.hostile import bytes_tensor, last, open_run, rewrite, sign


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return hostile.make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def case(bases, tmp_path):
    hostile.shutil.copytree(bases["SGD"], tmp_path / "case")
    return tmp_path / "case"


def test_a_sample_of_hostile_files_does_no_harm(tmp_path):
    """`benchmarks/hostile_files.py` does hundreds."""
    found = hostile.trials(tmp_path, range(len(hostile.KINDS)))
    assert found["faults"] == [] and len(found["files"]) == len(hostile.KINDS)


def faults_of(bases, work, kind, count=4):
    seeds = [seed for seed in range(1000) if list(hostile.KINDS)[seed % len(hostile.KINDS)] == kind][:count]
    return [fault for seed in seeds for fault in hostile.trial(bases, seed, work)[1]]


def test_the_harness_notices_raw_exceptions(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "checked", lambda path: contextlib.nullcontext())
    assert any("raw" in fault for fault in faults_of(bases, tmp_path, "entries of the journal"))


def test_the_harness_notices_escape_sequences(case, monkeypatch):
    sign(case / "run", setting("optimizer", value="\x1b[31mSGD"))
    monkeypatch.setattr(manifest, "as_text", lambda text: text)
    for harmless in (True, False):
        if not harmless:
            monkeypatch.setattr(sys.modules["loschmidt.cli.runs"], "printable", str)
        faults = []
        hostile.look(faults, hostile.Counter(), "show", str(case / "run"))
        assert faults == ([] if harmless else ["runs show: printed '\\x1b'"])


def test_the_harness_notices_what_is_written_elsewhere_or_run(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "victim")
    with hostile.watched(inside) as seen:
        (inside / "link").write_text("x")
        (inside / "fine").write_text("x")
        (tmp_path / "victim").unlink()
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert [what.split()[0] for what in seen][:2] == ["open", "os.remove"] and "ran subprocess.Popen" in seen[2]
    assert not any("fine" in what for what in seen)


# -- manifests -----------------------------------------------------------------------------------------


def setting(*path, value):
    def change(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


WRONG = {
    "a number of commits that no name has": setting("commits", -1, "number", value=10**15),
    "a step that no run reaches": setting("commits", -1, "step", value=10**30),
    "a first step above the last": setting("commits", -1, "first", value=101),
    "steps that the journal does not have": setting("commits", -1, "step", value=10**6),
    "a step from which is checked, of no run": setting("commits", -1, "verified_from", value=10**30),
    "bits that are no number": setting("commits", -1, "bits", value=float("nan")),
    "an optimizer with an escape sequence": setting("optimizer", value="\x1b[31mSGD"),
    "a version without end": setting("loschmidt", value="9" * 1000),
    "a time that is none": setting("commits", -1, "time", value="[blink]now"),
    "a run that is no number": setting("run", value="\x1b]0;x\x07"),
    "a tape named as a state": setting("commits", -1, "state", "name", value="tape-00000001.safetensors"),
    "a path": setting("commits", -1, "state", "name", value="../../victim"),
    "a tape above its segments": setting("commits", -1, "tape", value=[10**6]),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_manifest_has_is_refused_by_name(what, case):
    sign(case / "run", WRONG[what])
    before = {p.name: p.read_bytes() for p in (case / "run").iterdir()}
    for salvage in (False, True):
        with pytest.raises(lo.DamagedFile) as refused:
            open_run(case / "run", "SGD", salvage=salvage)
        assert str(refused.value).isprintable() and len(str(refused.value)) < 1000
    assert {p.name: p.read_bytes() for p in (case / "run").iterdir()} == before


def test_an_optimizer_with_an_odd_name_is_recorded_in_printable_letters(tmp_path):
    model, _, loss, data = hostile.parts("SGD")
    odd = type("SGD\x1b[31m" + "x" * 300, (lo.optim.SGD,), {})
    opt = odd(model.parameters(), lr=0.01, momentum=0.9)
    with lo.Trajectory(model, opt, loss, data, tape=tmp_path / "run"):
        pass
    name = manifest.read_manifest(tmp_path / "run").optimizer
    assert name.startswith("SGD\\x1b[31mxxx") and len(name) <= manifest.LONGEST
    lo.optim.ReversibleOptimizer.registry.pop(odd.__name__)


def test_numbers_of_commits_end_by_name(case):
    sign(case / "run", setting("commits", -1, "number", value=manifest.MOST_COMMITS - 1))
    traj = open_run(case / "run", "SGD")
    with pytest.raises(lo.DamagedFile, match="has had 99,999,999,999 commits"):
        traj.seek(10)
    traj.folder.close()


# -- what the files hold -------------------------------------------------------------------------------


def about(**change):
    return lambda tensors: (
        tensors | {"about": bytes_tensor(json.dumps(json.loads(tensors["about"].numpy().tobytes()) | change).encode())}
    )


STATES = {
    "no learning rates": about(base_lr=[]),
    "a learning rate that is no number": about(base_lr=[float("nan")]),
    "a negative first step": about(first=-1),
    "no JSON": lambda tensors: tensors | {"about": bytes_tensor(b"{")},
    "JSON without end": lambda tensors: tensors | {"about": bytes_tensor(b"[" * 100_000)},
    "a parameter more": lambda tensors: tensors | {"state.99.q": tensors["state.0.q"]},
    "a buffer elsewhere": lambda tensors: tensors | {"buffer.../../x": tensors["state.0.q"]},
    "heads that are no numbers": lambda tensors: tensors | {"tape.0.heads": tensors["tape.0.heads"] * float("nan")},
    "heads out of range": lambda tensors: tensors | {"tape.0.heads": tensors["tape.0.heads"] * 2.0**20},
}


@pytest.mark.parametrize("what", STATES)
def test_what_no_state_has_is_refused_by_name(what, case):
    name = last(case / "run", "state")
    rewrite(case / "run", name, STATES[what](load_file(case / "run" / name)))
    model, _, loss, data = hostile.parts("SGD")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(lo.DamagedFile):
        lo.Trajectory.load(case / "run", model=model, loss=loss, data=data)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def entries(change):
    def changed(tensors):
        text = json.loads(tensors["entries"].numpy().tobytes())
        step = max(text["entries"], key=int)
        change(text["entries"][step])
        return tensors | {"entries": bytes_tensor(json.dumps(text).encode())}

    return changed


JOURNALS = {
    "checks of another type": lambda tensors: tensors | {"checks": tensors["checks"].double()},
    "checks of another shape": lambda tensors: tensors | {"checks": tensors["checks"][None]},
    "too few checks": lambda tensors: tensors | {"checks": tensors["checks"][1:]},
    "moves of another shape": lambda tensors: tensors | {"0.moves": torch.zeros(1, 3, dtype=torch.int64)},
    "entries that are no text": lambda tensors: tensors | {"entries": bytes_tensor(b"\xff\xfe")},
    "a scalar that is a text": entries(lambda entry: entry.update(scalars={"shell": "x"})),
    "active parameters that there are not": entries(lambda entry: entry.update(active=[99])),
    "lattices that there are not": entries(lambda entry: entry.update(coarsened=[[0, 99, 1]])),
    "settings that are none": entries(lambda entry: entry.update(settings={"groups": 1, "0": {"lr": "fast"}})),
    "a tensor that is not there": entries(lambda entry: entry.update(buffers={"1.running_mean": {"$tensor": "t999"}})),
    "a buffer of another shape": lambda tensors: tensors | {"t0": torch.zeros(3, 3)},
}


@pytest.mark.parametrize("what", JOURNALS)
def test_what_no_journal_has_is_refused_by_name(what, case):
    name = last(case / "run", "journal")
    rewrite(case / "run", name, JOURNALS[what](load_file(case / "run" / name)))
    with pytest.raises(lo.DamagedFile, match="holds what no run has"):
        open_run(case / "run", "SGD")


def test_words_of_the_tape_are_as_many_as_promised(case):
    names = sorted(p.name for p in (case / "run").glob("tape-*"))
    for name in names:
        rewrite(case / "run", name, {k: v[1:] for k, v in load_file(case / "run" / name).items()})
    assert names
    traj = open_run(case / "run", "SGD")
    with pytest.raises(lo.DamagedFile, match="words"):
        traj.seek(0)
    assert traj.step == hostile.STEPS
    traj.folder.close()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"optimizer": "SGD"}', "9" * 10_000])
def test_one_file_with_another_description_is_refused_by_name(text, case):
    path = case / "one.safetensors"
    hostile.resave(path, load_file(path), text)
    with pytest.raises(lo.DamagedFile, match="holds what no run has"):
        open_run(path, "SGD")


def test_names_in_one_file_do_not_reach_the_terminal(case):
    path = case / "one.safetensors"
    with hostile.safe_open(path, "pt") as f:
        text = f.metadata()["about"]
    hostile.resave(path, load_file(path) | {"\x1b[31mred\u202e": torch.zeros(1)}, text)
    with pytest.raises(lo.DamagedFile) as refused:
        open_run(path, "SGD")
    assert "\\x1b[31mred\\u202e" in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize("name", [manifest.LOCK, *manifest.TEMPORARY])
def test_links_in_a_folder_do_not_lead_out_of_it(name, case):
    (case / "victim").write_text("untouched")
    (case / "run" / name).unlink(missing_ok=True)
    (case / "run" / name).symlink_to(case / "victim")
    with contextlib.suppress(lo.DamagedFile), open_run(case / "run", "SGD") as traj:
        traj.seek(10)
    assert (case / "victim").read_text() == "untouched"
    if name != manifest.LOCK:
        assert manifest.read_manifest(case / "run").last.step == 10


def test_other_tensors_are_other_ones():
    """Of the harness itself: a mutation that changes nothing would test nothing."""
    x = torch.arange(40, dtype=torch.int64).view(5, 8)
    for seed in range(40):
        y = hostile.other_tensor(random.Random(seed), x)
        assert y.dtype != x.dtype or y.shape != x.shape or not torch.equal(x, y)


# -- the command line ----------------------------------------------------------------------------------


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, arguments)))
    return end.value.code, capsys.readouterr()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_headings_and_numbers_are_not_cut(columns, bases, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, said = command(capsys, "runs", "list", bases["SGD"].parent)
    lines = said.out.splitlines()
    if any(line.split() == ["optimizer", "SGD"] for line in lines):  # no table: the folder's path stays in one piece
        paths = [line for line in lines if line.split()[:1] == ["folder"]]
        assert [line.split()[1] for line in paths] == [str(bases[name] / "run") for name in ("ECD", "SGD")]
        lines = [line for line in lines if line not in paths]
    assert code == 0 and "…" not in said.out and max(map(len, lines)) <= columns
    for word in ("folder", "optimizer", "step", "back to", "bytes", "committed", "SGD", "ECD"):
        assert word in said.out
    code, said = command(capsys, "runs", "show", bases["SGD"] / "run")
    times = [c.time[:10] for c in manifest.read_manifest(bases["SGD"] / "run").commits]
    assert code == 0 and "…" not in said.out and all(time in said.out for time in times)
    for word in ("commit", "at step", "back to", "tape, bits", "time", "file", "of steps"):
        assert word in said.out


def test_markup_and_escape_sequences_are_printed_as_what_they_are(tmp_path, bases, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # paths are not folded
    folder = tmp_path / "[bold]\x1b[31m[/]x"
    hostile.shutil.copytree(bases["SGD"] / "run", folder)
    sign(folder, setting("optimizer", value="[link=https://example.org]SGD[/link][/]"))
    for name in ("list", "show", "verify"):
        code, said = command(capsys, "runs", name, folder)
        assert code == 0 and "\x1b" not in said.out and "[bold]\\x1b[31m[/]x" in said.out
        assert name == "verify" or "[link=https://example.org]SGD[/link][/]" in said.out


def test_runs_of_nothing(tmp_path, capsys, monkeypatch):
    code, said = command(capsys, "runs", "list", tmp_path / "nowhere")
    assert code == 2 and f"there is no folder {tmp_path / 'nowhere'}." in said.err
    monkeypatch.chdir(tmp_path)
    code, said = command(capsys, "runs", "show", "")
    assert code == 2 and "there is no run in the current folder." in said.err
    code, said = command(capsys, "runs", "list", tmp_path)
    assert code == 0 and f"there is no run in {tmp_path}." in said.out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(("arguments", "buffered"), [(["runs", "list", "."], False), (["--version"], True)])
def test_a_full_disk_is_one_line(arguments, buffered, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "loschmidt", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
    assert done.returncode == 1
    assert done.stderr == "loschmidt: the output cannot be written: No space left on device.\n"


WITH_JSON = {
    "echo": ["echo"],
    "bench": ["bench", "--only", "steps"],
    "report": ["report"],
    "claims list": ["claims", "list"],
    "claims show": ["claims", "show", "2"],
    "claims run": ["claims", "run", "2"],
    "claims predict": ["claims", "predict", "10"],
    "claims grok-search": ["claims", "grok-search"],
    "claims judge": ["claims", "judge"],
    "runs list": ["runs", "list", "{run}"],
    "runs show": ["runs", "show", "{run}"],
    "runs verify": ["runs", "verify", "{run}"],
    "runs prune": ["runs", "prune", "{run}"],
}


@pytest.mark.parametrize("name", WITH_JSON)
def test_json_that_cannot_be_written_is_refused_before_the_work(name, bases, tmp_path, capsys, monkeypatch):
    def too_late(*_, **__):
        raise AssertionError("the work has begun")

    for module, work in {
        "echo": "run_echo",
        "bench": "run_bench",
        "report": "make",
        "claims": "plan_run run_claims plan_predictions run_predictions _read",
        "runs": "survey read_manifest prune_run",
    }.items():
        for function in work.split():
            monkeypatch.setattr(sys.modules[f"loschmidt.cli.{module}"], function, too_late)
    run = bases["SGD"] / "run"
    arguments = [x.replace("{run}", str(run)) for x in WITH_JSON[name]]
    if name in ("echo", "bench"):
        arguments += ["--out", str(tmp_path)]
    for place in ("/proc/nope/x.json", "/dev/null", tmp_path, tmp_path / ("x" * 250), run / "lock" / "x.json"):
        code, said = command(capsys, *arguments, "--json", place)
        assert code == 2 and "cannot be written" in said.err and "Remedy" in said.err, place
    assert list(tmp_path.iterdir()) == []


def test_trying_leaves_nothing_behind(tmp_path):
    from loschmidt.files import refuse_unwritable

    refuse_unwritable(tmp_path / "a" / "b" / "x.json")
    (tmp_path / "x.json").write_text("{}")
    refuse_unwritable(tmp_path / "x.json")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"] and (tmp_path / "x.json").read_text() == "{}"
