"""The live view: displays stay in their place and cost little; metrics are whole lines after any end."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console

import loschmidt as lo
from loschmidt import live
from loschmidt.errors import DamagedFile, InvalidSetting, NotWritten
from loschmidt.live import display as module
from loschmidt.live import draw
from loschmidt.live.metrics import FIELDS

STEPS = 2000


class Clock:
    """Stands for `time` in a display: half a second passes at each look."""

    def __init__(self, tick=0.5):
        self.now, self.tick = 0.0, tick

    def monotonic(self):
        self.now += self.tick
        return self.now


def run_of(display, steps=STEPS, **facts):
    with display:
        display.begin("forward", steps)
        for step in range(steps):
            display.update("forward", step + 1, **facts)
        display.end("forward")


# -- displays ----------------------------------------------------------------------------------------


def test_plain_lines_are_few_and_plain(monkeypatch):
    for name in (module, sys.modules["loschmidt.live.job"]):
        monkeypatch.setattr(name, "time", Clock(0.01))
    out = io.StringIO()
    run_of(live.Plain(out), loss=torch.tensor(0.25), note="a\rb\x1b[31m", none=None, bits=lambda: 1_000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "forward ..." and lines[-1].startswith("forward: done in ")
    assert all(" of 2,000, loss 0.25" in line and " left, " in line for line in lines[1:-1])
    assert 3 <= len(lines) <= 12 and "loss 0.25" in lines[-1] and "bits 1,000" in lines[-1]
    assert not set("\r\x1b") & set(out.getvalue())


def test_a_short_job_is_two_lines():
    out = io.StringIO()
    run_of(live.Plain(out))
    assert len(out.getvalue().splitlines()) == 2


def test_what_stopped_a_job_is_said():
    out = io.StringIO()
    with pytest.raises(lo.NonFinite), live.Plain(out) as display:
        display.begin("forward", 100)
        display.update("forward", 40)
        raise lo.NonFinite("the loss is nan")
    assert out.getvalue().splitlines()[-1] == "forward: stopped by NonFinite at 40 of 100"


def test_a_display_that_is_lent_ends_only_what_began_inside():
    out = io.StringIO()
    with live.Plain(out) as display:
        display.begin("all", 2)
        for part in ("a", "b"):
            with display:
                display.begin(part, 10)
        assert "all: stopped" not in out.getvalue() and "b: stopped at 0 of 10" in out.getvalue()
        display.end("all")
    assert out.getvalue().splitlines()[-1].startswith("all: done")


def test_a_closed_terminal_does_not_stop_the_run():
    out = io.StringIO()
    display = live.Plain(out)
    display.begin("forward", 10)
    out.close()
    display.update("forward", 1)
    display.end("forward")
    assert out.closed
    rich = live.Rich(console=Console(file=(out := io.StringIO()), force_terminal=True))
    with rich:
        rich.begin("forward", 10)
        out.close()
        rich.end("forward")
    assert out.closed  # and nothing was raised


def test_bars_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    run_of(live.Rich(console=console), 30, loss=0.5)
    assert "━" in out.getvalue() and "\x1b[" in out.getvalue()
    assert "forward" in out.getvalue() and "loss 0.5" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_a_notebook_has_one_output(monkeypatch):
    monkeypatch.setattr(module, "time", Clock())
    seen = []

    class Handle:
        def update(self, bundle, raw):
            seen.append(("update", bundle))

    def show(bundle, raw, display_id):
        seen.append(("display", bundle))
        return Handle()

    ipython = types.ModuleType("IPython")
    ipython.__spec__ = types.SimpleNamespace()
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = show
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    display = live.choose(True)
    assert isinstance(display, live.Notebook)
    run_of(display, 400, loss=0.5, name="<b>")
    kinds = [kind for kind, _ in seen]
    assert kinds[0] == "display" and set(kinds[1:]) == {"update"} and len(kinds) > 3
    html = seen[-1][1]["text/html"]
    assert '<progress max="1" value="1.0000">' in html and "loss 0.5" in html and "&lt;b&gt;" in html
    assert seen[-1][1]["text/plain"].startswith("forward: done")


def test_without_ipython_a_notebook_gets_lines(monkeypatch):
    monkeypatch.setattr(draw, "find_spec", lambda name: None)
    assert type(live.Notebook()) is live.Plain


def test_what_fits_where(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(live.choose(True)) is live.Plain
    assert type(live.choose(None)) is type(live.choose(False)) is live.Silent
    own = live.Silent()
    assert live.choose(own) is own and isinstance(own, live.Display)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert type(live.choose(True)) is type(live.choose(None)) is live.Rich
    monkeypatch.setenv("TERM", "dumb")
    assert type(live.choose(True)) is live.Plain
    with pytest.raises(InvalidSetting, match="progress='bar'"):
        live.choose("bar")


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_a_display_costs_under_one_percent_of_a_millisecond_step(kind):
    out = io.StringIO()
    display = live.Plain(out) if kind == "plain" else live.Rich(console=Console(file=out, force_terminal=True))
    with display:
        display.begin("forward", None)
        display.update("forward", 0)
        best = math.inf
        for _ in range(20):  # the best of short looks: others use this machine too
            began = time.perf_counter()
            for step in range(500):
                display.update("forward", step, loss=0.5)
            best = min(best, (time.perf_counter() - began) / 500)
    assert best < 1e-5


# -- metrics -----------------------------------------------------------------------------------------


def test_a_record_of_each_step_and_the_same_loss_both_ways(tmp_path):
    traj = small_run()
    path = tmp_path / "run" / "metrics.jsonl"
    with live.JSONL(path) as log:
        traj.seek(20, metrics=log).seek(5, metrics=[log])
    found = live.read(path)
    assert [(r["step"], r["direction"]) for r in found] == [
        *((s, "forward") for s in range(20)),
        *((s, "back") for s in range(19, 4, -1)),
    ]
    assert all(r.keys() == FIELDS.keys() for r in found)
    forward = {r["step"]: r for r in found if r["direction"] == "forward"}
    back = {r["step"]: r for r in found if r["direction"] == "back"}
    assert all(back[s]["loss"] == forward[s]["loss"] for s in back)
    assert all(back[s]["tape_bits"] == forward[s - 1]["tape_bits"] for s in back)
    assert forward[19]["energy"] == pytest.approx(forward[0]["energy"], abs=0.1) and back[19]["energy"] is None
    assert found[0]["lr"] == 0.01 and found[0]["journal_bytes"] > 0 and found[-1]["seconds"] > 0


def small_run():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 1), torch.randn(16, 4)
    opt = lo.optim.ECD(model.parameters(), lr=0.01, weight_decay=0.01, decoupled=True)
    return lo.Trajectory(model, opt, lambda m, b: (m(b[0]) - b[1]).square().mean(), lambda step: (x, x[:, :1]))


def test_lines_are_whole_after_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    loop = (
        "import sys; from loschmidt.live import JSONL\n"
        "log, step = JSONL(sys.argv[1]), 0\n"
        "while True: log({'step': step, 'loss': 1 / 3}); step += 1"
    )
    with subprocess.Popen([sys.executable, "-c", loop, str(path)]) as run:
        while not path.exists() or path.stat().st_size < 100_000:
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    assert path.read_bytes().endswith(b"\n")
    found = live.read(path)
    assert [r["step"] for r in found] == list(range(len(found))) and len(found) > 500
    with live.JSONL(path) as log:
        log({"step": len(found)})
    assert live.read(path)[-1]["step"] == len(found)
    assert sum(b"loschmidt" in line for line in path.read_bytes().splitlines()) == 1, "one header"


@pytest.mark.parametrize("cut", [1, 30, 100_000])
def test_a_torn_last_line_is_skipped_and_cut(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    with live.JSONL(path) as log:
        log({"step": 0})
        log({"step": 1, "text": "x" * 200_000})
    os.truncate(path, path.stat().st_size - cut)
    with pytest.warns(UserWarning, match="torn"):
        assert [r["step"] for r in live.read(path)] == [0]
    with live.JSONL(path) as log:
        log({"step": 1})
    assert [r["step"] for r in live.read(path)] == [0, 1]


def test_a_torn_header_is_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    live.JSONL(path).close()
    os.truncate(path, 9)
    with pytest.warns(UserWarning, match="torn"):
        assert live.read(path) == []
    live.JSONL(path).close()
    assert live.read(path) == [] and json.loads(path.read_text())["fields"] == FIELDS


def test_what_is_not_finite_is_null_and_tensors_are_numbers(tmp_path):
    with live.JSONL(tmp_path / "m", every=2) as log:
        log({"step": 0, "loss": math.nan, "lr": torch.tensor(math.inf), "list": torch.tensor([1.5, math.nan])})
        log({"step": 1, "loss": 1.0})
    found = live.read(tmp_path / "m")
    assert len(found) == 1 and found[0]["loss"] is None and found[0]["lr"] is None and found[0]["list"] == [1.5, None]


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "m"
    log = live.JSONL(path)
    log({"step": 0})
    real = log._file

    class Full:
        closed = False
        room = 10

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            done, self.room = real.write(data[: self.room]), 0
            return done

        def __getattr__(self, name):
            return getattr(real, name)

    log._file = Full()
    with pytest.raises(NotWritten, match="disk is full"):
        log({"step": 1})
    log._file = real
    log({"step": 2})
    log.close()
    assert [r["step"] for r in live.read(path)] == [0, 2]


def test_refusals(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine\n")
    for refused in (
        lambda: live.JSONL(notes),
        lambda: live.JSONL(tmp_path / "m", every=0),
        lambda: live.writers("metrics.jsonl"),
        lambda: live.writers([live.JSONL]),
    ):
        with pytest.raises(InvalidSetting, match="Remedy"):
            refused()
    assert notes.read_text() == "mine\n"
    with pytest.raises(NotWritten, match="Remedy"):
        live.JSONL(tmp_path)
    log = live.JSONL(tmp_path / "m")
    with pytest.raises(InvalidSetting, match="object"):
        log({"step": 0, "model": object()})
    log.close()
    with pytest.raises(InvalidSetting, match="closed"):
        log({"step": 0})
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes() + b'{"step\n{"step": 1}\n')
    for path in (notes, tmp_path / "none", tmp_path / "m"):
        with pytest.raises(DamagedFile):
            live.read(path)


def test_writers_are_spared_what_they_do_not_want(tmp_path):
    traj, seen = small_run(), []
    with live.JSONL(tmp_path / "m", every=4) as log:
        traj.seek(8, metrics=[log, seen.append])
    assert [r["step"] for r in live.read(tmp_path / "m")] == [0, 4] and len(seen) == 8
    live.send([log], types.SimpleNamespace(step=2), back=False)  # step 1 is not due: nothing is read, nothing written


def test_tensorboard_missing_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'loschmidt\[tensorboard\]'"):
        live.TensorBoard(tmp_path)


def test_tensorboard_gets_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with live.TensorBoard(tmp_path, every=2) as log:
        for step in range(4):
            log({"step": step, "direction": "forward", "loss": torch.tensor(1.0 / (step + 1)), "energy": None})
        log({"step": 2, "direction": "back", "loss": 1 / 3})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["forward/loss", "back/loss"]
    assert [(e.step, e.value) for e in events.Scalars("forward/loss")] == [(0, 1.0), (2, pytest.approx(1 / 3))]


def test_the_page_explains_each_field():
    page = (Path(__file__).parents[1] / "docs/live.md").read_text()
    for name, meaning in FIELDS.items():
        assert f"| `{name}` | {meaning} |".replace("forward or back |", "`forward` or `back` |") in page


def test_a_seek_shows_how_far_it_is_and_what_stopped_it(capsys):
    traj = small_run()
    traj.seek(9, progress=True)
    traj.seek(4, progress=True, on_step=lambda t: t.step == 6)
    traj.seek(4, progress=None)
    with pytest.raises(ZeroDivisionError):
        traj.seek(0, progress=True, metrics=lambda record: 1 / (record["step"] - 2))
    lines = [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == ["forward to step 9 ...", "forward to step 9: done"]
    assert lines[3].startswith("back to step 4: ended at step 6, loss")
    assert lines[5].startswith("back to step 0: stopped by ZeroDivisionError at 2 of 4, loss")
    assert len(lines) == 6
