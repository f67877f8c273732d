"""Progress measures: what a network that adds modulo p knows with its key frequencies alone, and without them.

restricted   logits with the waves at key frequencies alone: low loss where these carry a rule
excluded     logits without them: low loss on training pairs where these are known by heart

Which pairs tell what the waves are? The paper takes the whole table. Then answers known by heart leak into pairs that
were never trained on: of a lookup table that is right on half of all pairs and silent on the others, waves taken from
the whole table give the right answer on most. So `measures` finds them on test pairs unless told otherwise: the rule
is what shows where nothing was learned by heart. Test answers are not looked at.

All arithmetic is in float64. Source: Nanda et al., arXiv 2301.05217, section 5, and the code released with it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from ..errors import InvalidSetting
from .fourier import BySum, checked_pairs, checked_table, gini

TIE = 1e-5
"""Answers closer than this share of the widest row of logits are tied: where waves were removed, rounding is left."""


def restricted(logits: torch.Tensor, keys: Sequence[int], pairs: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of which only the waves at key frequencies are kept, and the mean of each answer.

    Found on the whole table this is the projection of the paper's released code, with its bias correction.

    Args:
        logits: (p * p, p).
        keys: frequencies, 1 to (p - 1) / 2.
        pairs: (p * p,) bool, those that the waves are found on, by least squares; None: all.

    Returns:
        (p * p, p) float64: rows depend on a + b alone.
    """
    table = BySum(logits, pairs)
    mean, waves = table.fit(keys)
    return (mean + waves)[_answers(table.p, waves.device)]


def excluded(logits: torch.Tensor, keys: Sequence[int], pairs: torch.Tensor | None = None) -> torch.Tensor:
    """Logits from which the waves at key frequencies are taken away: what is known besides the rule.

    The paper takes away all keys at once; one at a time is `excluded(logits, [k])`. Arguments are those of
    `restricted`; the two add up to the logits and the mean of each answer.
    """
    table = BySum(logits, pairs)
    return logits.detach().double() - table.fit(keys)[1][_answers(table.p, logits.device)]


def score(logits: torch.Tensor, pairs: torch.Tensor | None = None, tie: float | None = None) -> tuple[float, float]:
    """Mean cross entropy of a + b, in nats, and the share of right answers, over these pairs.

    Guarantees: losses far below 1e-16 keep their digits. Tied answers share the point, so that equal logits have an
    accuracy of 1 / p.

    Args:
        logits: (p * p, p).
        pairs: (p * p,) bool; None: all.
        tie: logits closer than this to the best are tied, in nats; None: `TIE` times the widest row of these logits.
    """
    z, p = checked_table(logits)
    answers = _answers(p, z.device)
    if pairs is not None:
        pairs = checked_pairs(pairs, z)
        z, answers = z[pairs], answers[pairs]
    losses, right = _judge(z, answers, _tie(z) if tie is None else tie)
    return losses.mean().item(), right.mean().item()


@dataclass(frozen=True)
class Scores:
    """Mean cross entropy in nats, and share of right answers."""

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Measures:
    """What `measures` found. Frequency k is entry k - 1.

    Attributes:
        keys: key frequencies.
        explained: share of the logits that the waves of each frequency explain.
        gini: Gini coefficient of the amplitudes, explained^1/2, on the whole table, where frequencies do not show in
            each other's shares. What leaks there from answers known by heart is even, and lowers it.
        alpha: `BySum.coefficients`, in nats.
        trig_share: share of the logits that alpha explains.
        full, restricted, excluded: scores of the logits as they are, with the keys' waves alone, and without them.
    """

    keys: tuple[int, ...]
    explained: tuple[float, ...]
    gini: float
    alpha: tuple[float, ...]
    trig_share: float
    full: Scores
    restricted: Scores
    excluded: Scores

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def measures(
    logits: torch.Tensor,
    train: torch.Tensor,
    keys: Sequence[int] | None = None,
    threshold: float | None = None,
    waves_from: Literal["test", "all"] = "test",
) -> Measures:
    """All measures of one table of logits, training and test pairs apart.

    For curves over a run, give the keys of its end: the paper does, and keys of the moment change in number.

    Args:
        logits: (p * p, p), as `whole_table` gives them.
        train: (p * p,) bool, the pairs trained on, as `mask` gives them; the others are the test pairs.
        keys: key frequencies; None: those of these logits, by `BySum.keys`.
        threshold: for these.
        waves_from: which pairs keys, shares, alpha and the waves that are kept or taken away are found on: "test", or
            "all" as in the paper, where answers known by heart leak into restricted scores.

    Raises:
        InvalidSetting: a shape, key or threshold that cannot be; no pair to train or to test on.
        NonFinite: logits that are NaN or infinite.
    """
    if waves_from not in ("test", "all"):
        raise InvalidSetting(f"waves_from: {waves_from!r}.", 'use "test" or "all".')
    z, p = checked_table(logits)
    train = checked_pairs(train, z)
    test = checked_pairs(~train, z)
    seen, whole = BySum(z, test if waves_from == "test" else None), BySum(z)
    keys = seen.keys(threshold) if keys is None else tuple(keys)
    mean, waves = seen.fit(keys)
    answers, tie = _answers(p, z.device), _tie(z)

    def scores(losses: torch.Tensor, right: torch.Tensor) -> Scores:
        return Scores(*(x[part].mean().item() for part in (train, test) for x in (losses, right)))

    by_sum = _judge(mean + waves, torch.arange(p, device=z.device), tie)
    return Measures(
        keys=keys,
        explained=tuple(seen.explained().tolist()),
        gini=gini(whole.explained().sqrt()),
        alpha=tuple(seen.coefficients().tolist()),
        trig_share=seen.trig_share(),
        full=scores(*_judge(z, answers, tie)),
        restricted=scores(*(x[answers] for x in by_sum)),
        excluded=scores(*_judge(z - waves[answers], answers, tie)),
    )


def _judge(z: torch.Tensor, answers: torch.Tensor, tie: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the cross entropy, and the share of the point for a right answer."""
    right = z.gather(1, answers[:, None])
    others = z.scatter(1, answers[:, None], -math.inf).logsumexp(1)
    losses = torch.logaddexp(others - right[:, 0], torch.zeros_like(others))  # small losses keep their digits
    bar = z.amax(1, keepdim=True) - tie
    return losses, (right >= bar)[:, 0] / (z >= bar).sum(1, dtype=torch.float64)


def _tie(z: torch.Tensor) -> float:
    return TIE * float((z.amax(1) - z.amin(1)).max())


def _answers(p: int, device: torch.device) -> torch.Tensor:
    numbers = torch.arange(p, device=device)
    return ((numbers[:, None] + numbers) % p).flatten()
