"""The report: what is on the page, what it does with bad records, how pictures are drawn, and the page in a browser."""

import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from loschmidt.claims.record import Picture, Series
from loschmidt.claims.topics import TWELVE
from loschmidt.cli import main
from loschmidt.errors import InvalidSetting, NotWritten
from loschmidt.report import build, draw, figure, make, source, style, words
from loschmidt.report.interactive import recolour
from loschmidt.report.points import LEAST_POINTS, drawn
from reference import browser
from reference import toy_claims as toys

pytest.importorskip("jinja2", reason="pip install 'loschmidt[lab]'")
pytest.importorskip("plotly", reason="pip install 'loschmidt[lab]'")


@pytest.fixture(autouse=True)
def toy_sentences(monkeypatch):
    monkeypatch.setattr(build, "sentences", lambda: source.parse(toys.SENTENCES))


def made(folder, **changes):
    """The page of the toy records in a folder, without plotly's own source."""
    out = folder / "report.html"
    result = make(folder, out, toys.CLAIMS | changes)
    text = out.read_text()
    return re.sub(r"<script>/\*\*.*?</script>", "", text, flags=re.DOTALL).replace("\u00a0", " "), result


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return toys.write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture
def own(tmp_path):
    return toys.write_records(tmp_path)


def change(folder, id, **fields):
    path = folder / f"claim-{id:02}-laptop.json"
    held = json.loads(path.read_text())
    held["claims"][0] |= fields
    path.write_text(json.dumps(held))


# -- what is on the page ---------------------------------------------------------------------------------


def section(text, id):
    return re.search(rf'<article class="claim wide" id="claim-{id}".*?</article>', text, re.DOTALL)[0]


def test_all_twelve_stand_in_the_table(records):
    text, result = made(records)
    table = re.search(r'<table class="verdicts.*?</table>', text, re.DOTALL)[0]
    rows = re.findall(r"<tr role=\"row\".*?</tr>", table, re.DOTALL)[1:]
    assert len(rows) == 12 and result.troubles == []
    for id, row in enumerate(rows, 1):
        verdict = toys.VERDICTS.get(id, "not run")
        assert f">{verdict}</span>" in row and result.verdicts[id] == verdict
        assert (f'href="#claim-{id}"' in row) == (id in toys.VERDICTS)
        if id not in toys.VERDICTS:
            assert TWELVE[id].statement.split("'")[0] in row
    assert re.findall(r"<b>(\d+)</b> ([a-z ]+)", text) == [
        *(("1", v) for v in ("supported", "refuted", "partly", "inconclusive")),
        ("8", "not run"),
    ]


def test_a_claim_shows_all_that_its_verdict_rests_on(records):
    part = section(made(records)[0], 10)
    for text in (
        *toys.TEXT.values(),
        "Does friction make",
        "[0.1012, 0.1094]",
        "1.2 × 10⁻⁵",
        "−4.2 × 10⁻⁴",
        "nats a step",
    ):
        assert text in part
    evidence, controls, checks = re.findall(r'<table class="numbers.*?</table>', part, re.DOTALL)
    assert "growth rate with momentum 0.9" in evidence and "bits that differ" not in evidence + controls
    assert "energy, largest change" in controls and "without friction" not in evidence
    assert "bits that differ" in checks and part.index("True by construction") < part.index("bits that differ")
    assert "met" in evidence and "not met" in evidence and "not measured" in evidence
    assert "seed 3: did not fit" in part and "loschmidt claims run 10 --scale laptop" in part
    assert 'href="https://arxiv.org/abs/1502.03492"' in part and 'href="#sentence-2"' in part
    assert "2.13.0+cpu" in part and "0, 1, 2, 3, 4" in part and "8.54 min" in part and "largest p" in part
    assert part.count('class="plot" role="img" aria-label="') == 3
    assert part.index("How the error of the way back grows") < part.index("What was measured")


