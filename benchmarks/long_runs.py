"""Long runs there and back in a folder: exact? how large on disk? how much of the time went into commits?

    python benchmarks/long_runs.py [--task TASK] [--optimizer SGD] [--steps 100000] [--folder FOLDER] [--json FILE]

Uses the settings of `loschmidt echo`. With --folder the run is kept there as it goes, so that the same command goes on
where an earlier one was stopped (by Ctrl-C, or by a kill); without, it is made in a temporary folder. Run two at a
time on two cores: each takes one thread.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import loschmidt as lo
from loschmidt.echo import default_plan
from loschmidt.files import write_json
from loschmidt.tasks import TASKS
from loschmidt.trajectory import environment
from loschmidt.trajectory.manifest import is_run


def run(args: argparse.Namespace, folder: Path) -> dict:
    (plan,) = default_plan(args.task, (args.optimizer,), args.steps, args.seed)
    task = TASKS[plan.task](seed=plan.seed)
    batch_size = plan.batch_size or task.batch_size
    data = lo.data.Schedule(task.train, batch_size, seed=plan.seed, augment=task.augment)
    opt = getattr(lo.optim, plan.optimizer)(task.model.parameters(), **plan.settings, seed=plan.seed)
    notes_path = folder.with_suffix(".json")
    if is_run(folder):
        notes = json.loads(notes_path.read_text())
        traj = lo.Trajectory.load(folder, model=task.model, loss=task.loss, data=data)
    else:
        traj = lo.Trajectory(task.model, opt, task.loss, data, seed=plan.seed, tape=folder)
        notes = {"start": traj.digest(), "seconds": {"forward": 0.0, "back": 0.0}, "commits": 0.0}
        write_json(notes_path, notes)

    def go(target: int, leg: str) -> None:
        began, spent = time.perf_counter(), traj.folder.spent
        try:
            traj.seek(target, progress=True)
        finally:
            notes["seconds"][leg] += time.perf_counter() - began
            notes["commits"] += traj.folder.spent - spent
            write_json(notes_path, notes)

    if "turn" not in notes:
        go(args.steps, "forward")
        with traj.evaluating() as model, torch.no_grad():
            known = {
                "train_loss": float(task.loss(model, task.train)),
                "test_accuracy": task.accuracy(model, task.test),
            }
        manifest = traj.folder.manifest
        notes["turn"] = known | {
            "digest": traj.digest(),
            "tape_bits": traj.tape.bits,
            "bits_per_parameter_step": traj.tape.bits_per_parameter_step,
            "tape_bytes_on_disk": sum(s.bytes for s in manifest.tape),
            "journal_bytes_on_disk": sum(s.bytes for s in manifest.journal),
            "segments": [len(manifest.tape), len(manifest.journal)],
        }
        write_json(notes_path, notes)
    go(0, "back")
    end = traj.digest()
    turn, seconds = notes["turn"], notes["seconds"]
    result = {
        "task": plan.task,
        "optimizer": plan.optimizer,
        "settings": plan.settings,
        "batch_size": batch_size,
        "steps": args.steps,
        "parameters": traj.optimizer.numel,
        "exact": end == notes["start"],
        "start_digest": notes["start"],
        "end_digest": end,
        "turn": turn,
        "disk_over_bits": 8 * turn["tape_bytes_on_disk"] / turn["tape_bits"] if turn["tape_bits"] > 0 else None,
        "seconds": seconds,
        "commit_share": notes["commits"] / sum(seconds.values()),
    }
    traj.close()
    return result


def _command(args: argparse.Namespace) -> str:
    """The command, without folders of this machine."""
    given = {"task": args.task, "optimizer": args.optimizer, "steps": args.steps, "seed": args.seed}
    return "python benchmarks/long_runs.py " + " ".join(f"--{k} {v}" for k, v in given.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="modular-addition", choices=list(TASKS))
    parser.add_argument("--optimizer", default="SGD")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="long-run-") as temporary:
        result = run(args, args.folder or Path(temporary) / "run")
    shown = {k: result[k] for k in ("task", "optimizer", "steps", "exact", "disk_over_bits", "commit_share")}
    print(json.dumps(shown))
    if args.json:
        write_json(args.json, result | {"command": _command(args), "environment": environment.record()})
    return 0 if result["exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
