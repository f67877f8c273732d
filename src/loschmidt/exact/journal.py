"""The journal: what a step must leave behind that is not a remainder.

One record a step, last in first out: a checksum of the gradient (8 bytes), and, only when there is
something to say, an entry: hyper-parameters and masks that changed, data-dependent scalars, coarsened
lattices, module buffers that the forward pass changed, digests.
"""

import json
from array import array
from typing import Any

import torch

from .stack import floor_after

Entry = dict[str, Any]


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, float):
        return 8
    if isinstance(value, dict):
        return sum(len(str(k)) + _size(v) for k, v in value.items())
    return len(json.dumps(value, separators=(",", ":")))


class Journal:
    """A stack of step records.

    Attributes:
        first: steps below this are not held; going back stops there.
        verified_from: steps below this are not checked on the way back, since the state was edited after them.
        start: digests of the present state, if a run begins here; with the step that leaves it they go to its record.
        floor: the fewest steps held since the last `settle`: the records below it are those that were settled.
        era: how often it was settled.
    """

    def __init__(self, first: int = 0):
        self.first = self.verified_from = self.floor = first
        self.era = 0
        self.start: dict[str, str] | None = None
        self.checks = array("q")
        self.entries: dict[int, Entry] = {}
        self._entry_bytes = 0

    @property
    def steps(self) -> int:
        """The step that the next record will have."""
        return self.first + len(self.checks)

    @property
    def bytes(self) -> int:
        """Bytes of all records: 8 a step, plus the entries (tensors and floats as such, the rest as JSON)."""
        return 8 * len(self.checks) + self._entry_bytes

    def push(self, check: int, entry: Entry) -> None:
        """Record one step."""
        if self.start is not None:
            entry, self.start = {**entry, "start": self.start}, None
        if entry:
            self.entries[self.steps] = entry
            self._entry_bytes += _size(entry)
        self.checks.append(check)

    def peek(self) -> tuple[int, Entry]:
        """Checksum and entry of the last step."""
        return self.checks[-1], self.entries.get(self.steps - 1, {})

    def pop(self) -> Entry:
        """Forget the last step."""
        self.checks.pop()
        self.floor = min(self.floor, self.steps)
        entry = self.entries.pop(self.steps, {})
        self._entry_bytes -= _size(entry) if entry else 0
        self.start = entry.get("start") if self.steps >= self.verified_from else None
        self.verified_from = min(self.verified_from, self.steps)  # steps taken from here on are on the present path
        return entry

    def edited(self) -> None:
        """The state was edited at this step: the records below it are of another path."""
        self.verified_from, self.start = self.steps, None

    def annotate(self, **values: Any) -> None:
        """Add to the entry of the last step."""
        step = self.steps - 1
        self.floor = min(self.floor, step)
        entry = self.entries.get(step)
        self._entry_bytes -= _size(entry) if entry else 0
        self.entries[step] = {**(entry or {}), **values}
        self._entry_bytes += _size(self.entries[step])

    def settle(self) -> None:
        """All records are written."""
        self.floor = self.steps
        self.era += 1

    def returned(self, now: "Journal") -> "Journal":
        """A copy of this one, to take the place of `now` (a later state of the same journal)."""
        twin = self.copy()
        twin.floor, twin.era = floor_after(now.floor, now.era, self.floor, self.era, self.steps), now.era
        return twin

    def forget_below(self, step: int) -> None:
        """Hold only the records from `step` on."""
        step = min(max(step, self.first), self.steps)
        ended, left = self.entries.get(step - 1, {}), step < self.steps
        known = ended.get("digests") if left and step > self.verified_from else None
        self.checks = self.checks[step - self.first :]
        self.entries = {k: v for k, v in self.entries.items() if k >= step}
        if known is not None:  # of the step that is the first from now on
            self.entries[step] = {"start": known} | self.entries.get(step, {})
        self._entry_bytes = sum(map(_size, self.entries.values()))
        self.first, self.verified_from = step, max(self.verified_from, step)
        self.floor = max(self.floor, step)

    def copy(self) -> "Journal":
        """An independent copy; entries are shared, and never changed in place."""
        twin = Journal(self.first)
        twin.floor, twin.era, twin.start = self.floor, self.era, self.start
        twin.verified_from, twin.checks = self.verified_from, self.checks[:]
        twin.entries, twin._entry_bytes = dict(self.entries), self._entry_bytes
        return twin

    def state(self, first: int | None = None) -> dict[str, torch.Tensor]:
        """The journal as tensors: checks (int64), entries as UTF-8 JSON (uint8), and the tensors they name.

        Args:
            first: only the records of this step and later ones; None for all.
        """
        first = self.first if first is None else first
        held = {step: entry for step, entry in self.entries.items() if step >= first}
        tensors: dict[str, torch.Tensor] = {}

        def pack(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                name = f"t{len(tensors)}"
                tensors[name] = value
                return {"$tensor": name}
            if isinstance(value, dict):
                return {str(k): pack(v) for k, v in value.items()}
            return value

        text = {"first": first, "verified_from": self.verified_from, "entries": pack(held)}
        data = bytearray(json.dumps(text, separators=(",", ":")).encode())
        return tensors | {
            "checks": torch.tensor(self.checks[first - self.first :], dtype=torch.int64),
            "entries": torch.frombuffer(data, dtype=torch.uint8),
        }

    @classmethod
    def from_state(cls, tensors: dict[str, torch.Tensor]) -> "Journal":
        """Inverse of `state`."""

        def unpack(value: Any) -> Any:
            if isinstance(value, dict):
                return tensors[value["$tensor"]] if "$tensor" in value else {k: unpack(v) for k, v in value.items()}
            return value

        text = json.loads(bytes(tensors["entries"].cpu().numpy()))
        journal = cls(text["first"])
        journal.verified_from = text["verified_from"]
        journal.checks = array("q", tensors["checks"].tolist())
        journal.entries = {int(k): unpack(v) for k, v in text["entries"].items()}
        journal._entry_bytes = sum(map(_size, journal.entries.values()))
        return journal

    def extend(self, later: "Journal") -> None:
        """Append the records of a journal that begins where this one ends."""
        self.checks.extend(later.checks)
        self.entries |= later.entries
        self._entry_bytes += later._entry_bytes
