"""Claims as tables: the twelve with their verdicts, and the measures of one."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from .record import Measure
from .records import ClaimRecord, latest
from .registry import Built
from .topics import TWELVE

Records = Mapping[tuple[int, str], ClaimRecord]
_COLOURS = {"supported": "green", "refuted": "red", "partly": "yellow", "inconclusive": "yellow"}
_HEADS = ("", "claim", "verdict", "scale", "seeds")
_ARROW = (
    *("arrow: ", "arrow, returns: ", "arrow, un-generalises: ", "arrow, from a ", "arrow, turn before the onset"),
    *("arrow, equal-norm", "arrow, unperturbed", "arrow, random labels", "arrow, a run that never generalised"),
    *("arrow, lattice", "arrow, width", "arrow, ways back", "arrow, grokked"),
)
PAGES: Mapping[str, tuple[int, tuple[str, ...]]] = {"arrow": (10, _ARROW), "freezing": (3, ("",))}
"""Pages of docs/ that show a record: the claim, and how the names of the measures begin that are shown there."""


def verdicts(found: Mapping[int, Built], records: Records) -> list[tuple[str, str, str, str, str]]:
    """Rows of number, title, verdict, scale and seeds; of all twelve."""
    rows = []
    for id, topic in TWELVE.items():
        record = latest(records, id)
        title = found[id].claim.title if id in found else record.title if record else topic.title
        if record is None:
            rows.append((str(id), title, "not run" if id in found else "not yet built", "", ""))
        else:
            rows.append((str(id), title, verdict_of(record), record.scale, seeds_of(record)))
    return rows


def verdict_of(record: ClaimRecord) -> str:
    """A verdict in words, with what qualifies it."""
    words = record.verdict or "no verdict"
    return words if record.complete else f"{words} (incomplete)"


def seeds_of(record: ClaimRecord) -> str:
    """How many seeds, and how many runs were left out of the statistics."""
    out = len(record.left_out)
    return f"{len(record.seeds)}, {out} run{'s' * (out > 1)} left out" if out else str(len(record.seeds))


def table(found: Mapping[int, Built], records: Records) -> Table:
    """The twelve on a terminal."""
    out = Table(*_HEADS, title="The twelve claims")
    for id, title, verdict, scale, seeds in verdicts(found, records):
        colour = _COLOURS.get(verdict.split(" (")[0], "dim")
        out.add_row(id, Text(title), Text(verdict, style=colour), scale, seeds)
    return out


def markdown(found: Mapping[int, Built], records: Records) -> str:
    """The twelve as a Markdown table, for documentation."""
    return _markdown(_HEADS, verdicts(found, records))


def sentences(found: Mapping[int, Built]) -> str:
    """Which claim reads which sentences of the source, as a Markdown table."""
    rows = []
    for id, topic in TWELVE.items():
        said = found[id].claim if id in found else topic
        rows.append((str(id), said.title, ", ".join(map(str, said.sentences))))
    return _markdown(("", "claim", "sentences"), rows)


def result(record: ClaimRecord, begins: Sequence[str] = ("",)) -> str:
    """What a record found, as Markdown: its sub-verdicts, then its measures, of names that begin with one of these.

    Measures that decide nothing, controls among them, are folded up.
    """
    subs = [(s.name, s.verdict, s.why) for s in record.sub_verdicts if s.name.startswith(tuple(begins))]
    chosen = sorted((m for m in record.measures if m.name.startswith(tuple(begins))), key=_rank)
    decide = [(*_named(m), m.threshold, {None: "", True: "yes", False: "no"}[m.met]) for m in deciding(chosen)]
    rest = [_named(m) for m in chosen if not m.threshold]
    heads = ("measure", "value", "95 %", "n")
    tables = [_markdown(("", "verdict", "why"), subs)] if subs else []
    tables += [_markdown((*heads, "held against", "met"), decide)] if decide else []
    if rest:
        count = f"{len(rest)} more measures and controls"
        tables.append(f"<details><summary>{count}</summary>\n\n{_markdown(heads, rest)}\n\n</details>")
    return "\n\n".join(tables)


def _named(m: Measure) -> tuple[str, str, str, str]:
    return m.name + (f" ({m.unit})" if m.unit else ""), *_value(m), str(m.n)


def _value(m: Measure) -> tuple[str, str]:
    value = "none" if m.value is None else _number(m.value)
    return value, "" if m.interval is None else " to ".join(map(_number, m.interval))


def measures(several: Sequence[Measure]) -> Table:
    """Measures on a terminal: those that decide first, then the others, controls, and implementation checks."""
    out = Table(expand=True, show_lines=True)
    for head, share in (("measure, and what it is held against", 1), ("value (95 %)", 0), ("n", 0), ("met", 0)):
        out.add_column(head, ratio=share or None, no_wrap=not share)
    for measure in sorted(several, key=_rank):
        kind = "control" if measure.control else "" if measure.kind == "evidence" else measure.kind
        words = ", ".join(word for word in (measure.unit, kind) if word)
        name = Text(f"{measure.name} [{words}]" if words else measure.name)
        if measure.threshold:
            name.append(f"\n{measure.threshold}", style="dim")
        value = "-" if measure.value is None else _number(measure.value)
        if measure.interval is not None:
            value += f" ({' to '.join(map(_number, measure.interval))})"
        met = {None: "", True: "yes", False: "no"}[measure.met]
        colour = {None: "", True: "green", False: "red"}[measure.met]
        out.add_row(name, value, str(measure.n), Text(met, style=colour))
    return out


def deciding(several: Sequence[Measure]) -> list[Measure]:
    """Those that are held against something."""
    return [measure for measure in several if measure.threshold]


def _rank(measure: Measure) -> tuple[bool, bool, bool]:
    return measure.kind != "evidence", measure.control, not measure.threshold


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 and float(x).is_integer() else f"{x:.4g}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(" ".join(line.split()) for line in lines)
