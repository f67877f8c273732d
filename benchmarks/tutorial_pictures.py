"""The pictures of docs/tutorial.md: runs the page's own code, keeps what it saves, in 256 colours."""

import os
import re
import tempfile
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

from PIL import Image

from loschmidt.files import written_atomically

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"


def main() -> None:
    names: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
        for picture in sorted(Path("pictures").glob("*.png")):
            kept = PAGE.parent / "tutorial" / picture.name
            with written_atomically(kept) as temporary:
                Image.open(picture).convert("RGB").quantize(256).save(temporary, "png", optimize=True)
            print(f"{picture.name}: {kept.stat().st_size / 1000:.0f} kB")
        os.chdir(PAGE.parent)


if __name__ == "__main__":
    main()
