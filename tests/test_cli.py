"""The command line: its main job at a small scale, its output, its refusals."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from loschmidt.cli import invocation, main

FIELDS = {
    *("task", "optimizer", "steps", "parameters", "exact", "differing_bits", "tape_bits", "bits_per_parameter_step"),
    *("theory_bits_per_parameter_step", "journal_bytes", "forward_seconds", "backward_seconds", "start_digest"),
    *("end_digest", "turn", "returned", "perturbed", "energy", "float_return_error"),
}
LOOK = {"train_loss", "train_accuracy", "test_accuracy"}
COMMAND = [sys.executable, "-m", "loschmidt"]


def test_a_record_holds_the_command_line_as_a_shell_takes_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "claims", "run", "--part", "arrow: grokked", "--out=/a/b/results"])
    assert invocation.command() == "loschmidt claims run --part 'arrow: grokked' --out=results"


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    command = [*COMMAND, "echo", "--steps", "60", "--out", str(folder / "out"), "--json", str(folder / "e.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done, json.loads((folder / "e.json").read_text()), folder


def test_echo_returns_exactly_and_says_so(echo):
    done, results, folder = echo
    assert done.returncode == 0, done.stderr
    assert [run["optimizer"] for run in results["runs"]] == ["ECD", "SGD", "AdamW"]
    for run in results["runs"]:
        assert run.keys() >= FIELDS
        assert run["exact"] is True and run["differing_bits"] == 0 and run["start_digest"] == run["end_digest"]
        assert run["turn_digest"] != run["start_digest"]
        assert all(run[k].keys() >= LOOK for k in ("turn", "returned", "perturbed"))
        assert run["returned"] != run["turn"] and run["parameters"] == 31_056
        assert abs(run["bits_per_parameter_step"] - run["theory_bits_per_parameter_step"]) < 1e-6
    assert results["environment"]["torch"] and results["runs"][0]["energy"]["largest_change"] < 1e-2
    assert "returned exactly?" in done.stdout and "yes" in done.stdout
    assert (folder / "out/echo.png").read_bytes().startswith(b"\x89PNG")


def test_no_bars_in_a_log(echo):
    done = echo[0]
    assert "\x1b" not in done.stdout + done.stderr and "━━" not in done.stderr
    assert "ECD training: done" in done.stderr


def test_bars_on_a_terminal(tmp_path):
    primary, secondary = pty.openpty()
    command = [*COMMAND, "echo", "--steps", "30", "--optimizer", "SGD", "--out", str(tmp_path)]
    terminal = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=secondary, env=terminal) as run:
        os.close(secondary)
        seen = b""
        while True:
            try:
                chunk = os.read(primary, 4096)
            except OSError:
                break
            seen += chunk
            if not chunk:
                break
    assert run.returncode == 0
    assert "━".encode() in seen and b"SGD winding back" in seen


def test_interrupt_keeps_what_was_finished(tmp_path):
    command = [*COMMAND, "echo", "--steps", "4000", "--optimizer", "SGD", "ECD", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while "training ..." not in run.stderr.readline():
            pass
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Interrupted" in out and json.loads((tmp_path / "echo.json").read_text())["interrupted"] is True


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--steps", "0"], "positive"),
        (["--task", "chess"], "modular-addition"),
        (["--optimizer", "Lion"], "AdamW"),
        (["--batch-size", "0"], "positive"),
        (["--perturb", "0"], "1e-6"),
    ],
)
def test_refusals_name_a_remedy(arguments, word, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["echo", *arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Remedy" in message and word in message


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["echo", "--stepps", "3"])
    assert stop.value.code != 0


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["echo", "--help"])
    assert stop.value.code == 0
    assert "loschmidt echo --optimizer" in capsys.readouterr().out
