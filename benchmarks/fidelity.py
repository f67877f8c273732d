"""Whether the 32-bit default trains as torch.optim.AdamW does: beside torch twins that start one ulp away.

    python benchmarks/fidelity.py [--json FILE] [--twins 10] [--only text digits ...]

Training: of each task a reference with torch's AdamW, twins of it whose initial weights were moved by one unit in the
last place, and ours, on the same batches. Two distances from the reference: of the final weights, over how far they
moved; and the largest difference of means of 50 losses. Ours should lie within the 95 % prediction range of the twins.

Given gradients: beside torch's AdamW in float64, with gradients of very different sizes between tensors, within one, and
with rows of an embedding that rarely have one.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

import loschmidt as lo
from loschmidt.data import Schedule
from loschmidt.files import write_json
from loschmidt.models import GPT
from loschmidt.tasks import TASKS
from loschmidt.trajectory import environment

T_95 = 2.262  # of Student's distribution, two-sided, 9 degrees of freedom
OURS = {"32-bit": {}, "16-bit moments": {"moments": "16-bit"}}
TASKS_RUN = {
    "text": {"lr": 1e-3, "weight_decay": 0.01, "steps": 1000},
    "digits": {"lr": 1e-3, "weight_decay": 0.01, "steps": 600},
    "modular-addition": {"lr": 1e-3, "weight_decay": 1.0, "steps": 250},
    "lora": {"lr": 1e-3, "weight_decay": 0.01, "steps": 400},
}


def lora_task():
    """The text task with a random GPT whose matrices are frozen, each with a LoRA beside it."""
    task = TASKS["text"]()
    torch.manual_seed(1)
    vocabulary = next(p for p in task.model.parameters()).shape[0]
    model = GPT(vocabulary, 64, seed=1)
    for p in model.parameters():
        p.requires_grad_(False)
    for module in list(model.modules()):
        for name, p in list(module.named_parameters(recurse=False)):
            if p.dim() == 2 and min(p.shape) >= 32:
                nn.utils.parametrize.register_parametrization(module, name, _Adapter(p))
    return task, model


class _Adapter(nn.Module):
    """A map of rank 8 beside a frozen one (Hu et al., arXiv 2106.09685)."""

    def __init__(self, weight: torch.Tensor, rank: int = 8):
        super().__init__()
        self.down = nn.Parameter(torch.randn(weight.shape[0], rank) / rank)
        self.up = nn.Parameter(torch.zeros(rank, weight.shape[1]))

    def forward(self, weight):
        return weight + self.down @ self.up


def made(name):
    """A fresh task and its model."""
    if name == "lora":
        return lora_task()
    task = TASKS[name]()
    return task, task.model


def moved_by_an_ulp(parameters, seed):
    """Each weight to the next float above or below, at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            side = torch.where(torch.rand(p.shape, generator=generator) < 0.5, -torch.inf, torch.inf)
            p.copy_(torch.nextafter(p, side.to(p.dtype)))


