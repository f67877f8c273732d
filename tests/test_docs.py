"""What the documentation shows is run, and what it claims in numbers is what was recorded."""

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from loschmidt.bench.table import markdown as bench_table
from loschmidt.claims import records, registry, table, topics
from loschmidt.echo.table import markdown
from loschmidt.optim import replay
from loschmidt.trajectory import trajectory

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_of_a_page_run_in_order(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a page writes
    names = {}
    with matplotlib.rc_context():
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(compile(block, str(page), "exec"), names)
    saved = {f"{page.stem}/{picture.name}" for picture in tmp_path.glob("pictures/*.png")}
    shown = {link for link in LINK.findall(page.read_text()) if link.startswith(f"{page.stem}/")}
    assert saved == shown  # a page that makes pictures shows these


def test_pictures_of_the_tutorial_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs/tutorial").glob("*.png")}
    assert len(sizes) == 4 and all(size < 120_000 for size in sizes.values()), sizes


@pytest.mark.parametrize("module", [trajectory, sys.modules[replay.__module__]], ids=lambda m: m.__name__)
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 3
    assert result.failed == 0


def test_links_lead_somewhere():
    for page in PAGES:
        for link in LINK.findall(page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_readme_shows_the_recorded_echo():
    results = json.loads((ROOT / "benchmarks/results/echo.json").read_text())
    assert markdown(results["runs"]) in (ROOT / "README.md").read_text()


def test_costs_page_shows_the_recorded_step_times():
    rows = json.loads((ROOT / "benchmarks/results/step-time.json").read_text())["rows"]
    page = (ROOT / "docs/what-it-costs.md").read_text()
    for row in rows:
        line = f"| {row['optimizer']} | {row['step_over_torch_adamw']:.2f} | {row['back_over_forward']:.2f} |"
        assert line in page


def test_costs_page_shows_the_recorded_kernel_modes():
    record = json.loads((ROOT / "benchmarks/results/kernel-modes.json").read_text())
    page = (ROOT / "docs/what-it-costs.md").read_text()
    assert f"{record['settings']['size']:,} parameters" in page
    for row in record["rows"]:
        times = f"{1e3 * row['step_seconds']:.1f} ms | {row['first_seconds']:.1f} s"
        assert f"| {row['optimizer']} | {row['mode']} | {times} |" in page


def test_page_of_energy_shows_what_the_monitor_was_recorded_to_cost():
    record = json.loads((ROOT / "benchmarks/results/monitor-cost.json").read_text())
    lines = between("docs/energy.md", "monitor-cost").splitlines()[2:]
    for line, r in zip(lines, record["rows"], strict=True):
        times = f"{r['step_ms']:.2f} ms | {r['line_ms']:.2f} ms | {r['line_share']:.1%}"
        assert line == f"| {r['optimizer']} | {r['batch_size'] or 'full'} | {times} |" and r["same_bits"]
    assert record["every"] == 50


def test_page_of_integrators_shows_the_recorded_integrators():
    rows = json.loads((ROOT / "benchmarks/results/integrators.json").read_text())["rows"]
    lines = between("docs/integrators.md", "integrators").splitlines()[2:]
    assert len(lines) == len(rows)
    for line, r in zip(lines, rows, strict=True):
        exact = "yes" if r["exact"] else "no"
        drift = f"{r['drift']:.0e} ± {r['drift_standard_error']:.0e}"
        assert line == f"| {r['integrator']} | {r['order']} | {exact} | {r['oscillation']:.1e} | {drift} |"
        assert abs(r["drift"]) <= r["drift_standard_error"] and r["steps"] == 100_000


def test_page_of_integrators_shows_the_recorded_step_control():
    record = json.loads((ROOT / "benchmarks/results/step-control.json").read_text())
    lines = between("docs/integrators.md", "step-control").splitlines()[2:]
    assert lines[0].startswith("| auto | verlet |")
    for line in lines:
        _, lr, integrator, *_ = (cell.strip() for cell in line.split("|"))
        rows = [r for r in record["rows"] if (str(r["lr"]), r["integrator"]) == (lr, integrator)]
        kept = [r["gradients"] for r in rows if r["largest_change_of_H"] < record["settings"]["tolerance"]]
        largest = max(r["largest_change_of_H"] for r in rows)
        seen = f"{len(kept)} of {len(rows)} | {largest:.4f} | {min(kept):,} to {max(kept):,}"
        assert line == f"| {lr} | {integrator} | {seen} |" and len(rows) == record["settings"]["seeds"]
    auto = [r for r in record["rows"] if r["lr"] == "auto"]
    assert all(r["exact"] for r in auto)


def test_page_of_tasks_shows_the_recorded_key_frequencies():
    rows = json.loads((ROOT / "benchmarks/results/key-frequencies.json").read_text())["rows"]
    shown = between("docs/tasks.md", "key-frequencies").splitlines()[2:]
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        found = f"{row['with_keys_test']:.1%} | {row['largest_test']:.2f} | {row['with_keys_all']:.1%}"
        assert line.startswith(f"| {row['p']} | {row['kind']} | {row['tables']:,} | ")
        assert line.endswith(f" | {found} | {row['largest_all']:.2f} | {row['gini']:.2f} |")


def test_costs_page_shows_the_recorded_bench():
    results = json.loads((ROOT / "benchmarks/results/bench.json").read_text())
    page = (ROOT / "docs/what-it-costs.md").read_text()
    shown = page.split("<!-- bench -->")[1].split("<!-- /bench -->")[0].strip()
    assert shown == bench_table(results)


def test_costs_page_says_how_fast_memory_was():
    """In two sections of the recorded bench, at 10 M parameters."""
    sections = json.loads((ROOT / "benchmarks/results/bench.json").read_text())["sections"]
    slow = {row["optimizer"]: row for row in sections["steps"]["rows"] if row["parameters"] == 10**7}
    points = [(c["optimizer"], p) for c in sections["growth"]["curves"] for p in c["points"]]
    fast = {name: p for name, p in points if p["parameters"] == 10**7}
    page = " ".join((ROOT / "docs/what-it-costs.md").read_text().split())
    (sgd_fast, sgd), (adamw_fast, adamw) = (
        [f"{1e3 * found[name]['seconds']['fused']['median']:.1f}" for found in (fast, slow)]
        for name in ("SGD int64", "AdamW")
    )
    assert f"fused SGD took {sgd_fast} ms there instead of {sgd}, its AdamW {adamw_fast} instead of {adamw}." in page
    there, here = (f"{found['AdamW']['step_over_fused']['median']:.2f}" for found in (fast, slow))
    assert f"AdamW is at {there} times torch's there, and at {here} where memory is slower." in page
    assert f"where memory is fast AdamW is not ({there})" in page


def test_costs_page_shows_the_recorded_walks_without_arithmetic():
    rows = json.loads((ROOT / "benchmarks/results/walk-floor.json").read_text())["rows"]
    lines = between("docs/what-it-costs.md", "walk-floor").splitlines()[2:]
    for line, r in zip(lines, rows, strict=True):
        times = (1e3 * r[f"{name}_seconds"] for name in ("bare", "passes", "step", "fused"))
        shown = " | ".join(f"{x:.1f} ms" for x in times)
        assert line == f"| {r['optimizer']} | {shown} | {r['step_over_fused']:.2f} |"


def between(page, name):
    return (ROOT / page).read_text().split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def test_readme_shows_the_recorded_verdicts():
    assert between("README.md", "verdicts") == table.markdown(registry.built(), records.read_folder(ROOT / "results"))


@pytest.mark.parametrize("page", table.PAGES)
def test_the_pages_of_the_two_results_show_what_was_recorded(page):
    claim, begins = table.PAGES[page]
    record = records.latest(records.read_folder(ROOT / "results"), claim)
    assert between(f"docs/{page}.md", page) == (table.result(record, begins) if record else "")
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", (ROOT / f"docs/{page}.md").read_text())
    assert bool(pictures) is (record is not None)
    assert all(0 < (ROOT / "docs" / name).stat().st_size < 200_000 for name in pictures)


def test_the_page_of_the_source_shows_which_claim_reads_which_sentence():
    assert between("docs/source.md", "sentences") == table.sentences(registry.built())
    numbers = re.findall(r"^(\d)\. ", (ROOT / "docs/source.md").read_text(), re.MULTILINE)
    assert set(map(int, numbers)) == {n for topic in topics.TWELVE.values() for n in topic.sentences}


def test_the_page_on_folders_shows_what_was_recorded():
    page = (ROOT / "docs/durable-runs.md").read_text()
    recorded = json.loads((ROOT / "benchmarks/results/durability.json").read_text())
    for name in ("kills", "flips"):
        assert f"| {name} | {recorded[name]['trials']:,} | {len(recorded[name]['failures'])} |" in page
    hostile = json.loads((ROOT / "benchmarks/results/hostile_files.json").read_text())
    assert f"{hostile['settings']['files']} such files" in page and f"pruned: {len(hostile['faults'])} raised" in page
    for path in sorted((ROOT / "benchmarks/results").glob("long-*.json")):
        r = json.loads(path.read_text())
        disk = f"{r['disk_over_bits']:.5f}" if r["disk_over_bits"] else "no tape"
        exact = "yes" if r["exact"] else "no"
        assert (
            f"| {r['task']}, {r['optimizer']} | {r['steps']:,} | {exact} | {disk} | {r['commit_share']:.1%} |" in page
        )


def test_readme_names_the_two_commands_and_make_has_them():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for command in ("echo", "test"):
        assert f"make {command}" in readme
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_make_knows_its_targets():
    listed = subprocess.run(["make", "-n", "echo"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0 and "loschmidt echo" in listed.stdout
