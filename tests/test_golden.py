"""Bits of short runs are those that are pinned: a change of all of them at once is seen, too."""

import pytest

from loschmidt.exact import BITS
from loschmidt.exact.kernels import native
from reference import golden
from reference.golden import RUNS, bits, pinned

WHAT_TO_DO = (
    "the bits of this run are not those of tests/golden.json. If that was not intended, find what changed them. If it "
    "was: raise loschmidt.exact.BITS by 1, run `python tests/reference/golden.py`, and say so in CHANGELOG.md, since "
    "runs that were recorded before cannot be taken back any more."
)
KERNELS = [pytest.param("native", marks=pytest.mark.skipif(native.compiler() is None, reason="no C compiler")), "eager"]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", RUNS)
def test_bits_are_those_that_are_pinned(name, kernels):
    assert bits(name, kernels) == pinned()["runs"][name], WHAT_TO_DO


def test_the_file_is_of_this_version_and_complete():
    file = pinned()
    assert file["bits"] == BITS, WHAT_TO_DO
    assert [*file["runs"]] == [*RUNS], WHAT_TO_DO


def test_a_flipped_bit_changes_them():
    def flip(optimizer):
        if optimizer.steps == 3:
            next(iter(optimizer.state.values()))["p"][5] ^= 1

    assert bits("SGD", each=flip) != pinned()["runs"]["SGD"]


def test_all_of_them_are_others():
    """No two runs are one and the same, and each has moved."""
    seen = [str(x) for x in pinned()["runs"].values()]
    assert len({*seen}) == len(seen)


def test_tapes_hold_planes():
    held = []
    bits("SGD, much friction", each=lambda optimizer: held.append(len(optimizer.tape.stacks[0].planes)))
    assert held[-1] > 0


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
