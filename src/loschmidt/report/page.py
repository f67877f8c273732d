"""The report: one HTML file from records, with all that it needs inside."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, get_args

from ..claims.record import Claim, Measure, Picture, Verdict
from ..claims.records import WORDS, ClaimRecord
from ..claims.topics import TWELVE
from ..errors import InvalidSetting
from ..trajectory.environment import package_version
from . import words
from .interactive import figure, recolour
from .points import drawn
from .records import Found
from .source import Sentence
from .style import PALETTES, Look, looks, mark_dash, owner_of

NOT_RUN, NO_VERDICT = "not run", "no verdict"
_DASHES = {"dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "solid": ""}
_SYMBOLS = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "square": "M-3.6-3.6h7.2v7.2h-7.2z",
    "diamond": "M0-5L5 0L0 5L-5 0z",
    "triangle-up": "M0-4.6L4.6 3.8H-4.6z",
    "cross": "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
    "star": "M0-5L1.5-1.6L5-1.5L2.3.9L3.2 4.5L0 2.5L-3.2 4.5L-2.3.9L-5-1.5L-1.5-1.6z",
}


def page(found: Found, claims: Mapping[int, Claim], sentences: Sequence[Sentence]) -> tuple[str, list[str]]:
    """The page as text.

    Args:
        found: records, and what is wrong with others.
        claims: by number, those that are built: they draw the pictures.
        sentences: of the source.

    Returns:
        The page; and what could not be shown, a sentence each: also on the page.

    Raises:
        InvalidSetting: jinja2 or plotly is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InvalidSetting(f"loschmidt report needs {error.name}.", "pip install 'loschmidt[lab]'.") from error

    troubles = list(found.troubles)
    entries = [_entry(id, found, claims.get(id), troubles, Markup) for id in TWELVE]
    any_picture = any(entry["pictures"] for entry in entries)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, auto_reload=False
    )
    environment.filters |= {
        "number": _whole(words.number),
        "interval": _whole(words.interval),
        "digits": words.digits,
        "slug": lambda s: s.replace(" ", "-"),
    }
    environment.filters["opening"] = words.opening
    verdicts = [entry["verdict"] for entry in entries]
    text = environment.get_template("page.html.j2").render(
        claims=entries,
        tally=[(v, verdicts.count(v)) for v in (*get_args(Verdict), NO_VERDICT, NOT_RUN) if v in verdicts],
        troubles=troubles,
        sentences=[_sentence(s, entries) for s in sentences],
        version=package_version(),
        files=len(found.shown),
        css=Markup(_asset("page.css")),
        js=Markup(_asset("page.js")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")) if any_picture else "",
        dark=Markup(_json(recolour("dark"))),
    )
    return text, troubles


def _whole(words: Callable[..., str]) -> Callable[..., str]:
    """A number is not broken over two lines; an interval is, between its ends."""
    return lambda *arguments: words(*arguments).replace(" ", "\u00a0").replace(",\u00a0", ", ")


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _sentence(s: Sentence, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"number": s.number, "text": s.text, "claims": [e["id"] for e in entries if s.number in e["sentences"]]}


def _entry(
    id: int, found: Found, claim: Claim | None, troubles: list[str], markup: Callable[[str], str]
) -> dict[str, Any]:
    """What the template shows of a claim."""
    topic, r = TWELVE[id], found.shown.get(id)
    if r is None:
        title, statement = (claim.title, claim.statement) if claim else (topic.title, topic.statement)
        entry = {"title": title, "statement": statement, "sentences": claim.sentences if claim else topic.sentences}
        return entry | {"id": id, "run": False, "verdict": NOT_RUN, "sub_verdicts": [], "pictures": []}
    evidence, controls, checks = _sorted(r.measures)
    pictures = _pictures(r, claim, troubles)
    return {name: getattr(r, name) for name in (*WORDS, "sub_verdicts", "scale", "left_out", "missing", "command")} | {
        "run": True,
        "incomplete": not r.complete,
        "verdict": r.verdict or NO_VERDICT,
        "notes": _notes(r),
        "n": len(r.seeds),
        "evidence": evidence,
        "controls": controls,
        "checks": checks,
        "pictures": [_picture(f"picture-{id}-{k}", p, markup) for k, p in enumerate(pictures, 1)],
        "papers": [{"reference": k, "words": v, "link": words.link(k)} for k, v in r.citations.items()],
        "thresholds": list(r.thresholds.items()),
        "facts": _facts(r, found.others[id]),
    }


def _notes(r: ClaimRecord) -> list[str]:
    """What a reader of the verdict must know."""
    notes = ["The smoke scale only tests the code: its verdict says nothing of the claim."] * (r.scale == "smoke")
    notes += [words.opening(r.note)] * bool(r.note)
    notes += [f"Incomplete: {len(r.missing)} jobs have no result; they are listed below."] * bool(r.missing)
    return notes + [
        f"The threshold “{name}” was {words.number(then)} when jobs ran, and {words.number(now)} for the verdict."
        for name, (then, now) in r.thresholds_changed.items()
    ]


def _sorted(measures: Sequence[Measure]) -> tuple[list[Measure], list[Measure], list[Measure]]:
    """Evidence, controls, implementation checks."""
    checks = [m for m in measures if m.kind == "implementation check"]
    rest = [m for m in measures if m.kind != "implementation check"]
    return [m for m in rest if not m.control], [m for m in rest if m.control], checks


def _pictures(r: ClaimRecord, claim: Claim | None, troubles: list[str]) -> Sequence[Picture]:
    if claim is None:
        troubles.append(f"Claim {r.id} is not built in this version, so its pictures are not drawn; its numbers are.")
        return ()
    try:
        return list(claim.pictures(r.evidence))
    except Exception as error:  # evidence of another version of the claim: its numbers still count
        why = f"{type(error).__name__}: {error}"
        troubles.append(f"Claim {r.id}: its pictures can't be made from this record ({why}); its numbers are shown.")
        return ()


def _picture(id: str, picture: Picture, markup: Callable[[str], str]) -> dict[str, Any]:
    ready = drawn(picture)
    drawing = json.loads(figure(picture).to_json(validate=False))
    del drawing["layout"]["title"]  # the page has it as text, which wraps
    drawing["layout"]["margin"]["t"] = 8
    notes = []
    if ready.left_out:
        notes.append(f"{ready.left_out:,} points that are not positive have no place on a logarithmic axis.")
    if ready.thinned:
        notes.append(f"Drawn without {ready.thinned:,} points between; ends and extremes of each stretch are kept.")
    return {
        "id": id,
        "title": picture.title,
        "caption": picture.caption,
        "x": picture.x,
        "y": picture.y,
        "notes": notes,
        "alternative": words.alternative(picture),
        "legend": _keys(ready.picture, bool(ready.categories)),
        "marks": [
            {"words": text, "dashes": _DASHES[mark_dash(k)], "rgb": PALETTES["light"]["quiet"][0]}
            for k, text in enumerate(picture.marks)
        ],
        "figure": markup(_json(drawing)),
    }


def _keys(picture: Picture, placed: bool) -> list[dict[str, Any]]:
    """The legend. A key shows and hides the seeds that belong to its series, too; all seeds share one more key."""
    seen = looks(picture)
    keys = {
        i: _key(i, seen[i], s.mode, placed and s.role == "theory" and s.mode == "markers")
        | {"name": s.name, "role": s.role if s.role in ("control", "theory") else ""}
        | {"band": s.low is not None and s.high is not None and s.mode != "markers"}
        for i, s in enumerate(picture.series)
        if s.role != "seed"
    }
    seeds = [i for i, s in enumerate(picture.series) if s.role == "seed"]
    for i in seeds:
        if (owner := owner_of(picture.series[i], picture.series)) is not None:
            keys[owner]["series"].append(i)
    if not seeds:
        return list(keys.values())
    key = _key(seeds[0], seen[seeds[0]], "lines", False) | {"series": seeds, "role": "", "band": False, "opacity": 0.6}
    colours = {seen[i].rgb() for i in seeds}
    key |= {"name": "each seed"} | ({"rgb": PALETTES["light"]["quiet"][0]} if len(colours) > 1 else {})
    return [*keys.values(), key]


def _key(i: int, look: Look, mode: str, dash: bool) -> dict[str, Any]:
    return {
        "series": [i],
        "rgb": look.rgb(),
        "width": look.width,
        "opacity": look.opacity,
        "line": "lines" in mode or dash,
        "dashes": "" if dash else _DASHES[look.dash],
        "symbol": _SYMBOLS[look.symbol] if "markers" in mode and not dash else "",
        "hollow": look.hollow,
    }


def _facts(r: ClaimRecord, others: Sequence[ClaimRecord]) -> list[tuple[str, str]]:
    facts = [("seeds", ", ".join(map(str, r.seeds))), ("scale", r.scale), ("time, all jobs", words.duration(r.seconds))]
    facts += [(f"code of “{part}”", version) for part, version in r.code.items()]
    facts += [(k, words.number(v)) for k, v in r.environment.items() if v not in ("", None)]
    facts += [("different environments", str(r.environments))] * (r.environments > 1)
    facts += [("taken over from an earlier record", f"{part} ({r.code.get(part, '')})") for part in r.taken_over]
    facts += [("set aside, not used", text) for text in r.set_aside]
    return facts + [(f"at {other.scale} scale", other.verdict or NO_VERDICT) for other in others]
