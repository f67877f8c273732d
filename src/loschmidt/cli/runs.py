"""`loschmidt runs`: what lies in the folders of runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console
from rich.table import Table

from ..errors import DamagedFile, InvalidSetting, LoschmidtError
from ..files import refuse_unwritable, size, write_json
from ..trajectory.manifest import MANIFEST, Manifest, is_run, read_manifest, strays
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
    found = [_facts(path) for path in sorted({p.parent for p in folder.rglob(MANIFEST)})]
    _say(found, ("folder", "optimizer", "step", "back_to", "tape_bytes", "bytes", "committed", "trouble"), json)
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
    for name, value in facts.items():
        console.print(f"{name:>12}  {_text(name, value)}", highlight=False)
    out = Table("commit", "at step", "back to step", "tape, bits", "time")
    for c in manifest.commits:
        out.add_row(str(c.number), f"{c.step:,}", f"{c.first:,}", f"{c.bits:,.0f}", c.time)
    console.print(out)
    out = Table("file", "bytes", "of steps")
    for s in (*manifest.tape, *manifest.journal):
        out.add_row(s.name, f"{s.bytes:,}", f"{s.steps[0]:,} to {s.steps[1]:,}")
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
    print(f"{folder}: {found}." if found.damaged else f"{folder}: all {count + 2} files are whole.")
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
    print(f"{folder}: {len(done.removed)} files removed, {size(done.freed)} freed; goes back to step {done.first:,}.")
    if json is not None:
        write_json(json, {"folder": str(folder)} | asdict(done))
    return 0


def _require_folder(folder: Path, json: Path | None) -> None:
    if not folder.is_dir():
        raise InvalidSetting(f"{folder} is not a folder.", "give the folder that was given as tape=, or one above it.")
    if json is not None:
        refuse_unwritable(json)


def _require_run(folder: Path, json: Path | None) -> None:
    _require_folder(folder, json)
    if not is_run(folder):
        raise DamagedFile(f"there is no run in {folder}.", f"look for one: loschmidt runs list {folder}.")


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


def _say(rows: list[dict[str, Any]], columns: tuple[str, ...], json: Path | None) -> None:
    shown = [c for c in columns if any(c in row for row in rows)]
    if not rows:
        print("no runs here.")
    else:
        out = Table(*(name.replace("_", " ") for name in shown))
        for row in rows:
            out.add_row(*(_text(name, row.get(name, "")) for name in shown))
        Console().print(out)
    if json is not None:
        write_json(json, {"runs": rows})


def _text(name: str, value: Any) -> str:
    if name.endswith("bytes") and value != "":
        return size(value)
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)
