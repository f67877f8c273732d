"""The source of Python's own standard library, character by character: real text that is on every machine.

Symbols: newline is 0, the printable ASCII characters are 1 to 95, and 96 stands for every other character.
"""

import sysconfig
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data import permutation
from ..errors import InvalidSetting
from ..exact.digest import digest
from ..models import GPT
from .base import Task

MODULES = (
    *("argparse", "ast", "calendar", "cmd", "configparser", "contextlib", "copy", "csv", "dataclasses", "difflib"),
    *("dis", "enum", "fractions", "functools", "gettext", "gzip", "heapq", "platform", "pprint", "random", "sched"),
    *("selectors", "shlex", "shutil", "socket", "statistics", "textwrap", "threading", "timeit", "tokenize"),
    *("traceback", "typing", "uuid"),
)
"""What is read, in this order: modules of one file each, in every Python from 3.11 on."""

SYMBOLS = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"
"""The vocabulary: symbol i stands for `SYMBOLS[i]`."""

_TRAIN = 0.9  # share of the characters, from the front
_PROBE = 64  # windows of each part that are looked at during a run
_CHUNK = 256  # windows that are evaluated at once


def text(context: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
    """A small GPT reads Python: the first 90 % of the characters to train on, the last 10 % to test on.

    The text differs between versions of Python; `settings` has its length and digest, and `unigram_entropy`: the
    loss in nats of a model that knows how frequent each character of the test text is, and nothing else.

    Args:
        context: characters that the model sees at most.
        seed: of the initial weights.
        dtype: of the model.

    Returns:
        A task whose `train` and `test` are windows (n, context + 1), uint8, in the order of the text; the last
        character of each is the first of the next, so that every character is predicted once.

    Raises:
        InvalidSetting: a context below 1 or longer than the test text; a Python without the source of its library.
    """
    symbols = _read()
    cut = round(_TRAIN * len(symbols))
    if not 1 <= context < len(symbols) - cut:
        raise InvalidSetting(
            f"context: {context}; the text to test on has {len(symbols) - cut} characters.", "pass for example 64."
        )
    train, test = _windows(symbols[:cut], context), _windows(symbols[cut:], context)
    return Task(
        name="text",
        model=GPT(len(SYMBOLS), context, seed=seed, dtype=dtype),
        train=train,
        test=test,
        loss=loss,
        accuracy=accuracy,
        settings={
            "context": context,
            "seed": seed,
            "dtype": str(dtype).removeprefix("torch."),
            "modules": list(MODULES),
            "characters": len(symbols),
            "digest": digest([symbols], 8),
            "unigram_entropy": _entropy(test[:, 1:]),
        },
        batch_size=16,
        probe=(_sample(train, "train"), _sample(test, "test")),
        answer="next characters right",
    )


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next character, in nats, over all positions of windows (n, context + 1)."""
    symbols = batch.long()
    return F.cross_entropy(model(symbols[:, :-1]).flatten(0, 1), symbols[:, 1:].flatten())


@torch.no_grad()
def accuracy(model: nn.Module, data: torch.Tensor) -> float:
    """Share of positions at which the likeliest next character is right."""
    right = sum((model(x[:, :-1]).argmax(-1) == x[:, 1:]).sum().item() for x in data.long().split(_CHUNK))
    return right / data[:, 1:].numel()


def _read() -> torch.Tensor:
    """The text as symbols (n,), uint8."""
    folder = Path(sysconfig.get_path("stdlib"))  # not through find_spec: a random.py of the user's would shadow it
    try:
        source = "".join((folder / f"{name}.py").read_text("utf-8", "replace") for name in MODULES)
    except OSError as error:
        raise InvalidSetting(
            f"task text: the source of Python's standard library cannot be read ({error}).",
            "use a Python that comes with the .py files of its library.",
        ) from None
    table = np.full(128, len(SYMBOLS) - 1, np.uint8)
    table[[ord(c) for c in SYMBOLS[:-1]]] = np.arange(len(SYMBOLS) - 1)
    codes = np.frombuffer(source.encode("utf-32-le"), np.uint32)
    return torch.from_numpy(table[np.minimum(codes, 127)])  # 127 is not printable


def _windows(symbols: torch.Tensor, context: int) -> torch.Tensor:
    return symbols.unfold(0, context + 1, context).contiguous()


def _sample(windows: torch.Tensor, part: str) -> torch.Tensor:
    return windows[permutation(len(windows), "probe", "text", part)[:_PROBE].sort().values]


def _entropy(symbols: torch.Tensor) -> float:
    """Of the distribution of single characters, in nats."""
    share = symbols.flatten().bincount().double() / symbols.numel()
    return -torch.special.xlogy(share, share).sum().item()
