"""Put the verdicts of results/ into README.md, and the table of sentences into docs/source.md.

loschmidt claims run --out results && python benchmarks/claims_page.py
"""

from pathlib import Path

from loschmidt.claims import records, registry, table

ROOT = Path(__file__).parent.parent


def put(page: Path, name: str, what: str) -> None:
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.read_text().split(start)
    page.write_text(f"{before}{start}\n\n{what}\n\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    built = registry.built()
    put(ROOT / "README.md", "verdicts", table.markdown(built, records.read_folder(ROOT / "results")))
    put(ROOT / "docs/source.md", "sentences", table.sentences(built))
