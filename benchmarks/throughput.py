"""Steps per second of claim 3's run beside a loop written by hand, and of several seeds batched in one process.

    python benchmarks/throughput.py [--json FILE] [--blocks 11] [--steps 250] [--seeds 1 2 4 8]

The loop does the same dynamics (ECD, decay inside H, full batch) on the same network in plain floats: parameters and
gradients are views of two flat tensors, and a step is a backward pass, two dot products and three updates. It is timed
in turn with a `Trajectory` (plain, with what claim 3 notes, and with friction), with claim 3's own runs (whose network
is in float32, and whose state is on the lattice all the same) and with seeds batched by `torch.func.vmap`, all on one
thread; medians of the ratios of blocks that follow each other.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.func import functional_call, grad_and_value, vmap

from loschmidt.claims.breathing_runs import DTYPES, Looks, begin
from loschmidt.claims.c03_cooling import CLAIM
from loschmidt.files import write_json
from loschmidt.tasks.modular_addition import loss
from loschmidt.trajectory import environment

SETTINGS = dict(CLAIM.parts[0].settings["laptop"])


class Loop:
    """The hand-written loop."""

    def __init__(self, settings):
        net, _ = begin(settings, 0)
        self.model, self.train = net.model, net.train
        parameters = list(self.model.parameters())
        self.q = torch.cat([p.detach().flatten() for p in parameters])
        self.p, self.g = torch.zeros_like(self.q), torch.zeros_like(self.q)
        at = 0
        for x in parameters:
            x.data = self.q[at : at + x.numel()].view(x.shape)
            x.grad = self.g[at : at + x.numel()].view(x.shape)
            at += x.numel()
        self.dt, self.decay = settings["lr"], settings["weight_decay"]

    def __call__(self, steps):
        q, p, g, dt, decay = self.q, self.p, self.g, self.dt, self.decay
        for _ in range(steps):
            g.zero_()
            value = loss(self.model, self.train)
            value.backward()
            with torch.no_grad():
                d = float(value) + 0.5 * decay * float(q @ q)
                p.add_(g, alpha=-dt / d).add_(q, alpha=-dt * decay / d)
                q.add_(p, alpha=2 * dt / (1 + float(p @ p)))


class Batched:
    """Several seeds at once: stacked parameters, one backward pass by vmap."""

    def __init__(self, settings, seeds):
        nets = [begin(settings, seed)[0] for seed in range(seeds)]
        self.model = nets[0].model
        self.q = {
            name: torch.stack([dict(net.model.named_parameters())[name].detach() for net in nets])
            for name, _ in self.model.named_parameters()
        }
        self.p = {name: torch.zeros_like(x) for name, x in self.q.items()}
        self.batch = [torch.stack(x) for x in zip(*(net.train for net in nets), strict=True)]
        self.dt, self.decay, self.seeds = settings["lr"], settings["weight_decay"], seeds

        def one(parameters, pairs, sums):
            return torch.nn.functional.cross_entropy(functional_call(self.model, parameters, (pairs,)), sums)

        self.gradient = vmap(grad_and_value(one))

    def __call__(self, steps):
        for _ in range(steps):
            g, value = self.gradient(self.q, *self.batch)
            with torch.no_grad():
                d = value + 0.5 * self.decay * sum(x.flatten(1).square().sum(1) for x in self.q.values())
                for name, p in self.p.items():
                    over = (self.dt / d).view(-1, *[1] * (p.dim() - 1))
                    p.sub_(over * (g[name] + self.decay * self.q[name]))
                speed = 2 * self.dt / (1 + sum(p.flatten(1).square().sum(1) for p in self.p.values()))
                for name, q in self.q.items():
                    q.add_(self.p[name] * speed.view(-1, *[1] * (q.dim() - 1)))


def ours(settings, noted, momentum=1.0):
    """A trajectory; `noted`: with claim 3's looks."""
    net, traj = begin(settings, 0, momentum=momentum)
    looks = Looks(net, traj, settings["every"], 10**9, lambda share: None) if noted else None

    def run(steps):
        traj.seek(traj.step + steps, on_step=looks)

    return run, net


def timed(run, steps):
    began = time.perf_counter()
    run(steps)
    return time.perf_counter() - began


def row(dtype, blocks, steps, seeds):
    """Medians for one dtype."""
    settings = SETTINGS | {"dtype": dtype, "every": steps}
    loop = Loop(settings)
    plain, net = ours(settings, False)
    subjects = {"trajectory": plain, "with looks": ours(settings, True)[0]}
    subjects["with looks and friction"] = ours(settings, True, 0.9998)[0]
    for name, momentum in (("claim 3's own", 1.0), ("claim 3's own, friction", 0.9998)):
        subjects[name] = ours(SETTINGS | {"every": steps}, True, momentum)[0]
    batched = {f"{k} seeds batched": Batched(settings, k) for k in seeds}
    loop(100)
    plain(100)
    q = torch.cat([x.detach().flatten() for x in net.model.parameters()])
    apart = float((q - loop.q).norm() / q.norm())
    for name, run in (subjects | batched).items():
        run(20 if name != "trajectory" else 0)
    seconds = {name: [] for name in ("loop", *subjects, *batched)}
    for _ in range(blocks):
        seconds["loop"].append(timed(loop, steps))
        for name, run in subjects.items():
            seconds[name].append(timed(run, steps))
        for name, run in batched.items():
            seconds[name].append(timed(run, max(1, steps // run.seeds)))
    work = dict.fromkeys(seconds, steps) | {n: max(1, steps // b.seeds) * b.seeds for n, b in batched.items()}
    base = seconds["loop"]
    rates = {name: work[name] / statistics.median(x) for name, x in seconds.items()}
    ratios = {n: [work[n] / a / (steps / b) for a, b in zip(x, base, strict=True)] for n, x in seconds.items()}
    return {
        "dtype": dtype,
        "steps_per_second": rates,
        "over_loop": {name: statistics.median(x) for name, x in ratios.items()},
        "over_loop_quartiles": {name: statistics.quantiles(x, n=4)[::2] for name, x in ratios.items()},
        "apart_after_100_steps": apart,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"], choices=list(DTYPES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    load, rows = [os.getloadavg()[0]], []
    for dtype in args.dtypes:
        rows.append(row(dtype, args.blocks, args.steps, args.seeds))
        found = rows[-1]
        print(f"{dtype}: after 100 steps {found['apart_after_100_steps']:.1e} apart")
        for name, rate in found["steps_per_second"].items():
            low, high = found["over_loop_quartiles"][name]
            print(
                f"  {name:24} {rate:6.0f} /s, {found['over_loop'][name]:.2f} x loop ({low:.2f} to {high:.2f})",
                flush=True,
            )
    load.append(os.getloadavg()[0])
    print(f"load of the machine before and after: {load[0]:.1f}, {load[1]:.1f} on {os.cpu_count()} cores")
    if args.json:
        result = {"rows": rows, "blocks": args.blocks, "steps": args.steps, "load": load, "cores": os.cpu_count()}
        command = "python benchmarks/throughput.py " + " ".join(sys.argv[1:])
        write_json(args.json, result | {"command": command.strip(), "environment": environment.record()})


if __name__ == "__main__":
    main()
