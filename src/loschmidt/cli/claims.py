"""`loschmidt claims`: the claims, their tests, and what came of them."""

from collections import Counter
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..claims import grok_search as search
from ..claims import plan_predictions, plan_run, records, registry, run_claims, table
from ..claims import predict as run_predictions
from ..claims.records import ClaimRecord
from ..claims.run import NOT_RUN
from ..errors import DamagedFile, InvalidSetting
from ..files import refuse_unwritable, write_json
from ..live.job import span
from .invocation import command
from .report import report

claims = App(name="claims", help="Twelve claims about whether training can be undone: list, run, and judge them.")

claims.command(report)  # `loschmidt report`, where one looks for it

RESULTS = Path("results")


@claims.command(name="list")
def list_(*, records: Path = RESULTS, json: Path | None = None) -> int:
    """The twelve claims, and the verdicts that there are.

    Examples:

        loschmidt claims list

        loschmidt claims list --records out/claims

    Parameters
    ----------
    records
        Folder with the records. Of several scales the largest speaks.
    json
        Write the table to this file, too.
    """
    if json is not None:
        refuse_unwritable(json)
    built, there = registry.built(), _read(records)
    Console().print(table.table(built, there))
    if json is not None:
        write_json(json, {"claims": [_row(row, there) for row in table.verdicts(built, there)]})
    return 0


def _row(row: tuple[str, ...], there: dict[tuple[int, str], ClaimRecord]) -> dict[str, Any]:
    """A line of the table as JSON: numbers are numbers, and what is not there is None or empty."""
    id, title, verdict, scale, _ = row
    record = records.latest(there, int(id))
    seeds = record.seeds if record else []
    return {"id": int(id), "title": title, "verdict": verdict, "scale": scale or None, "seeds": seeds}


@claims.command
def show(id: int, *, records: Path = RESULTS, json: Path | None = None) -> int:
    """One claim: what is asked, what would refute it, how it is tested, and what was found.

    Examples:

        loschmidt claims show 2

    Parameters
    ----------
    id
        1 to 12.
    records
        Folder with the records. Of several scales the largest speaks.
    json
        Write its record to this file, too.
    """
    if json is not None:
        refuse_unwritable(json)
    record = latest(records, id)
    claim = registry.find(id).claim if record is None or id in registry.built() else record
    console = Console()
    console.print(Text(f"Claim {id}: {claim.title}", style="bold"))
    for name in ("statement", "question", "prediction", "falsifier", "protocol", "rule", "outside"):
        _say(console, name, getattr(claim, name))
    _say(console, "thresholds", ", ".join(f"{name} = {value:g}" for name, value in claim.thresholds.items()))
    if record is None:
        console.print(f"\nNot run: loschmidt claims run {id}")
    else:
        _say_record(console, record, everything=True)
    if json is not None:
        write_json(json, {"claims": [record.json_entry()] if record else []})
    return 0


@claims.command
def run(
    *ids: int,
    scale: str = "laptop",
    seeds: int | None = None,
    workers: int = 2,
    out: Path = Path("out/claims"),
    part: list[str] | None = None,
    json: Path | None = None,
) -> int:
    """Put claims to the test. What is finished in `out` is not run again.

    Examples:

        loschmidt claims run 2

        loschmidt claims run 2 10 --scale smoke --seeds 2

        loschmidt claims run --scale laptop --out results

        loschmidt claims run 10 --out results --part arrow

    Exit code: 0 if every job was finished and every claim got a verdict, whatever it says; 1 if not; 130 after Ctrl-C
    (what was finished is kept, and judged if it can be).

    Parameters
    ----------
    ids
        1 to 12. Default: all that have this scale.
    scale
        smoke (seconds, tests the code), laptop (minutes on 2 cores) or full (hours, or a GPU).
    seeds
        How many, counted from the first of the claim. Default: as many as it says.
    workers
        Processes, one torch thread each.
    out
        Folder of results: a record of each claim, and below it, in jobs/, a file of each finished job.
    part
        Run only parts whose names begin with this (may be given more than once); the evidence of the others is taken
        over from the record in out, of whatever version of the code it is.
    json
        A second place for the records, all in one file.
    """
    console = Console()
    if json is not None:
        refuse_unwritable(json)
    planned = plan_run(ids, scale, seeds, workers, out, parts=part or ())
    total = sum(map(len, planned.jobs.values()))
    before = sum(job.key in planned.found[id].by_key for id, several in planned.jobs.items() for job in several)
    finished = f", {before} finished before" if before else ""
    finished += f", {len(planned.todo)} of them chosen" if part else ""
    names = ", ".join(map(str, planned.jobs))
    processes = f"{workers} process{'es' * (workers > 1)}"
    long = f"about {span(planned.seconds)} with {processes}" if planned.todo else "nothing is left to run"
    console.print(f"Claim{'s' * (len(planned.jobs) > 1)} {names}, {scale}: {total} jobs{finished}; {long}.")
    for id, parts in planned.waiting.items():
        console.print(
            f"Claim {id}: {len(parts)} parts wait for predictions: loschmidt claims predict {id} --scale {scale}."
        )
    for reason, count in Counter(planned.withheld.values()).items():
        console.print(Text(f"NOT RUN, {count} jobs: {reason}", style="bold red"))
    for id, aside in planned.aside.items():
        console.print(Text(f"Claim {id}: set aside, not used and not deleted: {'; '.join(aside)}."))
    done = run_claims(planned, command())
    if json is not None:
        records.write(json, done["claims"])
    for record in done["claims"]:
        console.print(Text(f"\nClaim {record.id}: {record.title}", style="bold"))
        _say_record(console, record)
    console.print(f"\nRecords: {out}   {span(done['seconds'])}")
    told = {text for record in done["claims"] for text in record.missing}
    told |= {f"{name}: {why}" for name, why in planned.withheld.items()}
    for note in (*done["notes"], *(text for text in done["failures"] if text not in told)):
        console.print(Text(note, style="red"))
    if done["interrupted"]:
        console.print("Interrupted; what was finished is kept, and the same command goes on from there.")
        return 130
    return 0 if not done["failures"] and all(record.verdict for record in done["claims"]) else 1


