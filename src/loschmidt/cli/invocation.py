"""How this program was called, as records hold it."""

import shlex
import sys
from pathlib import Path


def command() -> str:
    """The command line; of absolute paths only the last part, since the rest is this machine's alone."""
    return shlex.join(["loschmidt", *map(_shared, sys.argv[1:])])


def _shared(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"
