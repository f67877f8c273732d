"""The machinery of claims, on toys: what is finished is kept, what fails is named, verdicts are pure."""

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loschmidt.claims import code, jobs, plan_run, records, registry, run_claims, statistics, table, try_claim
from loschmidt.cli import main
from loschmidt.errors import DamagedFile, InvalidSetting, LoschmidtError
from reference.toys import c01_coins
from reference.toys.c01_coins import CLAIM

TOYS = "reference.toys"
FIELDS = {
    *("id", "statement", "verdict", "sub_verdicts", "scale", "seeds", "measures", "command", "environment", "seconds"),
    *("title", "question", "prediction", "falsifier", "protocol", "rule", "thresholds", "left_out", "evidence"),
    *("citations", "sentences", "outside", "settings", "code"),
}
MEASURE = {"name", "value", "interval", "n", "unit", "threshold", "met", "kind", "control"}


def plan(out, **options):
    return plan_run([1], **{"scale": "smoke", "seeds": 3, "out": out, "package": TOYS, **options})


def run(out, **options):
    return run_claims(plan(out, **options), "loschmidt claims run 1", progress=False)


def files(out):
    return {path.name: path.read_bytes() for path in (out / "jobs").rglob("*.json")}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run in which seed 0 raises and seed 1's process is killed; and the same again when nothing is wrong."""
    out, orders = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("orders")
    for order in ("raise-0", "kill-1"):
        (orders / order).touch()
    os.environ["TOYS"] = str(orders)
    try:
        first = run(out)
        kept = files(out)
        for order in orders.iterdir():
            order.unlink()
        todo = plan(out).todo
        second = run(out, workers=1)
    finally:
        del os.environ["TOYS"]
    return {"first": first, "kept": kept, "todo": todo, "second": second, "out": out}


@pytest.fixture
def out(story, tmp_path):
    """A copy of the finished results."""
    return shutil.copytree(story["out"], tmp_path / "out")


# -- runs ------------------------------------------------------------------------------------------------


def test_a_crash_and_a_killed_worker_are_named_and_lose_nothing_else(story):
    failures = sorted(story["first"]["failures"])
    assert "seed 0: ZeroDivisionError: a coin fell on its edge" in failures[0]
    assert "seed 1: its process was killed by SIGKILL" in failures[1] and len(failures) == 2
    assert sorted(name.rsplit("-", 1)[0] for name in story["kept"]) == [
        "fair-coin-seed-2",
        *(f"loaded-coin-seed-{seed}" for seed in range(3)),
    ]
    record = story["first"]["claims"][0]
    assert record.verdict and not record.complete and sorted(record.missing) == failures
    assert [e["seed"] for e in record.evidence["fair coin"]] == [2]


def test_a_run_goes_on_with_what_is_missing(story):
    assert [(job.part, job.seed) for job in story["todo"]] == [("fair coin", 0), ("fair coin", 1)]
    now = files(story["out"])
    assert len(now) == 6 and all(now[name] == content for name, content in story["kept"].items())
    record = story["second"]["claims"][0]
    assert record.complete and record.verdict == "supported" and record.seeds == [0, 1, 2]
    assert not story["second"]["failures"] and not plan(story["out"]).todo
    assert records.read(records.place(story["out"], 1, "smoke")) == [record]


def test_results_do_not_depend_on_the_process_that_made_them(story):
    here = try_claim(CLAIM, "smoke", 3)
    there = story["second"]["claims"][0]
    for part, several in here.evidence.items():
        assert [e | {"seconds": 0} for e in several] == [e | {"seconds": 0} for e in there.evidence[part]]
    assert here.measures == there.measures