@claims.command
def predict(
    id: int,
    *,
    scale: str = "laptop",
    seeds: int | None = None,
    workers: int = 2,
    out: Path = Path("out/claims"),
    json: Path | None = None,
) -> int:
    """Write down what a claim predicts, before `claims run` tests it with the same `--out`.

    The file, predictions-NN-SCALE.json, is made once: commit it before the test. Parts that test it run only where it
    lies beside their results, whole, and made with their settings and code.

    Examples:

        loschmidt claims predict 10 --scale laptop --out results

    Exit code: 0 if the predictions are written down, 1 if a job failed, 130 after Ctrl-C (the same command goes on).

    Parameters
    ----------
    id
        A claim with a part that predicts.
    scale
        smoke, laptop or full.
    seeds
        How many, counted from 0. Default: the claim's own number.
    workers
        Processes, one torch thread each.
    out
        Folder of results.
    json
        Write what the file says of itself to this file, too.
    """
    console = Console()
    if json is not None:
        refuse_unwritable(json)
    planned = plan_predictions(id, scale, seeds, workers, out)
    long = f"about {span(planned.seconds)} with {workers} processes" if planned.todo else "nothing is left to run"
    console.print(f"Predictions of claim {id}, {scale}: {len(planned.jobs[id])} jobs; {long}.")
    done = run_predictions(planned, command())
    for text in done["failures"]:
        console.print(Text(text, style="red"))
    there = done["sealed"]
    said = {} if there is None else {"file": there.name, "digest": there.digest, "made": there.made}
    if said:
        console.print(Text(f"{out / there.name}, digest {there.digest}, made {there.made}. Commit it before the test."))
    if json is not None:
        write_json(json, {"claim": id, "scale": scale, "predictions": said})
    return 130 if done["interrupted"] else 0 if said else 1


@claims.command
def grok_search(
    *,
    scale: str = "laptop",
    seed: int = 0,
    workers: int = 2,
    out: Path = Path("out/claims"),
    json: Path | None = None,
) -> int:
    """Search for a setting in which energy-conserving descent groks: learns by heart, and much later how to add.

    Models, train fractions, decay, eta, scale and momentum of the start are varied, within the scale's budget of runs
    and seconds. All that was tried is in grok-search-SCALE.json; the same command goes on where it ended.

    Examples:

        loschmidt claims grok-search --scale smoke

    Exit code: 0 whatever was found, 1 if a run failed, 130 after Ctrl-C.

    Parameters
    ----------
    scale
        smoke, laptop or full.
    seed
        Of split and weights.
    workers
        Processes, one torch thread each.
    out
        Folder of results.
    json
        Write what was found to this file, too.
    """
    if scale not in search.SCALES:
        raise InvalidSetting(f"scale={scale!r} is unknown.", f"choose one of {', '.join(search.SCALES)}.")
    if workers < 1:
        raise InvalidSetting(f"workers={workers} can do nothing.", "give a positive number.")
    if json is not None:
        refuse_unwritable(json)
    console, budget = Console(), search.SCALES[scale]
    console.print(
        f"At most {budget['tries']} runs of {budget['steps']:,} steps, {budget['longest']:,} where it can still grok; "
        f"{span(budget['seconds'])} in all."
    )
    found = search.search(scale, out, seed, workers, command())
    counts = ", ".join(f"{name}: {count}" for name, count in found["counts"].items())
    console.print(f"Tried {len(found['tried'])} ({counts or 'nothing'}), not tried {found['not_tried']}.")
    for settings in found["grokked"]:
        console.print(Text(f"grokked: {settings}"))
    for text in found["failures"]:
        console.print(Text(text, style="red"))
    if json is not None:
        write_json(json, found)
    return 130 if found["interrupted"] else 1 if found["failures"] else 0


