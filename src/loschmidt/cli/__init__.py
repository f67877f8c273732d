"""The command line: thin commands over the library."""

import errno
import sys
from typing import Any

from cyclopts import App

from .. import errors
from ..trajectory.environment import package_version
from .bench import bench
from .claims import claims
from .echo import echo
from .output import Unwritten, watched
from .report import report
from .runs import runs

app = App(
    name="loschmidt",
    help="Training that can be wound back bit for bit, and what friction costs in bits.",
    version=package_version,
)
app.command(bench)
app.command(claims)
app.command(echo)
app.command(report)
app.command(runs)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; mistakes and refusals end with exit code 2 and a remedy, not a traceback.

    Output that cannot be written (a full disk) ends with one line and exit code 1.
    """
    try:
        with watched():
            code = _run(arguments)
    except Unwritten as error:
        code = 1
        if error.errno != errno.EPIPE:  # whoever read it has seen enough
            print(f"loschmidt: the output cannot be written: {error.strerror}.", file=sys.stderr)
    sys.exit(code)


def _run(arguments: list[str] | None) -> Any:
    try:
        return app(arguments, result_action="return_value") or 0
    except SystemExit as end:  # help, and options that there are not
        return end.code
    except errors.LoschmidtError as error:
        print(f"loschmidt: {error.seen}", file=sys.stderr)
        if error.remedy:
            print(f"Remedy: {error.remedy}", file=sys.stderr)
        return 2
