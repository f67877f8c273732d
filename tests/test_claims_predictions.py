"""Predictions are written down once, before the test, and a test without them does not run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loschmidt.claims import jobs, plan_predictions, plan_run, predict, records, registry, run_claims, sealed
from loschmidt.claims.plan import RunPlan
from loschmidt.cli import main
from loschmidt.errors import DamagedFile, InvalidSetting, LoschmidtError, NotWritten
from reference.predicted import c05_dice

DICE = "reference.predicted"


def the_run(out, **options) -> RunPlan:
    return plan_run([5], "smoke", out=out, package=DICE, **options)


def foretell(out, **options):
    return predict(plan_predictions(5, "smoke", out=out, package=DICE, workers=1, **options), "by hand", progress=False)


def path(out):
    return sealed.place(out, 5, "smoke")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Refused without predictions; predicted; tested."""
    out = tmp_path_factory.mktemp("out")
    planned = the_run(out)
    refused = run_claims(planned, progress=False)
    made = foretell(out)
    done = run_claims(the_run(out, workers=1), progress=False)
    return {"out": out, "planned": planned, "refused": refused, "made": made["sealed"], "done": done}


@pytest.fixture
def out(finished, tmp_path):
    """A copy of what was found."""
    return shutil.copytree(finished["out"], tmp_path / "out")


def test_without_predictions_nothing_is_tested(finished):
    assert not finished["planned"].todo and len(finished["planned"].withheld) == 4
    failures = finished["refused"]["failures"]
    assert len(failures) == 4 and not finished["refused"]["claims"]
    assert "not written down; loschmidt claims predict 5 --scale smoke" in failures[-1]


def test_the_other_parts_of_a_claim_do_not_wait(tmp_path):
    planned = plan_run([10], "smoke", out=tmp_path)
    assert planned.waiting[10] and planned.todo and not planned.withheld
    assert not {job.part for job in planned.jobs[10]} & set(planned.waiting[10])
    assert not any(job.needs for job in planned.jobs[10])
    everything = plan_run([10], "smoke", out=tmp_path, everything=True)
    here = {part.name for part in registry.find(10).claim.parts if "smoke" in part.settings}
    assert {job.part for job in everything.jobs[10]} == here


def test_a_place_that_nothing_can_be_written_to_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten):
        plan_run([10], "smoke", out=tmp_path / "file" / "out")
    with pytest.raises(NotWritten):  # where even the superuser may not write
        plan_run([10], "smoke", out=Path("/proc/out"))


def test_a_worker_looks_for_predictions_itself(tmp_path):
    job = jobs.jobs_of(registry.find(5, DICE), "smoke", [0])[1]
    with pytest.raises(InvalidSetting, match="not written down"):
        jobs.do(job, tmp_path, lambda *_, **__: None)


def test_what_was_predicted_is_tested_and_named(finished):
    record = finished["done"]["claims"][0]
    assert record.verdict == "supported" and record.complete and not finished["done"]["failures"]
    said = record.predictions
    assert said["digest"] == finished["made"].digest and said["note"] == "" and said["made"] == finished["made"].made
    assert record.evidence["foretold"][0]["mean"] == 3.5
    assert records.read(records.place(finished["out"], 5, "smoke")) == [record]
    assert records.again(record, c05_dice.CLAIM) == record


def test_predictions_are_made_once(out):
    before = path(out).read_bytes()
    assert foretell(out)["sealed"].digest == json.loads(before)["digest"]
    assert path(out).read_bytes() == before
    with pytest.raises(InvalidSetting, match="move it away"):
        foretell(out, seeds=3)


def test_predictions_alone_are_enough_on_another_machine(out, tmp_path):
    (tmp_path / "there").mkdir()
    shutil.copy(path(out), path(tmp_path / "there"))
    planned = the_run(tmp_path / "there")
    assert [job.part for job in planned.todo] == ["thrown", "thrown"] and not planned.withheld


def test_changed_predictions_are_refused(out):
    text = path(out).read_text()
    assert "3.5" in text
    for changed in (text.replace("3.5", "3.6"), "{ torn", "[]"):
        path(out).write_text(changed)
        with pytest.raises(DamagedFile, match=r"predictions-05-smoke\.json"):
            the_run(out)


def test_a_test_with_other_settings_is_withheld(out, monkeypatch):
    monkeypatch.setitem(c05_dice.SETTINGS, "smoke", {"throws": 61})
    planned = the_run(out)
    assert not planned.todo and set(planned.withheld) == {"claim 5, thrown, seed 0", "claim 5, thrown, seed 1"}
    assert all("other settings" in why for why in planned.withheld.values())


def test_more_seeds_than_were_predicted_are_withheld(out):
    assert set(the_run(out, seeds=3).withheld) == {"claim 5, foretold, seed 2", "claim 5, thrown, seed 2"}


def test_predictions_younger_than_results_are_told(out):
    content = json.loads(path(out).read_text())
    path(out).unlink()
    assert "not there" in run_claims(the_run(out), progress=False)["claims"][0].predictions["note"]
    sealed.seal(out, 5, "smoke", content["tests"], content["results"], "another command")
    record = run_claims(the_run(out), progress=False)["claims"][0]
    assert record.predictions["note"] == "2 of 2 jobs were not run against these predictions."


def test_a_record_stays_whose_parts_wait_by_now(out):
    before = records.place(out, 5, "smoke").read_bytes()
    planned = replace(the_run(out), waiting={5: ["thrown"]})  # as if other parts went on without them
    done = run_claims(planned, progress=False)
    assert "holds 1 parts whose predictions are not here" in done["notes"][0]
    assert records.place(out, 5, "smoke").read_bytes() == before


def test_a_claim_that_predicts_nothing_is_refused(tmp_path):
    with pytest.raises(LoschmidtError, match="no part that predicts"):
        plan_predictions(1, "smoke", out=tmp_path, package="reference.toys")


def test_the_command_tells_what_it_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE", DICE)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["claims", *arguments, "5", "--scale", "smoke", "--out", str(tmp_path), "--workers", "1"])
        return stop.value.code, " ".join(capsys.readouterr().out.split())  # lines end where the paths make them

    code, text = call("run")
    assert code == 1 and "NOT RUN, 2 jobs: its predictions are not written down" in text
    code, text = call("predict")
    assert code == 0 and "Commit it before the test" in text
    code, text = call("run")
    assert code == 0 and json.loads(path(tmp_path).read_text())["digest"] in text
