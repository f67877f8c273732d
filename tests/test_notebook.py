"""The notebook runs from top to bottom, and says what it said when it was written down."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "three-minutes.ipynb"


def printed(notebook):
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    said = printed(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    numbers = re.compile(r"\d[\d.e-]*")  # the last digits are the machine's
    assert numbers.sub("n", printed(notebook)) == numbers.sub("n", said)
    assert "back at the start, bit for bit" in said and NOTEBOOK.stat().st_size < 200_000
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) == 2
