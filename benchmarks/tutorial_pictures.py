"""The pictures of docs/tutorial.md: runs the page's own blocks, and puts what they save beside the page."""

import os
import re
import tempfile
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"


def main() -> None:
    names: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
        for picture in sorted(Path("pictures").glob("*.png")):
            (PAGE.parent / "tutorial" / picture.name).write_bytes(picture.read_bytes())
            print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")
        os.chdir(PAGE.parent)


if __name__ == "__main__":
    main()