def test_interrupt_keeps_and_judges_what_was_finished(tmp_path):
    orders, out = tmp_path / "orders", tmp_path / "out"
    orders.mkdir()
    (orders / "wait-1").touch()
    program = f"from loschmidt.claims import registry; registry.PACKAGE = {TOYS!r}\nfrom loschmidt.cli import main\n"
    arguments = ["claims", "run", "1", "--scale", "smoke", "--out", str(out)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}main({arguments})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TOYS": str(orders), "PYTHONPATH": path},
    ) as process:
        while len(list(out.rglob("[!.]*-seed-*.json"))) < 3 or not (orders / "waiting-1").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Interrupted" in text and "supported (incomplete)" in text and "Traceback" not in errors
    record = records.read(records.place(out, 1, "smoke"))[0]
    assert record.seeds == [0, 1] and record.missing == ["claim 1, fair coin, seed 1: not run"]
    assert [e["seed"] for e in record.evidence["fair coin"]] == [0]


def test_an_incomplete_record_does_not_replace_a_complete_one(out):
    before = records.place(out, 1, "smoke").read_bytes()
    next((out / "jobs").rglob("fair-coin-seed-1-*.json")).write_text("{ torn")
    planned = replace(plan(out), todo=[])  # as if it were interrupted at once
    done = run_claims(planned, progress=False)
    assert "stays" in done["notes"][0] and not done["claims"][0].complete
    assert records.place(out, 1, "smoke").read_bytes() == before


def test_results_of_other_versions_are_named_set_aside_and_kept(out):
    path = next((out / "jobs").rglob("fair-coin-seed-1-*.json"))
    result = json.loads(path.read_text())
    path.rename(path.with_name("fair-coin-seed-1-0123.json")).write_text(
        json.dumps(result | {"code": "0.0.9+feed", "key": "0123"})
    )
    (path.parent / "loaded-coin-seed-2-4567.json").write_text("{ torn")
    planned = plan(out)
    assert [(job.part, job.seed) for job in planned.todo] == [("fair coin", 1)]
    aside = "; ".join(planned.aside[1])
    assert "fair coin, seed 1, of version 0.0.9+feed" in aside and "loaded-coin-seed-2-4567.json" in aside
    record = run_claims(replace(planned, todo=[]), progress=False)["claims"][0]
    assert [e["seed"] for e in record.evidence["fair coin"]] == [0, 2] and len(record.set_aside) == 2
    assert (path.parent / "fair-coin-seed-1-0123.json").exists()


def test_parts_that_are_not_chosen_are_taken_over_from_the_record(out, monkeypatch):
    """Of code that is gone by now; what was chosen is run, and the record says which is which."""
    old = run(out)["claims"][0]
    shutil.rmtree(out / "jobs")
    monkeypatch.setattr(code, "version", lambda function, module: "0.2.0+beef")
    with pytest.raises(InvalidSetting, match="no part's name begins with 'lost'"):
        plan(out, parts=["lost"])
    planned = plan(out, parts=["fair"])
    assert {job.part for job in planned.todo} == {"fair coin"} and len(planned.todo) == 3
    new = run(out, parts=["fair"])["claims"][0]
    assert new.complete and new.taken_over == ["loaded coin"]
    assert new.evidence["loaded coin"] == old.evidence["loaded coin"]
    assert new.code == {"fair coin": "0.2.0+beef", "loaded coin": old.code["loaded coin"]}
    assert new.evidence["fair coin"] != old.evidence["fair coin"]  # run anew: other seconds, at least
    assert run(out)["claims"][0].taken_over == []  # nobody asked for it: now all are run


@pytest.mark.parametrize(("again", "kept"), [("fair", "loaded"), ("loaded", "fair")])
def test_thresholds_under_which_a_part_ran_are_told_whichever_part_came_last(out, monkeypatch, again, kept):
    run(out)
    for path in (out / "jobs").rglob("*.json"):
        path.unlink()
    monkeypatch.setattr(c01_coins, "CLAIM", replace(CLAIM, thresholds={"within": 0.2}))
    record = run(out, parts=[again])["claims"][0]
    assert record.taken_over == [f"{kept} coin"] and record.thresholds_changed == {"within": (0.1, 0.2)}