def train(name, steps, ours=None, twin=None, **settings):
    """Losses of all steps, initial and final weights."""
    task, model = made(name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.cat([p.detach().flatten() for p in parameters]).double()
    if twin is not None:
        moved_by_an_ulp(parameters, twin)
    if ours is None:
        opt = torch.optim.AdamW(parameters, **settings)
    else:
        opt = lo.optim.AdamW(parameters, **settings, **ours)
    batches = Schedule(task.train, batch_size=task.batch_size, seed=0, augment=task.augment)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        opt.zero_grad()
        loss = task.loss(model, batches(step))
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses, first, torch.cat([p.detach().flatten() for p in parameters]).double()


def compare(run, reference):
    """How far a run is from the reference."""
    (losses, _, last), (reference_losses, first, reference_last) = run, reference
    means = [statistics.fmean(losses[i : i + 50]) for i in range(0, len(losses), 50)]
    others = [statistics.fmean(reference_losses[i : i + 50]) for i in range(0, len(losses), 50)]
    return {
        "weights": float((last - reference_last).norm() / (reference_last - first).norm()),
        "loss": max(abs(a - b) for a, b in zip(means, others, strict=True)),
        "last 100": statistics.fmean(losses[-100:]),
    }


def upper(values):
    """The upper end of the 95 % prediction range of one more value."""
    return statistics.fmean(values) + T_95 * statistics.stdev(values) * (1 + 1 / len(values)) ** 0.5


def training(name, twins, progress):
    """One task."""
    settings = TASKS_RUN[name]
    reference = train(name, **settings)
    progress(f"{name}: reference")
    out = {"settings": settings, "reference": {"last 100": statistics.fmean(reference[0][-100:])}}
    out["twins"] = []
    for twin in range(twins):
        out["twins"].append(compare(train(name, **settings, twin=twin), reference))
        progress(f"{name}: twin {twin + 1} of {twins}")
    for label, options in OURS.items():
        out[label] = compare(train(name, **settings, ours=options), reference)
        progress(f"{name}: {label}")
    out["upper"] = {k: upper([t[k] for t in out["twins"]]) for k in ("weights", "loss")}
    return out


# -- given gradients -----------------------------------------------------------------------------------------------------


def follow(gradients, shapes, steps, ours, lr=1e-3):
    """How far ours ends from torch's AdamW in float64, over how far that moved, for each element."""
    torch.manual_seed(0)
    start = [torch.randn(shape) * 0.1 for shape in shapes]
    mine = [nn.Parameter(x.clone()) for x in start]
    opt = lo.optim.AdamW(mine, lr=lr, **ours)
    exact = [nn.Parameter(p.detach().double()) for p in mine]
    other = torch.optim.AdamW(exact, lr=lr)
    for step in range(steps):
        for p, e, g in zip(mine, exact, gradients(step), strict=True):
            p.grad, e.grad = (None, None) if g is None else (g.float(), g.double())
        opt.step()
        other.step()
    return [((p.double() - e).abs(), (e - x.double()).abs()) for p, e, x in zip(mine, exact, start, strict=True)]


def between_tensors(ours, steps=800):
    """Each tensor's gradients have a size of their own, over ten decades: error over movement, by tensor."""
    sizes = [10.0**k for k in range(-8, 3)]

    def gradients(step):
        g = torch.Generator().manual_seed(step)
        return [size * (torch.randn(4096, generator=g) + 0.5) for size in sizes]

    pairs = follow(gradients, [4096] * len(sizes), steps, ours)
    return {f"{s:g}": float(a.detach().mean() / b.detach().mean()) for s, (a, b) in zip(sizes, pairs, strict=True)}


def within_a_tensor(ours, steps=800):
    """Sizes of gradients log-uniform over eight decades, mixed within each row: error over movement, by decade."""
    sizes = 10.0 ** (-8 * torch.rand(1 << 15, generator=torch.Generator().manual_seed(7)))

    def gradients(step):
        return [sizes * (torch.randn(1 << 15, generator=torch.Generator().manual_seed(step)) + 0.5)]

    ((error, moved),) = follow(gradients, [1 << 15], steps, ours)
    out = {}
    for k in range(-1, -9, -1):
        chosen = (sizes >= 10.0**k) & (sizes < 10.0 ** (k + 1))
        out[f"1e{k}"] = float(error[chosen].detach().mean() / moved[chosen].detach().mean())
    return out


def rare_rows(ours, steps=800, width=64):
    """Rows of an embedding that have a gradient with probability 1, 0.1, 0.01, 0.001: error over movement."""
    chances = [1.0, 0.1, 0.01, 0.001]
    chance = torch.tensor(chances).repeat_interleave(256)

    def gradients(step):
        g = torch.Generator().manual_seed(step)
        touched = torch.rand(1024, generator=g) < chance
        return [(torch.randn(1024, width, generator=g) + 0.5) * touched[:, None]]

    ((error, moved),) = follow(gradients, [(1024, width)], steps, ours)
    parts = zip(chances, error.detach().split(256), moved.detach().split(256), strict=True)
    return {f"{c:g}": float(a.mean() / b.mean()) for c, a, b in parts}


GIVEN = {"between tensors": between_tensors, "within a tensor": within_a_tensor, "rare rows": rare_rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="results; what is in it already is not run again")
    parser.add_argument("--twins", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=[*TASKS_RUN, *GIVEN], default=[*TASKS_RUN, *GIVEN])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}

    def progress(text):
        print(text, file=sys.stderr, flush=True)

    for name in args.only:
        if name in out:
            continue
        if name in GIVEN:
            out[name] = {label: GIVEN[name](options) for label, options in OURS.items()}
            progress(name)
        else:
            out[name] = training(name, args.twins, progress)
        out["environment"] = environment.record()
        if args.json:
            write_json(args.json, out)
    for name, result in out.items():
        print(name, {k: v for k, v in result.items() if k != "twins"})


if __name__ == "__main__":
    main()
