"""From a folder of records to a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..claims.record import Claim
from ..claims.registry import built
from ..claims.topics import TWELVE
from ..files import refuse_unwritable, written_atomically
from .page import NO_VERDICT, NOT_RUN, page
from .records import read
from .source import sentences


@dataclass(frozen=True)
class Made:
    """What was made.

    Args:
        bytes: of the page.
        verdicts: by number of the claim; also "not run" and "no verdict".
        troubles: what could not be shown, a sentence each; also on the page.
    """

    bytes: int
    verdicts: Mapping[int, str]
    troubles: list[str]


def make(records: Path, out: Path, claims: Mapping[int, Claim] | None = None) -> Made:
    """Write the report of a folder of records as one self-contained HTML file.

    Args:
        records: folder with `claim-*.json`.
        out: where to write the page.
        claims: those that draw the pictures, by number; by default all that are built.

    Raises:
        InvalidSetting: no such folder; jinja2 or plotly is not installed.
        NotWritten: `out` cannot be written.
    """
    refuse_unwritable(out)
    found = read(records)
    claims = {id: entry.claim for id, entry in built().items()} if claims is None else claims
    text, troubles = page(found, claims, sentences())
    data = text.encode()
    with written_atomically(out) as temporary:
        temporary.write_bytes(data)
    verdicts = {id: found.shown[id].verdict or NO_VERDICT if id in found.shown else NOT_RUN for id in TWELVE}
    return Made(len(data), verdicts, troubles)
