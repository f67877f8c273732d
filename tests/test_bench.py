"""`loschmidt bench` at a toy scale: every section gives what it promises, and what it computes is right."""

import json
import signal
import socket

import pytest
import torch
from rich.console import Console

from loschmidt.bench import BenchPlan, alternatives, default_plan, machine, run, run_bench, subjects, timing
from loschmidt.bench.picture import draw
from loschmidt.bench.plan import SECTIONS, GPTPlan
from loschmidt.bench.steps import Ours
from loschmidt.bench.table import markdown, tables
from loschmidt.cli import main
from loschmidt.errors import InvalidSetting, NonFinite
from loschmidt.files import write_json

SPREAD = {"median", "min", "max"}
PLAN = BenchPlan(
    sizes=(2_000,),
    growth_sizes=(100, 1_000, 4_000),
    repeats=2,
    copy_bytes=1 << 20,
    block=1,
    gpt2=GPTPlan(symbols=50, context=16, width=16, layers=1, heads=2, length=8, steps=3),
    alternatives_steps=5,
    alternatives_width=16,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    write_json(path, run_bench(PLAN, progress=False))
    return json.loads(path.read_text())


def test_all_sections_are_there_and_the_settings_rebuild_the_plan(results):
    assert tuple(results["sections"]) == SECTIONS and tuple(results["section_seconds"]) == SECTIONS
    assert results["failures"] == [] and results["interrupted"] is False
    assert BenchPlan(**results["settings"]) == PLAN
    assert results["environment"]["torch"] and results["machine"]["cores"] >= 1
    text = json.dumps(results)
    assert socket.gethostname() not in text and '"/' not in text


def test_steps(results):
    found = results["sections"]["steps"]
    assert found["copy"]["bytes_per_second"] > 1e8
    assert [row["optimizer"] for row in found["rows"]] == [s.name for s in subjects.SUBJECTS]
    for row in found["rows"]:
        assert row["seconds"].keys() == {"step", "unstep", "fused", "foreach"}
        for spread in (*row["seconds"].values(), row["step_over_fused"], row["unstep_over_step"]):
            assert spread.keys() == SPREAD and 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert abs(row["tape_bits_per_parameter_step"] - row["price_bits_per_parameter_step"]) < 1e-4
        assert all(share > 0 for share in row["share_of_copy_bandwidth"].values())
        held = row["resident_bytes_per_parameter"]
        above = row["resident_over_twin_bytes_per_parameter"]
        assert above == pytest.approx(held["resident"] - row["twin_resident_bytes_per_parameter"])


def test_training(results):
    rows = results["sections"]["training"]["rows"]
    assert [row["optimizer"] for row in rows] == ["AdamW", "SGD"]
    names = ("step_over_fused", "unstep_over_step", "seek_over_fused", "seek_back_over_forward")
    assert all(row[name].keys() == SPREAD for row in rows for name in names)


def test_the_large_model_comes_back(results):
    found = results["sections"]["gpt2"]
    ours = found["ours"]
    assert ours["exact"] is True and ours["start_digest"] == ours["end_digest"] != ours["turn_digest"]
    assert ours["peak_bytes"] > 0 and found["torch"]["peak_bytes"] > 0
    assert 0 < ours["optimizer_step_seconds"]["median"] < ours["step_seconds"]["max"]
    assert abs(ours["tape_bits_per_parameter_step"] - ours["price_bits_per_parameter_step"]) < 1e-3


def test_the_default_large_model_is_gpt2():
    shape = GPTPlan()
    per_layer = 12 * shape.width**2
    assert abs((shape.symbols + shape.context) * shape.width + shape.layers * per_layer - 124e6) < 1e6


def test_each_way_back_is_exact(results):
    rows = {row["way"]: row for row in results["sections"]["alternatives"]["rows"]}
    assert rows.keys() == {"tape", "checkpoints", "deltas", "deltas, zlib", "replay"}
    assert all(row["exact"] for row in rows.values())
    state = rows["checkpoints"]["bytes_per_parameter_step"]
    assert 12 <= state < 12.1 and rows["deltas"]["bytes_per_parameter_step"] == state
    assert (
        rows["tape"]["bytes_per_step"] < 0.1 * rows["replay"]["bytes_per_step"] <= rows["checkpoints"]["bytes_per_step"]
    )


@pytest.mark.parametrize("way", [w for w in alternatives._WAYS if w.name != "tape"], ids=lambda w: w.name)
def test_a_way_that_loses_one_bit_is_not_exact(way, monkeypatch):
    back, bits = way.back, iter(range(20))

    def flawed(self):
        back(self)
        if self.at == 0:
            self.state()[0].view(torch.int32)[0, 0] ^= 1 << next(bits)  # another one each time

    monkeypatch.setattr(way, "back", flawed)
    plan = PLAN.model_copy(update={"alternatives_steps": 2})
    assert alternatives._row(plan, alternatives.text_task(), way)["exact"] is False


def test_growth(results):
    curves = results["sections"]["growth"]["curves"]
    assert [curve["optimizer"] for curve in curves] == ["SGD int64", "AdamW"]
    for curve in curves:
        assert [p["parameters"] for p in curve["points"]] == list(PLAN.growth_sizes)
        low, high = curve["ours"]["interval"]
        assert low <= curve["ours"]["slope"] <= high


def test_growth_skips_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 200_000)
    plan = PLAN.model_copy(update={"only": ("growth",), "repeats": 1})
    found = run_bench(plan, progress=False)["sections"]["growth"]
    assert {s["parameters"] for s in found["skipped"]} == {4_000}
    assert all(len(curve["points"]) == 2 for curve in found["curves"])


