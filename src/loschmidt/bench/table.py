"""The results of a bench as tables, one for each section."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..files import size

Found = dict[str, Any]


def tables(results: Found) -> Group:
    """All sections that have anything to show, in order."""
    return Group(*_tables(results))


def markdown(results: Found) -> str:
    """The same as Markdown, for documentation."""
    return "\n\n".join(_markdown(table) for table in _tables(results))


def _tables(results: Found) -> Iterator[Table]:
    for name, found in results["sections"].items():
        yield from _SECTIONS[name](found)


def _table(title: str, *columns: str) -> Table:
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    out.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        out.add_column(column, justify="right")
    return out


def _markdown(table: Table) -> str:
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    rows = zip(*([Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns), strict=True)
    lines = [f"**{table.title}**", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", str(table.caption)] if table.caption else lines)


# -- sections --------------------------------------------------------------------------------------------


def _steps(found: Found) -> Iterator[Table]:
    rows = found.get("rows", ())
    copy = (
        f"Copying a large tensor: {size(found['copy']['bytes_per_second'])} a second, read and written." if rows else ""
    )
    for count in dict.fromkeys(row["parameters"] for row in rows):
        mine = [row for row in rows if row["parameters"] == count]
        out = _table(f"An optimizer's step, {count:,} parameters", "", *(two_lines(r["optimizer"]) for r in mine))
        for name, fact in _STEPS.items():
            out.add_row(name, *map(fact, mine))
        out.caption, out.caption_justify = copy, "left"
        yield out


def two_lines(name: str) -> str:
    """For a narrow column."""
    return name.replace(" ", "\n", 1)


def _over_fused(row: Found) -> str:
    """In the colour of its verdict, at the size that the target is for."""
    return _against(row["step_over_fused"], row["target_over_fused"] if row["parameters"] == 10_000_000 else None)


_STEPS: dict[str, Callable[[Found], str]] = {
    "ms": lambda r: _number(1e3 * r["seconds"]["step"]["median"]),
    "ms, torch fused": lambda r: _number(1e3 * r["seconds"]["fused"]["median"]),
    "ours / fused": _over_fused,
    "... at 10 M at most": lambda r: f"{r['target_over_fused']:.1f}",
    "ours / foreach": lambda r: _range(r["step_over_foreach"]),
    "back / step": lambda r: _range(r["unstep_over_step"]),
    "tape, bits": lambda r: f"{r['tape_bits_per_parameter_step']:.5f}",
    "... bound": lambda r: f"{r['price_bits_per_parameter_step']:.5f}",
    "bytes held": lambda r: f"{r['resident_bytes_per_parameter']['resident']:.1f}",
    "... above torch": lambda r: _verdict(
        f"{r['resident_over_twin_bytes_per_parameter']:.1f}",
        r["resident_over_twin_bytes_per_parameter"] <= r["target_resident_over_twin"],
    ),
    "... at most": lambda r: f"{r['target_resident_over_twin']}",
    "bytes moved": lambda r: f"{r['bytes_moved_per_parameter']['ours']}",
    "... torch": lambda r: f"{r['bytes_moved_per_parameter']['fused']}",
    "share of copy": lambda r: f"{r['share_of_copy_bandwidth']['ours']:.0%}",
    "... torch fused": lambda r: f"{r['share_of_copy_bandwidth']['fused']:.0%}",
}


def _training(found: Found) -> Iterator[Table]:
    rows: Sequence[Found] = found.get("rows", ())
    if not rows:
        return
    out = _table("A training step of the small GPT", "", *(row["optimizer"] for row in rows))
    facts: dict[str, Callable[[Found], str]] = {
        "ms, torch fused": lambda r: _number(1e3 * r["seconds"]["fused"]["median"]),
        "ms, ours": lambda r: _number(1e3 * r["seconds"]["step"]["median"]),
        "ours / fused": lambda r: _against(r["step_over_fused"], r["target_step_over_fused"]),
        "back / step": lambda r: _against(r["unstep_over_step"], r["target_back_over_forward"]),
        "by seek / fused": lambda r: _against(r["seek_over_fused"], r["target_step_over_fused"]),
        "by seek, back / forward": lambda r: _against(r["seek_back_over_forward"], r["target_back_over_forward"]),
    }
    for name, fact in facts.items():
        out.add_row(name, *map(fact, rows))
    yield out


def _gpt2(found: Found) -> Iterator[Table]:
    if "step_over_fused" not in found:
        return
    ours, torchs, shape = found["ours"], found["torch"], found["shape"]
    out = _table(
        f"GPT shapes, {ours['parameters']:,} parameters, {shape['batch_size']} x {shape['length']} symbols a step",
        *"  ",
    )
    for name, cell in {
        f"{shape['steps']} steps there and back": "[green]exact[/]" if ours["exact"] else "[red]not the same bits[/]",
        "s, torch fused": _number(torchs["step_seconds"]["median"]),
        "s, ours": f"{_number(ours['step_seconds']['median'])} ({found['step_over_fused']:.2f} x)",
        "... of it the optimizer": _number(ours["optimizer_step_seconds"]["median"]),
        "s, back": f"{_number(ours['back_seconds']['median'])} ({found['back_over_forward']:.2f} x)",
        "bits/parameter/step": f"{ours['tape_bits_per_parameter_step']:.5f}",
        "... bound": f"{ours['price_bits_per_parameter_step']:.5f}",
        "bytes held/parameter": f"{ours['resident_bytes_per_parameter']:.1f}",
        "peak memory, ours": _size(ours["peak_bytes"]),
        "peak memory, torch": _size(torchs["peak_bytes"]),
    }.items():
        out.add_row(name, cell)
    yield out


def _alternatives(found: Found) -> Iterator[Table]:
    rows = found.get("rows", ())
    if not rows:
        return
    out = _table(
        f"Ways back, AdamW, {rows[0]['parameters']:,} parameters, {rows[0]['steps']} steps",
        *("", "bytes/step", "constant", "ms\nforward", "ms back\nonce", "s back,\nall", "exact"),
    )
    for row in rows:
        out.add_row(
            row["way"],
            size(row["bytes_per_step"]),
            size(row["constant_bytes"]),
            _number(1e3 * row["forward_seconds"]["median"]),
            _number(1e3 * row["back_once_seconds"]["median"]),
            _number(row["sweep_seconds"]),
            "yes" if row["exact"] else "[red]no[/]",
        )
    yield out


def _growth(found: Found) -> Iterator[Table]:
    curves = [curve for curve in found.get("curves", ()) if curve["points"]]
    if not curves:
        return
    out = _table("ms of an optimizer's step", "parameters", *(x for c in curves for x in (c["optimizer"], "/ fused")))
    for count in sorted({p["parameters"] for c in curves for p in c["points"]}):
        cells = []
        for curve in curves:
            point = next((p for p in curve["points"] if p["parameters"] == count), None)
            cells += (
                ["-", "-"]
                if point is None
                else [_number(1e3 * point["seconds"]["step"]["median"]), _range(point["step_over_fused"])]
            )
        out.add_row(f"{count:,}", *cells)
    out.add_row("exponent", *(x for c in curves for x in (_exponent(c.get("ours")), _exponent(c.get("fused")))))
    yield out


_SECTIONS: dict[str, Callable[[Found], Iterator[Table]]] = {
    "steps": _steps,
    "training": _training,
    "gpt2": _gpt2,
    "alternatives": _alternatives,
    "growth": _growth,
}


# -- cells -----------------------------------------------------------------------------------------------


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _range(x: Found) -> str:
    return f"{x['median']:.2f}"


def _against(x: Found, target: float | None) -> str:
    return _range(x) if target is None else _verdict(_range(x), x["median"] <= target)


def _verdict(cell: str, good: bool) -> str:
    return f"[{'green' if good else 'red'}]{cell}[/]"


def _exponent(fit: Found | None) -> str:
    if fit is None:
        return "-"
    half = "" if fit["interval"] is None else f" ± {(fit['interval'][1] - fit['interval'][0]) / 2:.2f}"
    return f"{fit['slope']:.2f}{half}"


def _size(count: int | None) -> str:
    return "-" if count is None else size(count)
