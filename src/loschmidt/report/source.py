"""The sentences of the source that the claims read, by number."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sentence:
    """A sentence of the source and its number."""

    number: int
    text: str


def sentences() -> list[Sentence]:
    """As docs/source.md numbers them; none where neither the package nor a source tree around it has that page."""
    here = Path(__file__).parents[1]
    for place in (here / "claims/source.md", here.parents[1] / "docs/source.md"):
        if place.is_file():
            return parse(place.read_text("utf-8"))
    return []


def parse(text: str) -> list[Sentence]:
    """The items of a numbered list in Markdown, "1. ...", each as one line."""
    items = re.findall(r"^(\d+)\. +(.+(?:\n(?!\s*\n|\d+\. ).+)*)", text, re.MULTILINE)
    return [Sentence(int(number), " ".join(words.split())) for number, words in items]
