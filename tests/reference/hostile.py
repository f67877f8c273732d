"""Files that somebody made to do harm, with right digests: what opening and looking at them does."""

import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

import loschmidt as lo
from loschmidt import cli
from loschmidt.trajectory import manifest, store
from loschmidt.trajectory.commit import digest_of

from .kills import parts

STEPS, EVERY = 100, 20
NUMBERS = [
    *(-1, 0, 1, 2, 7, 10**9, 10**11, 10**12, 10**15, 10**15 + 1, 2**63 - 1, 2**63, 10**30, 10**400),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), True, None, "5", "", [], {}, [[]], {"$tensor": "t0"}),
]
TEXTS = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b31m",
    "[bold red]x[/]",
    "[link=https://example.org]x[/link]",
    "[/]",
    "a\nb",
    "a\rb",
    "\u202eabc",
    "\x00",
    "\ud800",
    "x" * 10**6,
    "../../victim",
    "/etc/passwd",
]
NAMES = [
    *("../../victim", "../victim", "/etc/passwd", "state-00000001.safetensors/../../victim", "victim"),
    *("tape-00000001.safetensors\n", "state-99999999999999.safetensors", "state-\x1b[31m.safetensors", "", ".", ".."),
]
_FOLLOW = {"open", "os.chmod", "os.truncate"}
_WATCHED = _FOLLOW | {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
_RUNS = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "os.fork"}


# -- making them -----------------------------------------------------------------------------------------


def make_bases(where: Path) -> dict[str, Path]:
    """Whole runs, each in a folder and in a file."""
    bases = {}
    for name in ("SGD", "ECD"):
        model, opt, loss, data = parts(name)
        bases[name] = where / name
        with lo.Trajectory(model, opt, loss, data, tape=where / name / "run", commit_every=EVERY) as traj:
            traj.seek(STEPS).seek(STEPS - EVERY).seek(STEPS)
            traj.save(where / name / "one.safetensors")
    return bases


def sign(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and its copy, and sign them as they should be."""
    body = json.loads((run / manifest.MANIFEST).read_text())
    body.pop("digest", None)
    change(body)
    text = json.dumps({"digest": manifest._digest_of(body)} | body, indent=1) + "\n"
    for name in (manifest.MANIFEST, manifest.COPY):
        (run / name).write_bytes(text.encode("utf-8", "surrogatepass"))


def rewrite(run: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Put other tensors into a file of a run, and sign it."""
    data = save({k: v.contiguous().clone() for k, v in tensors.items()})
    (run / name).write_bytes(data)

    def change(body: dict[str, Any]) -> None:
        for file in [*(c["state"] for c in body["commits"]), *body["tape"], *body["journal"]]:
            if file["name"] == name:
                file |= {"bytes": len(data), "digest": digest_of(data)}

    sign(run, change)


def last(run: Path, kind: str) -> str | None:
    names = sorted(p.name for p in run.glob(f"{kind}-*"))
    return names[-1] if names else None


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Paths of everything in a JSON value."""
    for key, x in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(x, (*at, key))


def mutate(dice: random.Random, value: Any) -> Any:
    """Another JSON value, wrong at one place."""
    value = copy.deepcopy(value)
    *path, key = dice.choice(list(places(value)))
    inside = value
    for step in path:
        inside = inside[step]
    what = dice.randrange(8)
    if what == 0 and isinstance(inside, dict):
        del inside[key]
    elif what == 1 and isinstance(inside, dict):
        inside[dice.choice(TEXTS)] = inside[key]
    elif what == 2 and isinstance(inside, list):
        inside.append(inside[key])
    elif what == 3:
        inside[key] = dice.choice(TEXTS)
    elif what == 4 and isinstance(inside[key], (int, float)) and not isinstance(inside[key], bool):
        inside[key] = inside[key] + dice.choice([-1, 1, 1000, -(10**6), 0.5, 2**62])
    else:
        inside[key] = dice.choice(NUMBERS)
    return value


def other_tensor(dice: random.Random, x: torch.Tensor) -> torch.Tensor:
    """A tensor of another dtype, shape, or with values out of range."""
    what = dice.randrange(7)
    if what == 0:
        return x.to(dice.choice([torch.float32, torch.float64, torch.int32, torch.uint8, torch.bool, torch.float16]))
    if what == 1:
        return torch.cat([x.reshape(-1), x.reshape(-1)[:1]])
    if what == 2:
        return x.reshape(-1)[: x.numel() // 2]
    if what == 3:
        return x.reshape(1, *x.shape)
    if what == 4:
        return torch.zeros(0, dtype=x.dtype)
    y = x.clone().reshape(-1)
    if y.numel():
        extreme = torch.iinfo(x.dtype) if not x.dtype.is_floating_point and x.dtype != torch.bool else None
        choices = [float("nan"), float("inf"), -1.0, 1e30] if extreme is None else [extreme.max, extreme.min, 0]
        for _ in range(dice.choice([1, 1, y.numel()])):
            y[dice.randrange(y.numel())] = dice.choice(choices)
    return y.reshape(x.shape)


def mutate_tensors(dice: random.Random, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor less, one more, or another one."""
    tensors = dict(tensors)
    name = dice.choice(sorted(k for k in tensors if k not in ("about", "entries", "journal.entries")))
    what = dice.randrange(6)
    if what == 0:
        tensors.pop(name)
    elif what == 1:
        more = [
            "state.99.q",
            "state.0.zz",
            "buffer.../../x",
            "tape.7.planes",
            "untracked.0.weight",
            "\x1b[31m",
            "99.planes",
        ]
        tensors[dice.choice([*more, "buffer.1.nothing", "t99", "journal.t99", "state.-1.q"])] = tensors[name]
    else:
        tensors[name] = other_tensor(dice, tensors[name])
    return tensors


def as_text(value: Any) -> bytes:
    return json.dumps(value).encode()


def mutate_text(dice: random.Random, text: bytes) -> bytes:
    """JSON with something wrong, or no JSON at all."""
    if dice.randrange(5) == 0:
        deep = dice.choice([b"[" * 100_000, b'{"a":' * 50_000, b"[" * 9000 + b"]" * 9000])
        return dice.choice([b"", b"{", b"null", b"[]", b"\xff\xfe", b"NaN", b"9" * 5000, text[:-1], deep])
    value = json.loads(text)
    if isinstance(value, dict) and "meta" in value and dice.randrange(2):
        return as_text(value | {"meta": mutate_text(dice, value["meta"].encode()).decode(errors="replace")})
    return as_text(mutate(dice, value))


def bytes_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data or b" "), dtype=torch.uint8)


