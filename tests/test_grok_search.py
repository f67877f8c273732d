"""The search for grokking: the rule can say each word, a search goes on where it ended, and its budget ends it."""

import json

import pytest

from loschmidt.claims import grok_search as search
from loschmidt.cli import main


def looks(fit, knows, end=1000):
    """Train accuracy 1 from `fit` on, test from `knows` on."""
    steps = list(range(0, end + 1, 10))
    return {"step": steps, "train": [float(s >= fit) for s in steps], "test": [float(s >= knows) for s in steps]}


@pytest.mark.parametrize(
    ("seen", "energy", "ended", "outcome"),
    [
        (looks(50, 400), 1e-3, None, "grokked"),
        (looks(50, 300), 1e-3, None, "generalised"),  # the stretch ends at 290, 4.8 times the fit after it
        (looks(50, 310), 1e-3, None, "grokked"),
        (looks(50, 40), 1e-3, None, "generalised"),
        (looks(50, 2000), 1e-3, None, "fitted"),
        (looks(2000, 2000), 1e-3, None, "did not fit"),
        (looks(50, 400), 1e-2, None, "energy moved"),
        (looks(50, 400), 1e-3, "p is full", "broke off"),
    ],
)
def test_the_rule_of_grokking(seen, energy, ended, outcome):
    assert search.verdict(seen, energy, ended)["outcome"] == outcome


def test_forgetting_what_was_fitted_breaks_the_stretch():
    seen = looks(50, 400)
    seen["train"][10] = 0.5
    assert search.verdict(seen, 1e-3, None)["outcome"] == "generalised"


def test_a_run_that_can_still_grok_goes_on():
    can = [search._can_grok(search.verdict(looks(fit, knows), 1e-3, None)) for fit, knows in ((50, 2000), (50, 400))]
    late = search._can_grok(search.verdict(looks(300, 2000), 1e-3, None))  # known for less than 5 times 300 steps
    assert can == [True, False] and not late
    parts = [looks(50, 2000) | {"energy": [], "energy_change": 1e-3, "onset": None, "ended_by": None} for _ in range(2)]
    parts[1] |= {"step": [s + 1000 for s in parts[1]["step"]], "test": [1.0] * 101, "onset": 1000}
    whole = search.joined(*parts)
    assert search.verdict(whole, whole["energy_change"], None)["outcome"] == "grokked"
    assert whole["energy_change"] == 2e-3 and whole["onset"] == 1000


def test_the_list_has_all_kinds_of_settings_and_an_order_of_its_own():
    full = search.candidates("full")
    assert len(full) == len({json.dumps(c, sort_keys=True) for c in full}) == search.SCALES["full"]["tries"]
    few = search.candidates("laptop")
    assert all({c[key] for c in few} == set(search.SPACE[key]) for key in ("model", "train_fraction", "scale"))


def test_a_search_records_what_it_tried_goes_on_and_ends_with_its_budget(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(search.SCALES, "smoke", search.SCALES["smoke"] | {"seconds": 0.001})
    first = search.search("smoke", tmp_path, workers=1)
    assert len(first["tried"]) == 1 and first["not_tried"] == 2 and not first["failures"]
    monkeypatch.setitem(search.SCALES, "smoke", search.SCALES["smoke"] | {"seconds": 1e6})
    kept = {path.name: path.read_bytes() for path in (tmp_path / "search/smoke").iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(["claims", "grok-search", "--scale", "smoke", "--workers", "1", "--out", str(tmp_path)])
    assert stop.value.code == 0 and "Tried 3" in capsys.readouterr().out
    found = json.loads((tmp_path / "grok-search-smoke.json").read_text())
    assert found["not_tried"] == 0 and sum(found["counts"].values()) == 3 and found["spent"] > first["spent"]
    assert all((tmp_path / "search/smoke" / name).read_bytes() == content for name, content in kept.items())
    assert {row["settings"]["model"] for row in found["tried"]} <= set(search.SPACE["model"])
