"""Put what results/ holds into the pages: verdicts into README.md, the table of sentences into docs/source.md, and the
two results with pages of their own, with their pictures, into docs/arrow.md and docs/freezing.md.

loschmidt claims run --out results && python benchmarks/claims_page.py
"""

import re
from pathlib import Path

from PIL import Image

from loschmidt.claims import arrow_pictures, records, registry, table
from loschmidt.files import written_atomically
from loschmidt.report.png import draw

ROOT = Path(__file__).parent.parent
PICTURES = {"arrow": arrow_pictures.pictures, "freezing": registry.find(3).claim.pictures}
"""By name of the page."""


def put(page: Path, name: str, what: str) -> None:
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.read_text().split(start)
    with written_atomically(page) as temporary:
        temporary.write_text(f"{before}{start}\n\n{what}\n\n{end}{rest.split(end)[1]}")


def paint(page: str, pictures) -> None:
    for picture in pictures:
        title = re.sub(r"[^a-z0-9]+", "-", picture.title.lower()).strip("-")
        kept = ROOT / "docs/pictures" / f"{page}-{title}.png"
        draw(picture, kept)
        with written_atomically(kept) as temporary:
            Image.open(kept).convert("RGB").quantize(256).save(temporary, "png", optimize=True)
        print(f"{kept.relative_to(ROOT)}: {kept.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    built, there = registry.built(), records.read_folder(ROOT / "results")
    put(ROOT / "README.md", "verdicts", table.markdown(built, there))
    put(ROOT / "docs/source.md", "sentences", table.sentences(built))
    for page, (claim, begins) in table.PAGES.items():
        if record := records.latest(there, claim):
            put(ROOT / f"docs/{page}.md", page, table.result(record, begins))
            paint(page, PICTURES[page](record.evidence))
