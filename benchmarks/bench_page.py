"""Put the recorded bench (benchmarks/results/bench.json) into docs/what-it-costs.md, and its picture beside it.

loschmidt bench --threads 2 --json benchmarks/results/bench.json && python benchmarks/bench_page.py
"""

import json
from pathlib import Path

from loschmidt.bench import picture
from loschmidt.bench.table import markdown

ROOT = Path(__file__).parent.parent
START, END = "<!-- bench -->", "<!-- /bench -->"

if __name__ == "__main__":
    page, results = ROOT / "docs/what-it-costs.md", ROOT / "benchmarks/results/bench.json"
    found = json.loads(results.read_text())
    picture.draw(found, ROOT / "docs/bench.png")
    before, rest = page.read_text().split(START)
    after = rest.split(END)[1]
    page.write_text(f"{before}{START}\n\n{markdown(found)}\n\n{END}{after}")