def test_a_part_with_a_job_of_its_own_is_not_taken_over_in_pieces(out):
    run(out)
    for path in (out / "jobs").rglob("loaded-coin-seed-[01]-*.json"):
        path.unlink()
    record = run(out, parts=["fair"])["claims"][0]
    assert record.taken_over == [] and [e["seed"] for e in record.evidence["loaded coin"]] == [2]
    assert len(record.missing) == 2


def test_what_has_other_settings_by_now_is_not_taken_over(out, monkeypatch):
    shutil.rmtree(out / "jobs")
    monkeypatch.setitem(c01_coins.SETTINGS, "smoke", {"tosses": 201})
    planned = plan(out, parts=["fair"])
    record = run_claims(planned, progress=False)["claims"][0]
    assert record.taken_over == [] and record.missing == [f"claim 1, loaded coin, seed {s}: not run" for s in range(3)]


def test_a_run_of_all_takes_those_that_have_the_scale(tmp_path):
    assert [entry.claim.id for entry in plan_run([], "smoke", out=tmp_path, package=TOYS).claims] == [1]
    with pytest.raises(InvalidSetting, match="no claim has the scale full"):
        plan_run([], "full", out=tmp_path, package=TOYS)


def test_other_settings_are_other_jobs(out, monkeypatch):
    monkeypatch.setitem(c01_coins.SETTINGS, "smoke", {"tosses": 201})
    assert len(plan(out).todo) == 6


def test_other_sources_are_other_jobs(out, monkeypatch):
    monkeypatch.setattr(code, "version", lambda function, module: "0.2.0+beef")
    planned = plan(out)
    assert len(planned.todo) == len(planned.aside[1]) == 6


def test_a_job_starts_with_numbers_of_its_own():
    def draw(settings, seed, say):
        return {"x": torch.rand(()).item(), "y": float(np.random.rand())}

    claim = replace(CLAIM, parts=[replace(CLAIM.parts[0], run=draw)], judge=lambda *_: 1 / 0)
    first = try_claim(claim).evidence["fair coin"]
    torch.rand(3), np.random.rand(3)
    before = torch.get_rng_state()
    second = try_claim(claim).evidence["fair coin"]
    assert torch.equal(before, torch.get_rng_state())
    assert [(e["x"], e["y"]) for e in first] == [(e["x"], e["y"]) for e in second] and first[0]["x"] != first[1]["x"]


def test_changed_thresholds_need_no_run_but_are_told(out, monkeypatch):
    monkeypatch.setattr(c01_coins, "CLAIM", replace(CLAIM, thresholds={"within": 1e-9}))
    planned = plan(out)
    assert not planned.todo
    record = run_claims(planned, progress=False)["claims"][0]
    assert record.verdict == "refuted" and record.thresholds_changed == {"within": (0.1, 1e-9)}


def test_the_estimate_is_scaled_to_what_was_measured(out, tmp_path):
    assert plan(tmp_path / "none", workers=1).seconds == pytest.approx(3 * 0.11)
    assert plan(tmp_path / "none", workers=3).seconds == pytest.approx(0.11)
    for path in (out / "jobs").rglob("fair-*.json"):
        result = json.loads(path.read_text())
        result["evidence"]["seconds"] = 50.0
        path.write_text(json.dumps(result))
    planned = plan(out, seeds=4, workers=1)
    assert planned.todo[0].part == "fair coin" and 50 < planned.seconds < 60


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "3"], "not built yet"),
        (["run", "13"], "no claim 13"),
        (["run", "1", "--scale", "huge"], "laptop"),
        (["run", "1", "--scale", "full"], "no scale full"),
        (["run", "1", "--seeds", "0"], "seeds=0"),
        (["run", "1", "--workers", "0"], "workers=0"),
        (["run", "1", "--out", "FILE"], "FILE"),
        (["run", "1", "--json", "FILE/x.json"], "FILE"),
        (["show", "3"], "not built yet"),
        (["judge", "--records", "EMPTY"], "no record in"),
        (["list", "--records", "NOWHERE"], "no folder"),
    ],
)
def test_refusals_name_a_remedy(arguments, word, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "PACKAGE", TOYS)
    Path("FILE").touch()
    Path("EMPTY").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["claims", *arguments])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "Remedy" in message and word in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY", "FILE"]


