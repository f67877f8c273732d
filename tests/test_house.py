"""Rules of the house that a reader relies on: imports go down, files are short, names explain themselves."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "loschmidt"
FILES = {path.relative_to(SRC).as_posix(): path.read_text() for path in sorted(SRC.rglob("*.py"))}

FLOORS = [  # from the bottom up; rooms on one floor do not import each other
    {"errors", "interrupt"},
    {"files"},
    {"exact", "live"},
    {"dynamics"},
    {"optim"},
    {"data"},
    {"trajectory"},
    {"physics", "testing"},
    {"models"},
    {"tasks"},
    {"claims", "echo", "bench"},
    {"audit", "integrations"},
    {"report"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def rooms_imported(path: str, text: str) -> set[str]:
    """Rooms of this package that a file imports, wherever in it the import stands."""
    package = ["loschmidt", *path.split("/")[:-1]]
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    inside = [name.split(".") for name in names if name.split(".")[0] == "loschmidt"]
    return {name[1] if len(name) > 1 else "__init__" for name in inside}


def climbs(path: str, text: str) -> set[str]:
    """Rooms imported that are not below the file's own."""
    own = room_of(path)
    return {room for room in rooms_imported(path, text) if room != own and FLOOR[room] >= FLOOR[own]}


@pytest.mark.parametrize("path", FILES)
def test_imports_go_down_only(path):
    assert room_of(path) in FLOOR, "give this room a floor"
    assert climbs(path, FILES[path]) == set()


@pytest.mark.parametrize(
    "line",
    [
        "from ..optim import SGD",
        "from .. import optim, errors",
        "import loschmidt.optim.sgd as sgd",
        "from loschmidt import optim",
        "def late():\n    from ..optim.base import ReversibleOptimizer",
        "import loschmidt as lo",
    ],
)
def test_an_import_that_climbs_is_caught(line):
    assert climbs("exact/tape.py", "import math\nfrom . import random\nfrom ..errors import NonFinite\n" + line)


@pytest.mark.parametrize("path", FILES)
def test_files_are_short(path):
    assert len(FILES[path].splitlines()) <= 400


def without_docstring(text: str) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    missing = []

    def visit(node, name):
        if not ast.get_docstring(node):
            missing.append(name)
        for child in node.body:
            defines = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if defines and not child.name.startswith("_") and not isinstance(node, ast.FunctionDef):
                visit(child, f"{name}.{child.name}")

    visit(ast.parse(text), "module")
    return missing


@pytest.mark.parametrize("path", FILES)
def test_public_names_have_docstrings(path):
    assert without_docstring(FILES[path]) == []


def bad_habits(text: str) -> list[str]:
    """What a user should never meet: an assert for a mistake of theirs, a bare except, code in a file of data."""
    found = []
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Assert):
            found.append(f"assert, line {line}")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"bare except, line {line}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [
                f"{m}, line {line}" for m in modules if m in ("pickle", "dill", "cloudpickle", "joblib", "shelve")
            ]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if called in ("eval", "exec") or (called == "torch.load" and not safe):
                found.append(f"{called}, line {line}")
            numpy_pickles = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
            found += [f"allow_pickle, line {line}"] * numpy_pickles
    return found


@pytest.mark.parametrize("path", FILES)
def test_no_bad_habits(path):
    assert bad_habits(FILES[path]) == []


def test_bad_habits_are_found():
    bad = ["assert x", "try:\n    x\nexcept:\n    y", "import pickle", "torch.load(f)", "np.load(f, allow_pickle=True)"]
    assert all(bad_habits(text) for text in bad)
    assert bad_habits("torch.load(f, weights_only=True)\ntry:\n    x\nexcept BaseException:\n    raise") == []
    assert without_docstring("class A:\n    'x'\n    def f(self): pass\n") == ["module", "module.A.f"]


def test_no_paths_of_one_machine():
    folders = [SRC, ROOT / "tests", ROOT / "benchmarks", ROOT / "docs", ROOT / "results"]
    files = [f for folder in folders for kind in ("py", "md", "json", "toml") for f in folder.rglob(f"*.{kind}")]
    of_a_machine = re.compile(r"(?<![\w.])/(home|root|work|Users|mnt)/\w")
    assert [str(f.relative_to(ROOT)) for f in files if of_a_machine.search(f.read_text())] == []
