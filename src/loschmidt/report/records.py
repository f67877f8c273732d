"""Reading a folder of records: what is whole is shown, what is not is named and set aside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..claims.records import ClaimRecord, latest
from ..claims.records import read as read_file
from ..errors import DamagedFile, InvalidSetting


@dataclass(frozen=True)
class Found:
    """All records of a folder.

    Args:
        shown: by number of the claim, the record that speaks for it.
        others: by number of the claim, its records at smaller scales.
        troubles: a sentence for each file that was set aside.
    """

    shown: Mapping[int, ClaimRecord]
    others: Mapping[int, Sequence[ClaimRecord]]
    troubles: Sequence[str]


def read(folder: Path) -> Found:
    """All records of a folder: its files `claim-*.json`.

    Raises:
        InvalidSetting: there is no such folder.
    """
    if not folder.is_dir():
        seen = "is a file" if folder.exists() else "is not there"
        raise InvalidSetting(f"--records {folder} {seen}.", "make records first: loschmidt claims run --out results.")
    there: dict[tuple[int, str], ClaimRecord] = {}
    troubles = []
    for path in sorted(folder.glob("claim-*.json")):
        try:
            there |= {(record.id, record.scale): record for record in read_file(path)}
        except DamagedFile as error:
            troubles.append(f"{error.seen.replace(str(path), path.name).rstrip('.')}; it was set aside.")
    shown = {id: record for id in sorted({id for id, _ in there}) if (record := latest(there, id))}
    others = {id: [r for (claim, _), r in there.items() if claim == id and r is not shown[id]] for id in shown}
    return Found(shown, others, troubles)