def test_a_folder_that_is_read_only_is_refused_before_the_run(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write to a read-only folder; the next test needs no rights")
        with pytest.raises(LoschmidtError, match="cannot be written"):
            plan(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    """Not even root can make a folder below a file."""
    (tmp_path / "file").write_text("untouched")
    with pytest.raises(LoschmidtError, match="cannot be written"):
        plan(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "untouched"


def test_a_record_of_more_seeds_is_not_replaced_by_one_of_fewer(out):
    with pytest.raises(InvalidSetting, match="rests on 3 seeds"):
        plan(out, seeds=2)


@pytest.mark.parametrize(
    ("returned", "word"), [([1], "list"), ({"seed": 1}, "seed"), ({"x": object()}, "JSON"), ({1: 2}, "dict")]
)
def test_evidence_that_is_none_is_refused(returned, word):
    part = replace(CLAIM.parts[0], run=lambda settings, seed, say: returned)
    with pytest.raises(InvalidSetting, match=word):
        try_claim(replace(CLAIM, parts=(part,)))


# -- records and verdicts --------------------------------------------------------------------------------


def test_a_record_holds_what_a_report_needs(out):
    entry = json.loads(records.place(out, 1, "smoke").read_text())["claims"][0]
    assert entry.keys() >= FIELDS
    assert all(measure.keys() == MEASURE for measure in entry["measures"])
    assert [m["kind"] for m in entry["measures"]] == ["evidence", "evidence", "implementation check"]
    assert entry["measures"][1]["control"] and entry["measures"][0]["interval"] is None  # it had no upper end
    assert entry["evidence"]["fair coin"][0].keys() == {"share", "pair", "nothing", "seed", "settings", "seconds"}
    assert entry["evidence"]["fair coin"][0]["nothing"] is None
    assert entry["command"] == "loschmidt claims run 1" and entry["environment"]["threads"] == 1
    assert str(out) not in json.dumps(entry) and str(Path.home()) not in json.dumps(entry)


def test_a_verdict_is_pure(out):
    record = records.read(records.place(out, 1, "smoke"))[0]
    again = records.again(record, CLAIM)
    assert again == record == records.again(again, CLAIM)
    assert records.ClaimRecord.model_validate_json(again.model_dump_json()) == record


def test_a_judge_that_fails_leaves_the_evidence():
    record = try_claim(replace(CLAIM, judge=lambda evidence, thresholds: thresholds["mising"]))
    assert record.verdict is None and "mising" in record.note and len(record.evidence["fair coin"]) == 2


def test_a_damaged_record_is_refused(out):
    path = records.place(out, 1, "smoke")
    entry = json.loads(path.read_text())["claims"][0]
    for text in ("{", "[]", '{"claims": []}', json.dumps({"claims": [entry | {"verdict": "maybe"}]})):
        path.write_text(text)
        with pytest.raises(DamagedFile, match=r"claim-01-smoke\.json"):
            records.read_folder(out)


def test_the_largest_scale_speaks(out):
    record = records.read(records.place(out, 1, "smoke"))[0]
    larger = record.model_copy(update={"scale": "laptop", "verdict": "refuted"})
    records.write(records.place(out, 1, "laptop"), [larger])
    rows = table.verdicts(registry.built(TOYS), records.read_folder(out))
    assert (
        rows[0] == ("1", "coins are fair", "refuted", "laptop", "3, 1 run left out") and rows[2][2] == "not yet built"
    )
    assert table.verdicts(registry.built(TOYS), {})[0][2] == "not run"


def test_judging_again_and_showing(out, capsys, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE", TOYS)
    path = records.place(out, 1, "smoke")

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["claims", *arguments, "--records", str(out), "--json", str(out / "said.json")])
        return stop.value.code, capsys.readouterr().out

    assert call("judge") == (0, "Claim 1, smoke: supported (as recorded)\n")
    entry = json.loads(path.read_text())["claims"][0]
    measure = next(m for m in entry["measures"] if m["value"])
    value = measure["value"]
    for factor, agrees in ((1 + 1e-13, True), (1 + 1e-6, False)):  # another BLAS; another number
        measure["value"] = value * factor
        path.write_text(json.dumps({"claims": [entry]}))
        assert call("judge")[0] == (0 if agrees else 1)
    altered = records.read(path)[0].model_copy(update={"verdict": "refuted"})
    records.write(path, [altered])
    number, text = call("judge", "1")
    assert number == 1 and "recorded: refuted" in text and records.read(path) == [altered]
    assert call("judge", "--write")[0] == 1 and records.read(path)[0].verdict == "supported"
    number, text = call("show", "1")
    assert number == 0 and all(word in text for word in (CLAIM.falsifier, "within = 0.1", "loaded coin", "seed 99"))
    assert json.loads((out / "said.json").read_text())["claims"][0]["verdict"] == "supported"
    number, text = call("list")
    assert number == 0 and "coins are fair" in text and "not yet built" in text
    first, second = json.loads((out / "said.json").read_text())["claims"][:2]
    assert first["id"] == 1 and first["seeds"] == [0, 1, 2] and second["scale"] is None and second["seeds"] == []


def test_a_judge_that_fails_takes_no_verdict_away(out, capsys, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE", TOYS)
    monkeypatch.setattr(c01_coins, "CLAIM", replace(CLAIM, judge=lambda evidence, thresholds: thresholds["mising"]))
    path = records.place(out, 1, "smoke")
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["claims", "judge", "--write", "--records", str(out)])
    assert stop.value.code == 1 and "The record stays" in " ".join(capsys.readouterr().out.split())
    assert path.read_bytes() == before


def test_that_nothing_is_finished_is_said_once(tmp_path, monkeypatch):
    for seed in range(2):
        (tmp_path / f"raise-{seed}").touch()
    monkeypatch.setenv("TOYS", str(tmp_path))
    monkeypatch.setattr(c01_coins, "CLAIM", replace(CLAIM, parts=CLAIM.parts[:1]))
    done = run(tmp_path / "out", seeds=2, workers=1)
    assert len(done["failures"]) == 2 and len(done["notes"]) == 1


def test_the_report_is_found_among_the_claims_too(out, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE", TOYS)
    with pytest.raises(SystemExit):
        main(["claims", "report", "--records", str(out), "--out", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").exists()


# -- versions, registry ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("< thresholds", "<= thresholds", True),
        ('{"within": 0.1}', '{"within": 0.2}', True),
        ('"""A share of heads;', '"""Heads;', True),
        ("    tosses = random", "    # a comment\n    tosses = random", True),
        ("tosses < 0.5", "tosses < 0.4", False),
        ("from loschmidt.exact import random", "from loschmidt.exact.random import generator as random", False),
        ("def loaded(", "@staticmethod\ndef loaded(", False),
        ("import time\n", "import time\n\nprint()\n", False),
    ],
)
def test_a_version_is_of_what_results_depend_on(old, new, same, tmp_path, monkeypatch):
    text = Path(c01_coins.__file__).read_text()
    assert old in text
    name = f"toy_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(text.replace(old, new))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    assert (code.version(module.heads, name) == code.version(c01_coins.heads, c01_coins.__name__)) is same


def test_a_version_depends_on_the_modules_below(monkeypatch):
    before = code.version(c01_coins.heads, c01_coins.__name__)
    whole = code._whole
    monkeypatch.setattr(code, "_whole", lambda m, roots: ("x", ()) if m.endswith("exact.random") else whole(m, roots))
    assert code.version(c01_coins.heads, c01_coins.__name__) != before


def test_a_file_that_is_no_claim_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text, word in [
        ("none", "X = 1", "has no claim"),
        ("other", f"from {TOYS}.c01_coins import CLAIM", "holds claim 1"),
    ]:
        (tmp_path / f"toys_{name}").mkdir()
        (tmp_path / f"toys_{name}" / "__init__.py").touch()
        (tmp_path / f"toys_{name}" / "c07_x.py").write_text(text)
        with pytest.raises(InvalidSetting, match=word):
            registry.built(f"toys_{name}")


@pytest.mark.parametrize("id", registry.built())
def test_claims_are_whole(id):
    entry = registry.built()[id]
    claim = entry.claim
    words = [getattr(claim, name) for name in records.WORDS if name not in ("id", "sentences", "citations")]
    assert all(words) and claim.citations and set(claim.sentences) <= set(range(1, 10)) and claim.thresholds
    assert {"smoke", "laptop"} <= set(claim.seeds) and claim.seeds["laptop"] >= 5
    for scale in claim.seeds:
        assert len(jobs.jobs_of(entry, scale, range(2))) >= 2
        assert all(part.seconds[scale] > 0 for part in claim.parts if scale in part.settings)


# -- statistics ------------------------------------------------------------------------------------------


def near(interval, low, high, within=1e-3):
    return abs(interval[0] - low) < within and abs(interval[1] - high) < within


def test_means_have_students_interval():
    value, interval, n = statistics.mean([1, 2, 3, 4, 5])
    half = 2.776445 * math.sqrt(2.5 / 5)  # t at 0.975 with 4 degrees of freedom, from tables
    assert value == 3 and n == 5 and near(interval, 3 - half, 3 + half, 1e-6)
    assert statistics.mean([2.0]) == (2.0, None, 1)
    assert statistics.paired([3, 5, 7], [1, 3, 5]) == (2.0, (2.0, 2.0), 3)


def test_proportions_have_wilsons_interval():
    value, interval, n = statistics.proportion(8, 10)
    assert value == 0.8 and n == 10 and near(interval, 0.4902, 0.9433)  # Wilson 1927, by its formula
    assert near(statistics.proportion(0, 10).interval, 0.0, 0.2775)


def test_the_bootstrap_is_seeded_and_near_the_normal_interval():
    values = [((i * 7919) % 1009) / 1009 for i in range(400)]
    mean = sum(values) / 400
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / 400 / 400)
    found = statistics.bootstrap(values, np.mean)
    assert near(found.interval, mean - half, mean + half, 0.15 * half)
    assert found == statistics.bootstrap(values, np.mean) and found != statistics.bootstrap(values, np.mean, seed=1)
    assert statistics.bootstrap([2.0, 2.0, 2.0]) == (2.0, (2.0, 2.0), 3)


def test_exponents_and_ratios():
    x = [1.0, 2.0, 4.0, 8.0]
    curves = [(x, [c * v**1.5 for v in x]) for c in (1, 3, 10)]
    assert statistics.exponent(curves).value == pytest.approx(1.5) and statistics.exponent(curves).n == 3
    noisy = [(x, [c * v**1.5 * math.exp(s * (-1) ** i) for i, v in enumerate(x)]) for c, s in ((1, 0.1), (1, -0.1))]
    per_seed, pooled = statistics.exponent(noisy), statistics.pooled_exponent(noisy)
    assert per_seed.value == pytest.approx(1.5) == pooled.value and pooled.n == 8
    assert per_seed.interval[0] < 1.5 < per_seed.interval[1] and pooled.interval[0] < 1.5 < pooled.interval[1]
    assert statistics.ratio([2, 8], [1, 2]).value == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.mean([]),
        lambda: statistics.mean([1.0, None]),
        lambda: statistics.mean([1.0, math.nan]),
        lambda: statistics.paired([1.0], [1.0, 2.0]),
        lambda: statistics.ratio([1.0], [0.0]),
        lambda: statistics.exponent([([1.0, 1.0], [1.0, 2.0])]),
        lambda: statistics.proportion(3, 2),
    ],
)
def test_statistics_of_nothing_are_refused(call):
    with pytest.raises(InvalidSetting):
        call()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InvalidSetting, match=r"loschmidt\[lab\]"):
        statistics.mean([1.0, 2.0])