def of_manifest(dice: random.Random, case: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        other = mutate(dice, body)
        body.clear()
        body |= other

    sign(case / "run", change)


def of_texts(dice: random.Random, case: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        for _ in range(dice.choice([1, 3])):
            where = dice.choice([body, body, body["commits"][-1]])
            where[dice.choice([k for k in ("optimizer", "loschmidt", "run", "created", "time") if k in where])] = (
                dice.choice(TEXTS)
            )

    sign(case / "run", change)


def of_names(dice: random.Random, case: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        files = [*(c["state"] for c in body["commits"]), *body["tape"], *body["journal"]]
        dice.choice(files)["name"] = dice.choice([*NAMES, dice.choice(files)["name"]])

    sign(case / "run", change)


def of_raw_manifest(dice: random.Random, case: Path) -> None:
    text = (case / "run" / manifest.MANIFEST).read_bytes()
    for name in (manifest.MANIFEST, manifest.COPY):
        (case / "run" / name).write_bytes(mutate_text(dice, text))


def of_kinds(dice: random.Random, case: Path) -> None:
    """Links, pipes, folders and devices in the place of files."""
    run = case / "run"
    ours = [p.name for p in run.iterdir()]
    name = dice.choice(
        [*ours, *manifest.TEMPORARY, manifest.LOCK, "state-00000099.safetensors", "tape-99999999999.safetensors"]
    )
    path = run / name
    path.unlink(missing_ok=True)
    what = dice.randrange(6)
    if what == 0:
        path.symlink_to(case / "victim")
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.mkdir()
    elif what == 3:
        path.symlink_to("/dev/zero")
    elif what == 4:
        path.symlink_to(case / "not there")
    else:
        path.symlink_to(path.name)


def of_state(dice: random.Random, case: Path) -> None:
    name = last(case / "run", "state")
    rewrite(case / "run", name, mutate_tensors(dice, load_file(case / "run" / name)))


def of_about(dice: random.Random, case: Path) -> None:
    name = last(case / "run", "state")
    tensors = load_file(case / "run" / name)
    tensors["about"] = bytes_tensor(mutate_text(dice, tensors["about"].numpy().tobytes()))
    rewrite(case / "run", name, tensors)


def of_journal(dice: random.Random, case: Path) -> None:
    name = dice.choice(sorted(p.name for p in (case / "run").glob("journal-*")))
    rewrite(case / "run", name, mutate_tensors(dice, load_file(case / "run" / name)))


def of_entries(dice: random.Random, case: Path) -> None:
    name = dice.choice(sorted(p.name for p in (case / "run").glob("journal-*")))
    tensors = load_file(case / "run" / name)
    tensors["entries"] = bytes_tensor(mutate_text(dice, tensors["entries"].numpy().tobytes()))
    rewrite(case / "run", name, tensors)


def of_tape(dice: random.Random, case: Path) -> None:
    names = sorted(p.name for p in (case / "run").glob("tape-*"))
    if not names:
        return of_journal(dice, case)
    name = dice.choice(names)
    tensors = load_file(case / "run" / name)
    return rewrite(case / "run", name, mutate_tensors(dice, tensors))


def of_header(dice: random.Random, case: Path) -> None:
    """A safetensors file whose header lies; in the run's folder, signed, and alone."""
    path = dice.choice([case / "one.safetensors", case / "run" / last(case / "run", "state")])
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    what = dice.randrange(4)
    if what == 0:
        data = struct.pack("<Q", dice.choice([0, 1, 2**33, 2**63, 2**64 - 1, size + 1])) + data[8:]
    elif what == 1:
        text = dice.choice([b"{" * 100_000, b"", b"\xff" * 9, b"[]", b'{"a":' * 60_000])
        data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    else:
        tensor = header[dice.choice([k for k in header if k != "__metadata__"])]
        tensor[dice.choice(["shape", "data_offsets", "dtype"])] = dice.choice(
            [[2**62, 2**62], [0, 2**40], [5, 1], [-1], "F64", "I3", None, [2**64]]
        )
        text = as_text(header)
        data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    path.write_bytes(data)
    if path.parent.name == "run":
        new = {"bytes": len(data), "digest": digest_of(data)}
        sign(path.parent, lambda body: body["commits"][-1]["state"].update(new))


def resave(path: Path, tensors: dict[str, torch.Tensor], text: str) -> None:
    signed = {"loschmidt": store.FORMAT, "about": text, "digest": store._digest(text, tensors)}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, signed)


def of_one_file(dice: random.Random, case: Path) -> None:
    """A run in one file, with other tensors or another description, signed: also with the digest of what it has."""
    path = case / "one.safetensors"
    with safe_open(path, "pt") as f:
        text, tensors = f.metadata()["about"], {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    what = dice.randrange(3)
    if what == 0:
        tensors = mutate_tensors(dice, tensors)
    elif what == 1:
        entries = mutate_text(dice, tensors["journal.entries"].numpy().tobytes())
        tensors["journal.entries"] = bytes_tensor(entries)
    else:
        text = mutate_text(dice, text.encode()).decode(errors="replace")
    resave(path, tensors, text)
    seen, digest = [], lo.Trajectory.digest

    def noted(traj: lo.Trajectory) -> str:
        seen.append(digest(traj))
        return seen[-1]

    with mock.patch.object(lo.Trajectory, "digest", noted), contextlib.suppress(Exception):
        open_run(path, (case / "name").read_text())
    if seen:
        resave(path, tensors, json.dumps(json.loads(text) | {"digest": seen[0]}))


def of_place(dice: random.Random, case: Path) -> None:
    """Something else where a run in one file should be."""
    path = case / "one.safetensors"
    path.unlink()
    what = dice.randrange(4)
    if what == 0:
        os.mkfifo(path)
    elif what == 1:
        path.symlink_to("/dev/zero")
    elif what == 2:
        path.symlink_to(path.name)
    else:
        deep = case / "run" / "\x1b[31mred" / "[bold]"
        deep.mkdir(parents=True)
        (deep / manifest.MANIFEST).write_text("\x1b[31m")


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "manifest": of_manifest,
    "texts of the manifest": of_texts,
    "names in the manifest": of_names,
    "no manifest": of_raw_manifest,
    "links, pipes, folders": of_kinds,
    "state": of_state,
    "description": of_about,
    "journal": of_journal,
    "entries of the journal": of_entries,
    "tape": of_tape,
    "header": of_header,
    "one file": of_one_file,
    "place": of_place,
}


# -- looking at what they do -----------------------------------------------------------------------------


def open_run(path: Path, name: str, **how: bool) -> lo.Trajectory:
    model, _, loss, data = parts(name)
    return lo.Trajectory.load(path, model=model, loss=loss, data=data, **how)


class _Watch:
    """What Python does to files outside a folder, and what it runs. There is one for the process: hooks stay."""

    inside: Path | None = None
    seen: list[str] = []  # noqa: RUF012
    hooked = False

    @classmethod
    def hook(cls, event: str, args: tuple) -> None:
        if cls.inside is None:
            return
        if event in _RUNS:
            cls.seen.append(f"ran {event}{args!r}"[:200])
        elif event in _WATCHED and not (event == "open" and not cls._writes(args)):
            for path in args[: 1 if event in _FOLLOW else 2]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    place = os.path.abspath(os.fsdecode(path))
                    if event in _FOLLOW:
                        place = os.path.realpath(place)
                    else:
                        place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
                    if not f"{place}{os.sep}".startswith(f"{cls.inside}{os.sep}") and place != os.devnull:
                        cls.seen.append(f"{event} {place}"[:200])

    @staticmethod
    def _writes(args: tuple) -> bool:
        _, mode, flags = args
        if isinstance(mode, str):
            return any(c in mode for c in "wax+")
        return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    if not _Watch.hooked:
        sys.addaudithook(_Watch.hook)
        _Watch.hooked = True
    _Watch.inside, _Watch.seen = Path(os.path.realpath(folder)), []
    try:
        yield _Watch.seen
    finally:
        _Watch.inside = None


class Hung(BaseException):
    """Something waits that should not."""


def _ring(*_: Any) -> None:
    raise Hung


def attempt(what: Callable[[], Any], faults: list[str], outcomes: Counter, label: str, seconds: int = 60) -> None:
    """Do it; note how it ended."""
    before = signal.signal(signal.SIGALRM, _ring)
    signal.alarm(seconds)
    try:
        what()
        outcomes["went through"] += 1
    except lo.LoschmidtError as error:
        outcomes[type(error).__name__] += 1
        if unprintable(str(error)) or len(str(error)) > 4000:
            faults.append(f"{label}: an error that is not printable, or endless: {str(error)[:200]!r}")
    except Hung:
        faults.append(f"{label}: hung")
    except Exception as error:
        outcomes["raw"] += 1
        faults.append(f"{label}: raw {type(error).__name__}: {str(error)[:200]!r}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def unprintable(text: str) -> bool:
    return any(not c.isprintable() and c != "\n" for c in text)


def walk(path: Path, name: str, salvage: bool) -> None:
    """Open a run, go back to its start and on again."""
    with open_run(path, name, **({"salvage": True} if salvage else {})) as traj:
        step, first = traj.step, max(traj.first, traj.journal.first)
        traj.seek(max(first, step - 80))
        traj.seek(min(traj.step + 3, step))


def look(faults: list[str], outcomes: Counter, *arguments: str) -> None:
    """A command, as on a terminal; what it prints."""
    out, err = io.StringIO(), io.StringIO()

    def command() -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            cli.main(["runs", *arguments])

    attempt(command, faults, outcomes, f"runs {arguments[0]}")
    said = out.getvalue() + err.getvalue()
    if unprintable(said):
        faults.append(f"runs {arguments[0]}: printed {next(c for c in said if not c.isprintable() and c != chr(10))!r}")


def trial(bases: dict[str, Path], seed: int, work: Path) -> tuple[str, list[str], Counter]:
    """One hostile case: its kind, what was wrong, and how attempts ended."""
    dice, kind = random.Random(seed), list(KINDS)[seed % len(KINDS)]
    name = dice.choice(sorted(bases))
    case = work / f"case{seed}"
    shutil.copytree(bases[name], case)
    (case / "victim").write_text("untouched")
    (case / "name").write_text(name)
    KINDS[kind](dice, case)
    before, faults, outcomes = tree(case), [], Counter()
    with warnings.catch_warnings(record=True) as told, watched(case / "run") as seen:
        warnings.simplefilter("always")
        for command in ("list", "show", "verify"):
            look(faults, outcomes, command, str(case / "run"))
        attempt(lambda: walk(case / "one.safetensors", name, False), faults, outcomes, "one file")
        for salvage in (False, True):
            attempt(lambda: walk(case / "run", name, salvage), faults, outcomes, f"salvage={salvage}")  # noqa: B023
        for command in ("verify", "prune", "show"):
            look(faults, outcomes, command, str(case / "run"))
    faults += [f"outside: {what}" for what in seen]
    faults += [f"a warning: {str(w.message)[:200]!r}" for w in told if unprintable(str(w.message))]
    if tree(case) != before:
        faults.append("something beside the run's folder is not what it was")
    shutil.rmtree(case)
    return kind, [f"seed {seed}, {kind}, {name}: {fault}" for fault in faults], outcomes


def tree(case: Path) -> dict[str, Any]:
    """All that is beside the run's folder."""
    return {p.name: p.read_bytes() if p.is_file() and not p.is_symlink() else p.lstat().st_mode
            for p in case.iterdir() if p.name != "run"}  # fmt: skip


def trials(
    where: Path,
    seeds: range,
    tick: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda fault: None,
) -> dict[str, Any]:
    """All of them: counts by kind and by outcome, and what was wrong."""
    where = Path(os.path.realpath(where))
    torch.set_num_threads(1)
    bases, kinds, outcomes, wrong = make_bases(where / "bases"), Counter(), {}, []
    for seed in seeds:
        kind, faults, ended = trial(bases, seed, where)
        kinds[kind] += 1
        outcomes.setdefault(kind, Counter()).update(ended)
        wrong += faults
        for fault in faults:
            tell(fault)
        tick()
    return {"files": kinds, "attempts": outcomes, "faults": wrong}
