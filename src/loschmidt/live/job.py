"""One job of a display: how far it is, and that in words."""

import time
from typing import Any


class Job:
    """A job that is shown.

    Attributes:
        total: units of work in all; None if that is not known.
        done: units done.
        facts: what to show beside, by name: numbers, tensors of one element, texts, or functions that give one.
        level: how many `with` blocks its display was in when the job began.
        note: why it ended, or None while it goes on.
    """

    def __init__(self, total: int | None, level: int = 0):
        self.total, self.level = total, level
        self.done, self.note = 0, None
        self.facts: dict[str, Any] = {}
        self.began = time.monotonic()
        self.seconds = 0.0

    @property
    def share(self) -> float | None:
        """What part of it is done, in [0, 1]; None if the total is not known."""
        return min(1.0, self.done / self.total) if self.total else None

    def end(self, note: str) -> None:
        """It is over; without a note, because it is complete."""
        self.seconds = time.monotonic() - self.began
        if not note and self.total is not None:
            self.done = self.total
        self.note = note or "done"

    def says(self, now: float) -> str:
        """Count, facts, time left and speed, on one line of printable characters."""
        facts = [f"{name} {text}" for name, text in ((k, fact(v)) for k, v in self.facts.items()) if text]
        if self.note is not None:
            words = [self.note if self.note != "done" else f"done in {span(self.seconds)}", *facts]
        else:
            words = [f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}", *facts]
            speed = self.done / (now - self.began) if now > self.began else 0.0
            if speed and self.total is not None:
                words.append(f"{span(max(0, self.total - self.done) / speed)} left")
            if speed:
                words.append(f"{speed:.3g}/s")
        return printable(", ".join(words))


def fact(value: Any) -> str:
    """A number or text as it is shown; a function is called first; None shows nothing."""
    if callable(value):
        value = value()
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"


def span(seconds: float) -> str:
    """A time in words: 8.5 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def printable(text: str) -> str:
    """The same without control characters: a log stays a log."""
    return "".join(c if c.isprintable() else " " for c in text)