def test_numbers_come_from_the_record(own):
    before = made(own)[0]
    measures = json.loads((own / "claim-02-laptop.json").read_text())["claims"][0]["measures"]
    measures[0]["value"] = 0.7654
    change(own, 2, measures=measures, verdict="refuted", title="another <title>")
    after = made(own)[0]
    assert "0.7654" in after and "0.7654" not in before
    assert after.count('badge refuted"') == before.count('badge refuted"') + 2
    assert "Another &lt;title&gt;" in after and "<title>" not in section(after, 2)


def test_the_page_asks_for_nothing(records):
    text = (made(records), (records / "report.html").read_text())[1]
    assert len(text.encode()) < 8e6
    head = text[: text.index("<body>")]
    assert "default-src 'none'" in head
    ours = made(records)[0]
    assert not re.search(r'(src|srcset|action|data)="(?!image)', ours) and "@import" not in ours and "url(" not in ours
    links = re.findall(r'<(\w+)[^>]* href="([^"#][^"]*)"', ours)
    assert {tag for tag, address in links if address != "data:,"} == {"a"}


def test_the_sentences_stand_at_the_end(records):
    text = made(records)[0]
    end = text[text.index('id="source"') :]
    assert "energy, that goes on over two lines." in end
    assert '<li id="sentence-1">' in end and "read by" in end and 'href="#claim-11"' in end


PLAIN_ONLY = toys.pictures(toys.evidence())[2:]


def test_the_page_stays_small_with_many_seeds_and_pictures(own):
    pictures = toys.pictures(toys.evidence(seeds=20, steps=4_000))
    one = make(own, own / "report.html", {2: replace(toys.CLAIMS[2], pictures=lambda given: pictures)}).bytes
    none = make(own, own / "report.html", {2: replace(toys.CLAIMS[2], pictures=lambda given: PLAIN_ONLY)}).bytes
    assert none + 12 * (one - none) < 8e6


# -- records that are not as they should be --------------------------------------------------------------


def test_damaged_and_foreign_records_are_named_and_set_aside(own):
    (own / "claim-03-laptop.json").write_text('{"claims": [')
    (own / "claim-04-laptop.json").write_text("[1]")
    change(own, 7, verdict="perhaps")
    change(own, 11, a_field_of_the_future=1)
    text, result = made(own)
    assert all("; it was set aside." in trouble for trouble in result.troubles)
    assert len(result.troubles) == 4 and result.verdicts[7] == result.verdicts[11] == "not run"
    for name in ("claim-03", "claim-04", "claim-07", "claim-11"):
        assert sum(f"{name}-laptop.json" in trouble for trouble in result.troubles) == 1
        assert f"{name}-laptop.json" in text
    assert result.verdicts[2] == "supported" and str(own) not in text


def test_pictures_that_cannot_be_made_leave_the_numbers(own):
    change(own, 2, evidence={"growth": [{"seed": 0}]})
    text, result = made(own)
    assert "Claim 2: its pictures can't be made from this record (KeyError: 'error')" in result.troubles[0]
    assert "[0.1012, 0.1094]" in section(text, 2) and "plot" not in section(text, 2)
    empty = make(own, own / "report.html", {})
    assert len(empty.troubles) == 4 and empty.bytes < 300_000  # no picture, no plotly


def test_what_qualifies_a_verdict_is_shown(own):
    change(own, 2, missing=["claim 2, growth, seed 4: not run"], thresholds_changed={"largest p": [0.05, 0.01]})
    change(own, 7, verdict=None, note="no verdict: too few seeds", sub_verdicts=[], measures=[])
    (own / "claim-07-laptop.json").rename(own / "claim-07-full.json")
    change_to = json.loads((own / "claim-11-laptop.json").read_text())
    change_to["claims"][0] |= {"scale": "smoke", "verdict": "supported"}
    (own / "claim-11-smoke.json").write_text(json.dumps(change_to))
    text, result = made(own)
    assert result.verdicts[7] == "no verdict" and "No verdict: too few seeds" in section(text, 7)
    assert "claim 2, growth, seed 4: not run" in section(text, 2) and "incomplete" in text
    assert "“largest p” was 0.05 when jobs ran, and 0.01 for the verdict" in section(text, 2)
    assert result.verdicts[11] == "refuted" and "at smoke scale" in section(text, 11)
    (own / "claim-11-laptop.json").unlink()
    assert "The smoke scale only tests the code" in section(made(own)[0], 11)


