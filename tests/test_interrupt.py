"""Ctrl-C at any moment: the run stands at a step, and goes on and back as if nothing had happened."""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

import loschmidt as lo
from loschmidt import interrupt
from loschmidt.optim import serial
from reference.bits import differences
from reference.optimizers import RECORDS, Loop

ROOMS = tuple(str(Path(lo.__file__).parent / room) for room in ("optim", "exact"))
STEPS = 2


@pytest.fixture(autouse=True)
def pythons_own_handler():
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nothing of ours is left
    signal.signal(signal.SIGINT, kept)


def there_and_back(loop):
    """With a closure, so that the passes of a step belong to it, and an interrupt in them takes them back."""
    for step in range(STEPS):
        loop.optimizer.step(lambda step=step: loop.passes(step))
    loop.back(STEPS)


def in_and_out(loop):
    """What else changes a state: groups, edits, loading."""
    opt = loop.optimizer
    state, snapshot = opt.state_dict(), serial.snapshot(opt)
    opt.add_param_group({"params": [("added", torch.nn.Parameter(torch.ones(2)))]})
    serial.restore(opt, snapshot)
    opt.load_state_dict(state)
    opt.adopt()


@contextmanager
def interrupted_at_line(number):
    """Send SIGINT as the line of this number, counted from now, is reached; gives what counts the lines."""
    lines = [0]

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(ROOMS):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == number:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(None)


class Interrupted:
    """A loop, and its bits at the start and after some steps, that something is done to and interrupted in."""

    def __init__(self, name, do):
        self.name, self.do = name, do
        loop = self.fresh()
        self.start, self.turn = loop.bits(), loop.forward(STEPS).bits()
        do(loop.back(STEPS))
        with interrupted_at_line(None) as lines:
            do(loop)
        self.lines = lines[0]

    def fresh(self):
        return Loop(self.name, **RECORDS[self.name].lossy)

    def wrong(self, count, lines=None):
        """Moments, out of `count` spread evenly, after which other bits come out at the turn or at the start.

        `lines`: among this many, from the beginning.
        """
        moments = [1 + (2 * i + 1) * (lines or self.lines) // (2 * count) for i in range(count)]
        return [number for number in moments if not self.returns(number)]

    def returns(self, number):
        loop = self.fresh()
        with interrupted_at_line(number), suppress(KeyboardInterrupt):
            self.do(loop)
        try:
            turn = loop.forward(STEPS - loop.optimizer.steps).bits()
            start = loop.back(STEPS).bits()
        except lo.LoschmidtError:
            return False
        added = set(turn) - set(self.turn)  # a group, or none of it
        return not set(differences(turn, self.turn) + differences(start, self.start)) - added


@pytest.mark.parametrize("name", ["sgd", "adamw", "ecd-rescale"])
def test_steps_interrupted_anywhere_go_on_and_back(name):
    assert Interrupted(name, there_and_back).wrong(40) == []


def test_the_first_pass_interrupted_anywhere_goes_on_and_back():
    """In it buffers are seen for the first time."""
    assert Interrupted("sgd", there_and_back).wrong(60, lines=420) == []


def test_changes_of_state_interrupted_anywhere_are_made_or_not():
    assert Interrupted("sgd", in_and_out).wrong(60) == []


def test_without_critical_blocks_an_interrupt_leaves_other_bits(monkeypatch):
    monkeypatch.setattr(interrupt, "_present", lambda: None)
    assert Interrupted("sgd", there_and_back).wrong(20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["sgd", "ecd"])
def test_a_plain_loop_interrupted_by_a_timer_comes_back(name):
    """From outside, at moments that nobody chose: the passes, torch's own code, the ends of blocks.

    Python drops what is raised while it collects garbage, so a few interrupts may never arrive.
    """
    loop, caught = Loop(name), 0
    start = loop.bits()
    kept = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        for moment in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0003 * moment)
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    loop.forward(4).back(3)
            except KeyboardInterrupt:
                caught += 1
                torch.set_grad_enabled(True)  # torch's own no_grad, in the passes, may have been cut short
        assert caught >= 55
        assert not differences(start, loop.forward(1).back(loop.optimizer.steps).bits())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


# -- the mechanism ---------------------------------------------------------------------------------------


def interrupted(block):
    """The lines of a block that were reached, when it is interrupted at its first."""
    reached = []
    try:
        block(reached)
    except KeyboardInterrupt:
        reached.append("interrupted")
    return reached


def press():
    signal.raise_signal(signal.SIGINT)


def test_a_critical_block_is_finished_first():
    def block(reached):
        with interrupt.critical():
            press()
            with interrupt.critical():
                press()
            reached.append("inside")
        reached.append("after")

    assert interrupted(block) == ["inside", "interrupted"]


def test_a_part_of_it_may_be_interrupted_at_once():
    def block(reached):
        with interrupt.critical() as section:
            try:
                with section.interruptible():
                    press()
                    reached.append("after")
            finally:
                press()
                reached.append("put back")

    assert interrupted(block) == ["put back", "interrupted"]


def test_a_part_of_a_block_inside_another_may_not():
    def block(reached):
        with interrupt.critical():
            with interrupt.critical() as inner, inner.interruptible():
                press()
                reached.append("inner")
            reached.append("outer")

    assert interrupted(block) == ["inner", "outer", "interrupted"]


def test_an_error_does_not_swallow_an_interrupt():
    def block(reached):
        with interrupt.critical():
            press()
            raise ValueError("in the block")

    assert interrupted(block) == ["interrupted"]


def test_patience_is_for_one_interrupt():
    def block(reached):
        with interrupt.patient() as noted:
            press()
            reached.append(noted())
            with interrupt.critical():
                press()
                reached.append("inside")
            reached.append("after")

    assert interrupted(block) == [True, "inside", "interrupted"]


def test_a_handler_of_the_user_s_is_called_after_the_block():
    calls = []
    kept = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    with interrupt.critical():
        press()
        assert not calls
    assert calls
    with interrupt.patient() as noted:
        press()
        assert not noted()
    assert len(calls) == 2
    signal.signal(signal.SIGINT, kept)


def test_other_threads_are_left_alone():
    seen = []

    def work():
        with interrupt.critical() as section, section.interruptible(), interrupt.patient() as noted:
            seen.append(noted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
