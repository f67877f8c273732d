"""Bits of short runs are those that are pinned: a change of all of them at once is seen, too."""

import math

import pytest
import torch

from loschmidt.exact import BITS, native, world
from reference import golden
from reference.golden import ROWS, RUNS, bits, pinned

WHAT_TO_DO = (
    "the bits of this run are not those of tests/golden.json. If that was not intended, find what changed them. If it "
    "was: raise loschmidt.exact.BITS by 1, run `python tests/reference/golden.py`, and say so in CHANGELOG.md, since "
    "runs that were recorded before cannot be taken back any more."
)
KERNELS = [pytest.param("native", marks=pytest.mark.skipif(native.compiler() is None, reason="no C compiler")), "eager"]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", RUNS)
def test_bits_are_those_that_are_pinned(name, rows, kernels):
    assert bits(name, rows, kernels) == pinned()["runs"][f"{name}, {rows}"], WHAT_TO_DO


def test_the_file_is_of_this_version_and_complete():
    file = pinned()
    assert file["bits"] == BITS, WHAT_TO_DO
    assert [*file["runs"]] == [f"{name}, {rows}" for name in RUNS for rows in ROWS], WHAT_TO_DO


@pytest.mark.parametrize("rows", ROWS)
def test_a_flipped_bit_changes_them(rows):
    flipped = []

    def flip(optimizer):
        if optimizer.steps == 3:
            flipped.append(optimizer.state_dict()["state"][0]["q"].clone())
            next(iter(optimizer.state.values()))["p"][5] ^= 1

    assert bits("SGD", rows, each=flip) != pinned()["runs"][f"SGD, {rows}"] and flipped


def test_all_of_them_are_others():
    """No two runs are one and the same, and each has moved."""
    seen = [str(x) for x in pinned()["runs"].values()]
    assert len({*seen}) == len(seen)


def test_tapes_hold_words():
    words = []
    bits("SGD, much friction", "many rows", each=lambda optimizer: words.append(optimizer.tape.lanes[0].words))
    assert words[-1] > 0


@pytest.mark.parametrize("name", RUNS)
def test_they_do_not_depend_on_the_order_of_sums(name, monkeypatch):
    """As processors differ in it: with few rows every sum is exact. (With many, the order is always the same.)"""

    def exact(x):
        return torch.tensor(math.fsum(x.tolist()), dtype=torch.float64)

    monkeypatch.setattr(world, "sum_of", exact)
    for module in (world, golden.lo.optim.descent):
        monkeypatch.setattr(module, "sum_of_squares", lambda x: exact(x * x))
    assert bits(name, "few rows") == pinned()["runs"][f"{name}, few rows"]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("Adam")])
def test_their_roots_are_exact(name, rows):
    """A processor's root need not be rounded correctly: each is of 1/64, a power of 4, and is 1/8."""
    seen = []

    def look(optimizer):
        for s in optimizer._slots:
            v = s.block.lattices["v"].value(s.start, s.stop).mul_(1 / (1 - 0.5**s.count))
            seen.append(bool((v == 1 / 64).all()))

    bits(name, rows, each=look)
    assert seen and all(seen)


def test_other_bits_are_not_pinned_under_the_same_version(tmp_path, monkeypatch, capsys):
    path = tmp_path / "golden.json"
    monkeypatch.setattr(golden, "PATH", path)
    monkeypatch.setattr(golden, "RUNS", {"SGD": RUNS["SGD"]})
    golden.main()
    text = path.read_text()
    golden.main()
    assert path.read_text() == text
    path.write_text(text.replace('"q": "', '"q": "0', 1))
    with pytest.raises(SystemExit, match=r"raise loschmidt\.exact\.BITS first"):
        golden.main()
    monkeypatch.setattr(golden, "BITS", BITS + 1)
    golden.main()
    assert golden.pinned()["bits"] == BITS + 1