def test_refusals(own, monkeypatch):
    with pytest.raises(InvalidSetting, match=r"nowhere.*loschmidt claims run"):
        make(own / "nowhere", own / "report.html")
    with pytest.raises(NotWritten):
        make(own, own / "claim-02-laptop.json" / "report.html")
    (own / "report.html").write_text("before")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'loschmidt\[lab\]'"):
        make(own, own / "report.html", toys.CLAIMS)
    assert (own / "report.html").read_text() == "before"


def test_the_command(own, capsys):
    out, told = own / "page" / "r.html", own / "r.json"
    with pytest.raises(SystemExit) as stop:
        main(["report", "--records", str(own), "--out", str(out), "--json", str(told)])
    held = json.loads(told.read_text())
    assert [row["verdict"] for row in held["claims"]].count("not run") == 8
    assert held["page"]["bytes"] == len(out.read_bytes())
    assert stop.value.code == (1 if held["troubles"] else 0)
    assert "supported" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["report", "--records", str(own / "nowhere")])
    assert stop.value.code == 2 and "Remedy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "loschmidt report --records results" in capsys.readouterr().out


# -- pictures --------------------------------------------------------------------------------------------

ERROR, RATE, PLAIN = toys.pictures(toys.evidence())


def test_intervals_are_bands_about_lines_and_bars_about_points():
    traces = figure(ERROR).data
    assert sum(t.meta["part"] == "band" for t in traces) == 2 and all(t.error_y.array is None for t in traces)
    assert all(t.fill == "toself" for t in traces if t.meta["part"] == "band")
    bars = figure(RATE).data
    assert all(t.meta["part"] == "line" for t in bars)
    measured = next(t for t in bars if t.meta["series"] == 0)
    s = RATE.series[0]
    assert measured.error_y.array[1] == pytest.approx(s.high[1] - s.y[1], rel=1e-4)
    assert measured.error_y.arrayminus[1] == pytest.approx(s.y[1] - s.low[1], rel=1e-4)


def test_roles_look_different():
    seeds, evidence, control, theory = (style.looks(ERROR)[i] for i in (0, 5, 6, 7))
    assert seeds.rgb() == evidence.rgb() != control.rgb() and seeds.opacity < 0.5 < evidence.opacity
    assert theory.dash == "dash" and evidence.dash == control.dash == "solid" and control.hollow
    last = figure(ERROR).data[-2]
    assert figure(ERROR).data[-1].meta["part"] == "room"  # of the mark
    assert last.name == "SGD with momentum 0.9"  # evidence is drawn last, on top
    many = Picture("", "", "", "", [Series(f"s{i}", [0], [1]) for i in range(8)])
    assert len({(look.rgb(), look.dash) for look in style.looks(many)}) == 8


def test_theory_of_a_series_has_its_colour():
    names = ("late", "early", "early, predicted", "theory")
    roles = ("evidence", "evidence", "theory", "theory")
    series = [Series(name, [0], [1], role=role) for name, role in zip(names, roles, strict=True)]
    late, early, predicted, theory = (look.rgb() for look in style.looks(Picture("", "", "", "", series)))
    assert predicted == early and len({late, early, theory}) == 3


def test_a_page_can_recolour_all_of_a_figure():
    for picture in (ERROR, RATE, PLAIN):
        light, dark = (figure(picture, scheme).to_json() for scheme in ("light", "dark"))
        swapped = re.sub(r"rgba\((\d+,\d+,\d+),", lambda m: f"rgba({recolour().get(m[1], m[1])},", light)
        assert swapped == dark != light
        assert not re.search(r'"(#|rgb\()', light)


