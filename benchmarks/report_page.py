"""Put a picture into docs/report.md: the report of results/ as Chromium shows it, in the light and in the dark.

pip install 'loschmidt[lab,browser]' && python benchmarks/report_page.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from loschmidt.report import make

ROOT = Path(__file__).parent.parent
START, END = "<!-- picture -->", "<!-- /picture -->"
WIDTH, HEIGHT, MOST_BYTES = 1060, 1400, 200_000


def shot(page: Path, scheme: str) -> tuple[Image.Image, dict]:
    with tempfile.TemporaryDirectory() as folder:
        browser = ROOT / "tests/reference/browser.py"
        subprocess.run([sys.executable, str(browser), str(page), folder, str(WIDTH), scheme], check=True)
        seen = json.loads(Path(folder, "seen.json").read_text())
        return Image.open(Path(folder, "page.png")).convert("RGB"), seen


def main(records: str = "results", out: str = "docs/report.png") -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        print(make(ROOT / records, page))
        light, dark = shot(page, "light"), shot(page, "dark")
    tops = [top for top in dark[1]["tops"].values()]
    whole = Image.new("RGB", (2 * WIDTH, HEIGHT))
    whole.paste(light[0].crop((0, 0, WIDTH, HEIGHT)), (0, 0))
    top = round(tops[0]) if tops else 0
    whole.paste(dark[0].crop((0, top, WIDTH, top + HEIGHT)), (WIDTH, 0))
    whole = whole.resize((1600, round(1600 * HEIGHT / (2 * WIDTH))), Image.Resampling.LANCZOS)
    place = ROOT / out
    for colours in (256, 128, 64, 32, 16):
        whole.quantize(colours, Image.Quantize.MAXCOVERAGE, 2, dither=Image.Dither.NONE).save(place, optimize=True)
        if place.stat().st_size < MOST_BYTES:
            break
    if place.parent == ROOT / "docs":
        text = (ROOT / "docs/report.md").read_text()
        before, rest = text.split(START)
        picture = f"![The table of verdicts, and the first claim with its picture and its numbers]({place.name})"
        (ROOT / "docs/report.md").write_text(f"{before}{START}\n\n{picture}\n\n{END}{rest.split(END)[1]}")
    print(f"{place}: {place.stat().st_size:,} bytes, {colours} colours")


if __name__ == "__main__":
    main(*sys.argv[1:])