@claims.command
def judge(*ids: int, records: Path = RESULTS, write: bool = False, json: Path | None = None) -> int:
    """Make verdicts anew from records, without running anything, and compare.

    Evidence and thresholds are those of the record; the rule is the code's of today. Exit code 1 if a verdict or a
    measure is another than the record's, by more than the last bits of a fit (1e-9).

    Examples:

        loschmidt claims judge

        loschmidt claims judge 2 --records out/claims

    Parameters
    ----------
    ids
        1 to 12. Default: all that have records.
    records
        Folder with the records.
    write
        Write the new verdicts into the records.
    json
        Write the records with the new verdicts to this file, too.
    """
    if json is not None:
        refuse_unwritable(json)
    return _judge(ids, records, write, json)


def _judge(ids: tuple[int, ...], folder: Path, write: bool, json: Path | None) -> int:
    console, there = Console(), _read(folder)
    missing = [id for id in ids if not any(id == claim for claim, _ in there)]
    if missing or not there:
        names = f"no record of claim {', '.join(map(str, missing))}" if missing else "no record"
        raise InvalidSetting(f"there is {names} in {folder}.", "run it: loschmidt claims run.")
    made, same = [], True
    for (id, scale), record in there.items():
        if ids and id not in ids:
            continue
        claim = registry.find(id).claim
        new = records.again(record, claim)
        made.append(new)
        agrees = records.agree(new.json_entry(), record.json_entry())
        same &= agrees
        before = "as recorded" if agrees else f"recorded: {table.verdict_of(record)}, and other numbers or words"
        console.print(Text(f"Claim {id}, {scale}: {table.verdict_of(new)} ({before})"))
        if dict(claim.thresholds) != record.thresholds:
            console.print(f"Claim {id}: the code's thresholds are others than the record's: a new run would use them.")
        if write and not agrees and new.verdict is None and record.verdict is not None:
            console.print(Text(f"Claim {id}, {scale}: {new.note} The record stays as it is.", style="red"))
        elif write and not agrees:
            records.write(records.place(folder, id, scale), [new])
    if json is not None:
        records.write(json, made)
    return 0 if same else 1


def latest(folder: Path, id: int) -> ClaimRecord | None:
    """The record that speaks for a claim, if there is one."""
    return records.latest(_read(folder), id)


def _read(folder: Path) -> dict[tuple[int, str], ClaimRecord]:
    if folder != RESULTS and not folder.exists():
        raise DamagedFile(f"there is no folder {folder}.", "give one with records, as --out of `claims run`.")
    return records.read_folder(folder)


def _say(console: Console, name: str, text: Any) -> None:
    row = Table.grid(padding=(0, 2))
    row.add_column(justify="right", width=12, style="dim")
    row.add_column()
    row.add_row(Text(name), Text(str(text)))
    console.print(row, highlight=False)


def _say_record(console: Console, record: ClaimRecord, everything: bool = False) -> None:
    _say(console, "verdict", f"{table.verdict_of(record)}, {record.scale}, {len(record.seeds)} seeds")
    for part in record.sub_verdicts:
        _say(console, part.name, f"{part.verdict}: {part.why}")
    if record.note:
        _say(console, "note", record.note)
    for name, (then, now) in record.thresholds_changed.items():
        _say(console, "note", f"the threshold {name} was {then} when jobs ran, and is {now}.")
    for text in record.left_out:
        _say(console, "left out", text)
    if record.taken_over:
        _say(console, "note", f"taken over from an earlier record, as they were: {'; '.join(record.taken_over)}.")
    if record.predictions:
        told = record.predictions
        where = f"{told['file']}, digest {told['digest']}, made {told['made']}. " if "file" in told else ""
        _say(console, "predictions", where + told["note"])
    failed = [text for text in record.missing if not text.endswith(NOT_RUN)]
    for text in failed:
        _say(console, "missing", text)
    if len(failed) < len(record.missing):
        _say(console, "missing", f"{len(record.missing) - len(failed)} jobs that were not run")
    shown = record.measures if everything else table.deciding(record.measures)
    if shown:
        console.print(table.measures(shown))
    if more := len(record.measures) - len(shown):
        console.print(f"{more} more measures, controls and checks: loschmidt claims show {record.id}, or the report.")
