"""`loschmidt report`: all verdicts, and what they rest on, as one HTML page."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..claims.topics import TWELVE
from ..files import refuse_unwritable, size, write_json
from ..report import make

_COLOURS = {"supported": "green", "refuted": "red", "partly": "yellow", "inconclusive": "blue"}


def report(*, records: Path = Path("results"), out: Path = Path("report.html"), json: Path | None = None) -> int:
    """Make one self-contained HTML page from the records of claims.

    The page has the table of verdicts, and for each claim its question, pictures, numbers with intervals, controls,
    what would have refuted it, and how to run it again. It needs no network, and can be printed.

    Examples:

        loschmidt report

        loschmidt report --records results --out report.html --json report.json

    Exit code: 0 if every record could be shown, 1 if one was set aside (the page is made, and names it).

    Parameters
    ----------
    records
        Folder with the records that `loschmidt claims run` wrote.
    out
        The page.
    json
        Write the verdicts, and what was set aside, to this file, too.
    """
    if json is not None:
        refuse_unwritable(json)
    made = make(records, out)
    console = Console()
    table = Table("", "claim", "verdict")
    for id, verdict in made.verdicts.items():
        table.add_row(str(id), escape(TWELVE[id].title), f"[{_COLOURS.get(verdict, 'dim')}]{verdict}[/]")
    console.print(table)
    for trouble in made.troubles:
        console.print(f"[red]{escape(trouble)}[/]", highlight=False)
    console.print(f"Page: {out}   {size(made.bytes)}", highlight=False)
    if json is not None:
        rows = [{"id": id, "title": TWELVE[id].title, "verdict": verdict} for id, verdict in made.verdicts.items()]
        write_json(json, {"claims": rows, "troubles": made.troubles, "page": {"file": out.name, "bytes": made.bytes}})
    return 1 if made.troubles else 0