def test_tables_fit_a_terminal_and_name_everything(results):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(tables(results))
    shown = capture.get()
    for word in ("ours / fused", "share of copy", "by seek", "exact", "replay", "exponent"):
        assert word in shown
    assert "…" not in shown
    assert "| SGD int64 | SGD int32 | ECD int64 |" in markdown(results)


def test_the_picture(results, tmp_path):
    assert draw(results, tmp_path / "b.png") and (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    nothing = results | {"sections": {"growth": {"curves": []}}}
    assert not draw(nothing, tmp_path / "c.png") and not (tmp_path / "c.png").exists()


# -- what it is computed from ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 100, 12_345, 1_000_000, 10_000_000, 50_000_000])
def test_shapes_add_up_and_look_like_a_transformer(size):
    found = [torch.Size(shape).numel() for shape in subjects.shapes(size)]
    assert sum(found) == size and all(found)
    if size >= 1_000_000:
        assert len(found) > 5 and max(found) <= 4 << 20
    if size >= 10_000_000:
        assert sum(n >= 1_000_000 for n in found) >= 3


def test_the_slope_of_a_power_law_is_its_exponent():
    sizes = [10.0**k for k in range(5, 9)]
    assert timing.slope(sizes, [3e-9 * n**0.9 for n in sizes])["slope"] == pytest.approx(0.9)
    noisy = timing.slope(sizes, [3e-9 * n * (1 + 0.05 * (-1) ** i) for i, n in enumerate(sizes)])
    assert noisy["interval"][0] < 1 < noisy["interval"][1]
    # by hand: x = 0, 1, 2, y = 0, 1, 1: b = 1/2, rest (-1/6, 1/3, -1/6), s^2 = 1/6, error sqrt(1/12), t = 12.706
    e = 2.718281828459045
    by_hand = timing.slope([1, e, e * e], [1, e, e])
    assert by_hand["interval"] == pytest.approx([0.5 - 12.706 / 12**0.5, 0.5 + 12.706 / 12**0.5], rel=1e-6)
    assert timing.slope([1, 2], [1, 2])["interval"] is None


def test_contestants_take_turns():
    order = []
    measure = {name: lambda name=name: order.append(name) or {name: float(len(order))} for name in "abc"}
    seconds = timing.interleaved(measure, 3)
    assert "".join(order) == "abcbcacab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert timing.ratio([1, 4, 9], [1, 2, 3]) == {"median": 2, "min": 1, "max": 3}


def test_bytes_moved_by_hand():
    moved = {s.name: (s.bytes_moved(), s.twin_bytes_moved()) for s in subjects.SUBJECTS}
    assert moved["SGD int32"] == (4 * 4 + 12, 20)  # p and q both ways; gradient, weights both ways
    assert moved["ECD int64"] == (5 * 8 + 12, 20)  # p once more, after the sum over all of it
    assert moved["AdamW"] == (6 * 8 + 12, 28)
    assert moved["AdamW, q int32"] == (2 * 4 + 4 * 8 + 12, 28)


def test_bytes_held():
    n = 4_000
    given = subjects.gradients(n, 0, "cpu")
    ours = Ours(subjects.named("AdamW"), n, 0, "cpu", given).optimizer
    found = subjects.held(ours)
    assert found["lattices"] == 24 * n
    assert found["resident"] == sum(found[k] for k in ("lattices", "gradient", "shown", "heads", "other"))
    ours.something_new = torch.zeros(10)  # whatever is held is found
    ours.seen_already = ours._slots[0].block.lattices["q"].n[3:]
    assert subjects.held(ours)["other"] == found["other"] + 40
    for slot in ours._slots:
        slot.block._gradient = slot.block.shown = None
    assert subjects.held(ours)["gradient"] == subjects.held(ours)["shown"] == 0
    mine = subjects.parameters(n, 0, "cpu")
    subjects.give(mine, given)
    twin = subjects.named("AdamW").make_twin(mine, "fused")
    twin.step()
    assert subjects.held(twin)["resident"] == 8 * n + 4 * len(mine)


@pytest.mark.parametrize("subject", subjects.SUBJECTS, ids=lambda s: s.name)
def test_what_is_timed_goes_back(subject):
    given = subjects.gradients(500, 1, "cpu")
    ours = Ours(subject, 500, 1, "cpu", given)
    before = ours.optimizer.digest()
    ours.step()
    assert ours.optimizer.digest() != before
    ours.unstep()
    assert ours.optimizer.digest() == before
    assert all(p.grad is g for p, g in zip(ours.parameters, given, strict=True))


# -- the run and its command -----------------------------------------------------------------------------


def section(monkeypatch, work):
    monkeypatch.setitem(run._SECTIONS, "growth", work)
    monkeypatch.setitem(run._SECTIONS, "steps", work)


def test_interrupt_keeps_what_is_finished(monkeypatch, tmp_path, capsys):
    def work(plan, found, tick):
        tick(1, 2)
        found["curves"] = []
        signal.raise_signal(signal.SIGINT)

    section(monkeypatch, work)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--only", "growth", "--out", str(tmp_path)])
    assert stop.value.code == 130 and "Interrupted" in capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["interrupted"] is True and found["sections"] == {"growth": {"curves": []}}


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (NonFinite("the loss is inf", "lower lr."), "lower lr"),
        (MemoryError(), "--sizes"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "--sizes"),
    ],
)
def test_a_section_that_fails_does_not_end_the_others(error, word, monkeypatch):
    done = []

    def work(plan, found, tick):
        done.append(1)
        raise error

    section(monkeypatch, work)
    threads = torch.get_num_threads()
    results = run_bench(BenchPlan(only=("steps", "growth"), threads=threads + 1), progress=False)
    assert len(done) == 2 and all(word in text for text in results["failures"])
    assert torch.get_num_threads() == threads