def test_colours_stay_apart_for_colour_blind_readers():
    linear = [v / 12.92 if (v := i / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for i in range(256)]
    sees = (  # Machado and others (2009), severity 1: eyes without red, without green
        ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
        ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    )
    to_xyz = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0178, 0.1095, 0.8727))  # over the white point

    def times(matrix, v):
        return [max(0.0, sum(a * b for a, b in zip(row, v, strict=True))) for row in matrix]

    def lab(rgb, eye):
        f = [
            t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
            for t in times(to_xyz, times(eye, [linear[i] for i in rgb]))
        ]
        return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])

    for palette, eye in itertools.product(style.PALETTES.values(), sees):
        colours = [*palette["evidence"], *palette["control"]]
        assert min(math.dist(lab(a, eye), lab(b, eye)) for a, b in itertools.combinations(colours, 2)) > 15


def test_a_logarithmic_axis_shows_what_is_positive():
    s = Series("a", [0, 1, 10, 100], [1e-3, 0.0, -1.0, 1.0], [-1.0, 0, 0, 0.5], [1e-2, 0, 0, 2.0])
    ready = drawn(Picture("", "", "x", "y", [s], log="xy", marks={"zero": 0.0}))
    assert ready.picture.series[0].x == [1, 10, 100] and ready.picture.series[0].y == [None, None, 1.0]
    assert ready.left_out == 3
    only_y = drawn(Picture("", "", "x", "y", [s], log="y"))
    assert only_y.picture.series[0].low[0] == 1e-3 == only_y.floor
    assert figure(Picture("", "", "x", "y", [s], log="xy", marks={"zero": 0.0})).layout.shapes == ()


def test_thinning_keeps_extremes_ends_and_gaps():
    y = [math.sin(t / 50) for t in range(20_000)]
    y[7_777], y[12_345], y[15_000] = 9.0, -9.0, None
    ready = drawn(Picture("", "", "", "", [Series("a", list(range(20_000)), y)] * 60))
    s = ready.picture.series[0]
    assert LEAST_POINTS / 2 < len(s.x) <= 2 * LEAST_POINTS and s.x[0] == 0 and s.x[-1] == 19_999
    assert 9.0 in s.y and -9.0 in s.y and None in s.y
    assert all(y[x] == v for x, v in zip(s.x, s.y, strict=True))
    assert ready.thinned > 60 * 19_000
    alone = drawn(Picture("", "", "", "", [Series("a", [0, 1, 2, 3], [None, 1, None, 2])])).picture.series[0]
    assert alone.mode == "lines+markers" and s.mode == "lines"
    nan = drawn(Picture("", "", "", "", [Series("a", [0, 1, math.nan], [math.nan, 1, 2])])).picture.series[0]
    assert nan.x == [0, 1] and nan.y == [None, 1.0]


def test_the_same_pictures_as_png(tmp_path):
    for i, picture in enumerate((ERROR, RATE, PLAIN)):
        draw(picture, tmp_path / f"{i}.png", "dark" if i else "light")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(NotWritten):
        draw(PLAIN, tmp_path / "0.png" / "x.png")


def test_a_picture_in_words():
    told = words.alternative(ERROR)
    for text in (
        "Logarithmic: vertical.",
        "without friction (control): from 3 × 10⁻⁷ at 0",
        "5 faint lines",
        "line at 2: all",
    ):
        assert text in told
    assert "momentum 0.98: 0.0202" in words.alternative(RATE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "–"), (0, "0"), (5.0, "5"), (-3, "−3"), (12_345, "12,345"), (0.152, "0.152"), (0.15346789, "0.1535")),
        *((1234.567, "1,235"), (-0.00042, "−4.2 × 10⁻⁴"), (1.2e-5, "1.2 × 10⁻⁵"), (3e12, "3 × 10¹²"), (math.nan, "–")),
        *((0.99996, "1"), (0.0099999, "0.01"), (True, "yes"), ("text", "text")),
    ],
)
def test_numbers_in_words(value, text):
    assert words.number(value) == text


def test_tight_intervals_keep_their_ends_apart():
    assert words.interval([0.1519981, 0.1520034]) == "[0.151998, 0.152003]" and words.digits([0.15, 0.16]) == 4
    assert (
        words.interval([1.0, 1.0]) == "[1, 1]"
        and words.interval(None) == "–"
        and words.interval([0.1, 0.2]) == "[0.1, 0.2]"
    )


