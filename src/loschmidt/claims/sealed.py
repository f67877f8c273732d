"""Predictions that are written down before they are tested: one file a claim and scale, with a digest, made once.

A part that predicts is run by `loschmidt claims predict` alone; the parts that test it are run only where the file lies
beside their results, holds the predictions of their seed, and was made for their settings. What they find is marked
with the file's digest, so that predictions made anew afterwards are noticed. Commit the file before the test.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ..errors import DamagedFile, InvalidSetting
from ..exact import digest
from ..files import write_json


@dataclass(frozen=True)
class Sealed:
    """A file of predictions, read and found whole.

    Attributes:
        name: of the file.
        digest: of all that is in it.
        made: when, UTC, ISO 8601.
        tests: settings of the parts that were to test it, by name.
        results: of the jobs that predicted, by key, as the files of jobs hold them.
    """

    name: str
    digest: str
    made: str
    tests: Mapping[str, Any]
    results: Mapping[str, dict[str, Any]]


class Tested(Protocol):
    """What is asked of a job."""

    part: str
    scale: str
    claim: int
    settings: Mapping[str, Any]
    needs: str


def place(out: Path, claim: int, scale: str) -> Path:
    """The file of a claim's predictions in a folder of results."""
    return out / f"predictions-{claim:02}-{scale}.json"


def seal(
    out: Path, claim: int, scale: str, tests: Mapping[str, Any], results: Sequence[Mapping[str, Any]], command: str
) -> Sealed:
    """Write predictions down, once.

    Args:
        out: folder of results.
        claim: its number.
        scale: smoke, laptop or full.
        tests: settings of the parts that will test them, by name.
        results: of the jobs that predicted.
        command: that made them.

    Raises:
        InvalidSetting: there are others already.
        DamagedFile: those that are there were changed, or cannot be read.
    """
    there = read(out, claim, scale)
    keys = [result["key"] for result in results]
    if there is not None:
        if sorted(there.results) == sorted(keys) and there.tests == _plain(tests):
            return there
        raise InvalidSetting(
            f"{place(out, claim, scale)} holds predictions of other settings, seeds or code, made {there.made}.",
            "move it away, and predict anew; what was tested against it will say so.",
        )
    content = {
        "claim": claim,
        "scale": scale,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "code": sorted({result["code"] for result in results}),
        "seeds": sorted({result["evidence"]["seed"] for result in results}),
        "tests": tests,
        "results": list(results),
    }
    content = _plain(content)
    write_json(place(out, claim, scale), {"digest": _digest(content)} | content)
    found = read(out, claim, scale)
    if found is None:
        raise DamagedFile(f"{place(out, claim, scale)} is gone as soon as it was written.", "predict again.")
    return found


def read(out: Path, claim: int, scale: str) -> Sealed | None:
    """The predictions of a claim; None if there are none.

    Raises:
        DamagedFile: the file cannot be read, or its content is not what its digest says.
    """
    path = place(out, claim, scale)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        said = content.pop("digest")
        results = {result["key"]: result for result in content["results"]}
        made, tests = content["made"], content["tests"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{path} is no file of predictions ({type(error).__name__}: {error}).", _PUT_BACK) from error
    if _digest(content) != said:
        raise DamagedFile(f"{path} was changed after it was made: its digest is another.", _PUT_BACK)
    return Sealed(path.name, said, made, tests, results)


_PUT_BACK = "put back the file that was committed, or move it away and predict anew."


def why_not(job: Tested, there: Sealed | None) -> str:
    """Why a job may not test these predictions; "" if it may, or needs none."""
    if not job.needs:
        return ""
    remedy = f"loschmidt claims predict {job.claim} --scale {job.scale}, with the same --out, comes first."
    if there is None:
        return f"its predictions are not written down; {remedy}"
    if job.needs not in there.results:
        return f"{there.name} has no predictions of this seed, made with these settings and this code; {remedy}"
    if there.tests.get(job.part) != _plain(job.settings):
        return f"{there.name} was made for a test with other settings; {remedy}"
    return ""


def note(there: Sealed | None, tested: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What a record says of its predictions; empty if nothing was predicted.

    Args:
        there: the predictions.
        tested: results of jobs that needed some, each with "sealed", the digest of those that it was run against.
    """
    seen = [result.get("sealed") for result in tested]
    if there is None:
        return {"note": "the predictions that this was tested against are not there."} if seen else {}
    others = sum(digest != there.digest for digest in seen)
    text = f"{others} of {len(seen)} jobs were not run against these predictions." if others else ""
    return {"file": there.name, "digest": there.digest, "made": there.made, "note": text}


def _digest(content: Mapping[str, Any]) -> str:
    return digest([json.dumps(content, sort_keys=True, allow_nan=False)], 16)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))