def test_a_mistake_of_ours_is_not_hidden(monkeypatch, capsys):
    def work(plan, found, tick):
        found["rows"] = [1]
        raise RuntimeError("shape mismatch")

    section(monkeypatch, work)
    results = run_bench(BenchPlan(only=("steps",)), progress=False)
    assert "RuntimeError: shape mismatch" in results["failures"][0] and "Traceback" in capsys.readouterr().err
    assert results["sections"] == {"steps": {"rows": [1]}}


def test_the_command(tmp_path, capsys):
    arguments = ["bench", "--only", "growth", "--growth-sizes", "1e2", "2e2", "4e2", "--repeats", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "b.json")])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert "exponent" in said.out and "growth" in said.err and "\x1b" not in said.out + said.err
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads((tmp_path / "out/bench.json").read_text())
    assert (tmp_path / "out/bench.png").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--only", "speed"], "alternatives"),
        (["--sizes", "0"], "1e6"),
        (["--sizes", "1.5"], "1e6"),
        (["--sizes", "nan"], "1e6"),
        (["--sizes", "9e11"], "smaller"),
        (["--growth-sizes", "1e5", "1e6"], "more"),
        (["--repeats", "0"], "larger"),
        (["--threads", "0"], "larger"),
        (["--steps", "1"], "larger"),
        (["--device", "tpu"], "cuda"),
        (["--out", "FILE"], "folder"),
    ],
)
def test_refusals_name_a_remedy(arguments, word, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = [str(tmp_path / "file") if x == "FILE" else x for x in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments, *out])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Remedy" in message and word in message


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidSetting, match="CUDA"):
        default_plan(device="cuda")


def test_a_gpu_gets_a_larger_batch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "free_memory", lambda device: 80e9)
    plan = default_plan(device="cuda", steps=7)
    assert plan.gpt2.steps == 7 and plan.gpt2.batch_size > 1 and default_plan(device="cuda").gpt2.steps == 1_000


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    assert "loschmidt bench --only steps" in capsys.readouterr().out