@pytest.mark.parametrize(
    ("reference", "address"),
    [
        ("1502.03492", "https://arxiv.org/abs/1502.03492"),
        ("arXiv 1704.07715, eq. 3", "https://arxiv.org/abs/1704.07715"),
        ("hep-th/9901001", "https://arxiv.org/abs/hep-th/9901001"),
        ("doi:10.1103/PhysRevE.47.1", "https://doi.org/10.1103/PhysRevE.47.1"),
        ("Levesque and Verlet (1993)", None),
        ("pages 1993.1 to 2000", None),
    ],
)
def test_papers_are_linked(reference, address):
    assert words.link(reference) == address


# -- in a browser ----------------------------------------------------------------------------------------


def seen_in_browser(page, folder, *arguments):
    """What Chromium saw; skipped where there is none."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, browser.__file__, str(page), str(folder), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode == browser.MISSING:
        pytest.skip(f"no browser: pip install 'loschmidt[browser]' ({done.stdout.strip()})")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.browser
def test_the_page_on_a_phone_in_the_dark(records, tmp_path):
    made(records)
    seen = seen_in_browser(records / "report.html", tmp_path, 390, "dark")
    assert seen["loaded"] and seen["console"] == []
    assert len(seen["asked"]) == 1 and seen["asked"][0].endswith("report.html")
    assert seen["width"] == seen["content"] == 390 and seen["wide"] == []
    assert len(seen["pictures"]) == 3 * len(toys.CLAIMS)
    for picture in seen["pictures"]:
        assert picture["svg"] and all(
            s["width"] > 250 and s["height"] > 200 and s["right"] < 390 for s in picture["svg"]
        )
        assert picture["points"] >= 3 and len(picture["label"]) > 100
    quiet = style.PALETTES["dark"]["quiet"][0]
    assert {p["ink"] for p in seen["pictures"]} == {f"rgb({', '.join(map(str, quiet))})"}
    assert seen["paper"] == "rgb(17, 20, 24)" and (tmp_path / "page.png").exists()


@pytest.mark.browser
def test_the_page_on_a_desk_answers_to_clicks(records, tmp_path):
    made(records)
    script = """
    document.querySelector(".scheme").click();
    document.querySelector(".keys li:nth-child(4) button").click();
    const table = document.querySelector("details.data");
    table.addEventListener("toggle", () => console.log(table.querySelectorAll("td").length));
    table.open = true;
    """
    seen = seen_in_browser(records / "report.html", tmp_path, 1100, "light", script)
    assert seen["paper"] == "rgb(17, 20, 24)" and seen["content"] == 1100
    shown = toys.pictures(toys.evidence(seed=2))
    points = sum(y is not None for s in drawn(shown[0]).picture.series for y in s.y)
    assert seen["console"] == [f"InfoMessageLevel: {5 * points} (line 5)"]
    first, *rest = (p["points"] for p in seen["pictures"][::3])
    assert first == rest[0] - 5  # the seeds are hidden, in this picture only


@pytest.mark.browser
def test_the_page_on_paper(records, tmp_path):
    made(records)
    seen = seen_in_browser(records / "report.html", tmp_path, 1100, "dark", "dispatchEvent(new Event('beforeprint'))")
    assert seen["console"] == [] and seen["folded"] == 0
    assert {s["width"] for picture in seen["pictures"] for s in picture["svg"]} == {640}
    quiet = style.PALETTES["light"]["quiet"][0]
    assert {p["ink"] for p in seen["pictures"]} == {f"rgb({', '.join(map(str, quiet))})"}


@pytest.mark.browser
def test_the_browser_notices_a_bad_page(tmp_path):
    page = tmp_path / "bad.html"
    wide = '<div style="width: 500px">wide</div><img src="http://127.0.0.1:9/x.png"><script>nothing()</script>'
    page.write_text(f'<html data-drawn="0"><body>{wide}</body></html>')
    seen = seen_in_browser(page, tmp_path, 390)
    assert any("nothing is not defined" in line for line in seen["console"])
    assert any("127.0.0.1" in address for address in seen["asked"]) and seen["content"] > 390 and seen["wide"]
