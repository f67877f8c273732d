"""`loschmidt runs`: what lies in the folders of runs."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cyclopts import App
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import DamagedFile, InvalidSetting, LoschmidtError, printable
from ..files import refuse_unwritable, size, write_json
from ..trajectory.manifest import COPY, MANIFEST, Manifest, is_run, read_manifest, strays
from ..trajectory.prune import prune as prune_run
from ..trajectory.salvage import survey

runs = App(name="runs", help="Runs in folders (`Trajectory(tape=FOLDER)`): list them, look at one, check it, prune it.")


@runs.command(name="list")
def list_(folder: Path, *, json: Path | None = None) -> int:
    """The runs in a folder, itself among them.

    Examples:

        loschmidt runs list experiments

    Parameters
    ----------
    folder
        Where to look, at any depth.
    json
        Write the list to this file, too.
    """
    _require_folder(folder, json)
    found = [_facts(path) for path in sorted(_runs_below(folder))]
    _say(folder, found, json)
    return 0


@runs.command
def show(folder: Path, *, json: Path | None = None) -> int:
    """One run: its commits and segments. Reads the manifest only, and disturbs nobody.

    Examples:

        loschmidt runs show experiments/a

    Parameters
    ----------
    folder
        Of the run.
    json
        Write it to this file, too.
    """
    _require_run(folder, json)
    facts, manifest = _facts(folder), read_manifest(folder)
    console = Console()
    _say_facts(console, facts)
    out = _table("commit", "at step", "back to", "tape, bits", "time")
    for c in manifest.commits:
        out.add_row(str(c.number), f"{c.step:,}", f"{c.first:,}", f"{c.bits:,.0f}", _moment(c.time))
    console.print(out)
    out = _table("file", "bytes", "of steps")
    for s in (*manifest.tape, *manifest.journal):
        out.add_row(escape(s.name), f"{s.bytes:,}", f"{s.steps[0]:,} to {s.steps[1]:,}")
    console.print(out)
    if json is not None:
        write_json(json, facts | {"manifest": manifest.model_dump(mode="json")})
    return 0


@runs.command
def verify(folder: Path, *, json: Path | None = None) -> int:
    """Read every byte of a run and compare it with its digest. Exit code 1 if anything is not what was written.

    Examples:

        loschmidt runs verify experiments/a

    Parameters
    ----------
    folder
        Of the run.
    json
        Write what was found to this file, too.
    """
    _require_run(folder, json)
    for _ in range(3):  # a process that has it open may commit meanwhile
        found = survey(folder)
        if not found.damaged or survey(folder).manifest == found.manifest:
            break
    count = len(list(found.manifest.files()))
    stray = strays(folder, found.manifest)
    print(printable(f"{folder}: {found}." if found.damaged else f"{folder}: all {count + 2} files are whole."))
    if stray:
        print(f"{len(stray)} stray files (a kill left them, or a salvage): {', '.join(stray)}. `prune` removes them.")
    if json is not None:
        reach = {"step": found.commit.step, "first": found.first} if found.commit else None
        write_json(json, {"folder": str(folder), "damaged": found.damaged, "reach": reach, "strays": stray})
    return 1 if found.damaged else 0


@runs.command
def prune(folder: Path, *, before: int | None = None, json: Path | None = None) -> int:
    """Remove files that a run does not need; and, if asked, the way back below a step.

    Examples:

        loschmidt runs prune experiments/a

        loschmidt runs prune experiments/a --before 10000

    Parameters
    ----------
    folder
        Of the run; nobody may have it open.
    before
        Give up going back below this step. The run keeps its state and goes on as ever.
    json
        Write what was removed to this file, too.
    """
    _require_run(folder, json)
    done = prune_run(folder, before)
    print(
        f"{printable(folder)}: {len(done.removed)} files removed, {size(done.freed)} freed; "
        f"goes back to step {done.first:,}."
    )
    if json is not None:
        write_json(json, {"folder": str(folder)} | asdict(done))
    return 0


def _runs_below(folder: Path) -> Iterator[Path]:
    """Folders with a manifest or its copy. Links are not followed, and what may not be read is passed over."""
    left = [folder]
    while left:
        here, names = left.pop(), set[str]()
        with suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                names.add(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    left.append(here / entry.name)
        if names & {MANIFEST, COPY}:
            yield here


def _require_folder(folder: Path, json: Path | None) -> None:
    if not folder.is_dir():
        seen = f"{folder} is not a folder." if folder.exists() else f"there is no folder {folder}."
        raise InvalidSetting(seen, "give the folder that was given as tape=, or one above it.")
    if json is not None:
        refuse_unwritable(json)


def _require_run(folder: Path, json: Path | None) -> None:
    _require_folder(folder, json)
    if not is_run(folder):
        where = "the current folder" if folder == Path() else f"the folder {folder}"
        raise DamagedFile(f"there is no run in {where}.", f"look for one: `loschmidt runs list {folder}`.")


def _facts(folder: Path) -> dict[str, Any]:
    try:
        manifest: Manifest = read_manifest(folder)
    except LoschmidtError as error:
        return {"folder": str(folder), "trouble": error.seen}
    last = manifest.last
    return {
        "folder": str(folder),
        "optimizer": manifest.optimizer,
        "parameters": manifest.parameters,
        "step": last.step,
        "back_to": last.first,
        "tape_bits": last.bits,
        "tape_bytes": sum(s.bytes for s in manifest.tape),
        "bytes": sum(f.bytes for f in manifest.files()),
        "created": manifest.created,
        "committed": last.time,
        "loschmidt": manifest.loschmidt,
    }


_COLUMNS = ("folder", "optimizer", "step", "back_to", "bytes", "committed")


def _say(folder: Path, rows: list[dict[str, Any]], json: Path | None) -> None:
    """As a table, or as lines where a table would be too wide; below it what cannot be read."""
    console, whole = Console(), [row for row in rows if "trouble" not in row]
    if not rows:
        print(f"there is no run in {printable(folder)}.")
    out = _table(*(name.replace("_", " ") for name in _COLUMNS))
    for row in whole:
        out.add_row(*(_text(name, row[name]) for name in _COLUMNS))
    if whole and _fits(console, out):
        console.print(out)
    else:
        for row in whole:
            _say_facts(console, {name: row[name] for name in _COLUMNS})
            console.print()
    for row in rows:
        if "trouble" in row:
            console.print(f"{_text('folder', row['folder'])}: {_text('', row['trouble'])}", highlight=False)
    if json is not None:
        write_json(json, {"runs": rows})


_FOLDED = {"folder": 18, "file": 18, "time": 10}
"""Columns that may take several lines, and how narrow they may become."""


def _table(*names: str) -> Table:
    """A table whose headings and numbers are not cut."""
    out = Table(box=box.SIMPLE)
    for name in names:
        out.add_column(name, overflow="fold", no_wrap=name not in _FOLDED, min_width=_FOLDED.get(name, len(name)))
    return out


def _fits(console: Console, table: Table) -> bool:
    for column in table.columns:
        column.max_width = _FOLDED.get(column.header)
    narrow = table.__rich_measure__(console, console.options.update(max_width=1 << 16)).minimum
    for column in table.columns:
        column.max_width = None
    return narrow <= console.width


def _say_facts(console: Console, facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        console.print(f"{name.replace('_', ' '):>12}  {_text(name, value)}", highlight=False, soft_wrap=True)


def _text(name: str, value: Any) -> str:
    if name.endswith("bytes") and value != "":
        return size(value)
    if name in ("committed", "created") and value != "":
        return _moment(value)
    return f"{value:,.0f}" if isinstance(value, (int, float)) else escape(printable(value))


def _moment(time: str) -> str:
    """The time of a manifest as people write it: to the minute; UTC unless it says otherwise."""
    return escape(time[:16].replace("T", " ") + time[19:].replace("+00:00", ""))
