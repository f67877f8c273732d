"""The twelve claims in a few words each, in ours: built or not. A built one speaks for itself."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A claim's title, its statement, and the sentences of the source (docs/source.md) that it reads."""

    title: str
    statement: str
    sentences: tuple[int, ...]


TWELVE: Mapping[int, Topic] = {
    1: Topic(
        "evidence can be undone by counter-evidence",
        "In SGD the model can't choose the evidence that it is shown, so counter-evidence undoes what evidence did.",
        (1,),
    ),
    2: Topic(
        "friction makes SGD with momentum irreversible",
        "SGD with momentum is not reversible in the way energy-conserving descent is, because it has friction.",
        (2,),
    ),
    3: Topic(
        "training is cooling, and crystallises",
        "Friction makes training look like cooling, and learning like crystallisation.",
        (2, 3),
    ),
    4: Topic(
        "a lower-energy isoform can't be un-formed",
        "A model can end in a form of lower energy that can't be un-formed.",
        (3,),
    ),
    5: Topic(
        "un-grokking with a loss function",
        "A question: how do you un-grok modular addition with a loss function?",
        (4,),
    ),
    6: Topic(
        "such losses may not be feasible",
        "Losses that undo what was learned may not be feasible, or may not do what you want.",
        (5,),
    ),
    7: Topic(
        "to reverse ECD, reverse weight decay as well",
        "To reverse energy-conserving descent by a loss, you must reverse weight decay as well.",
        (6,),
    ),
    8: Topic(
        "gradient hacking under SFT is difficult",
        "Gradient hacking under supervised fine-tuning is extremely difficult.",
        (7,),
    ),
    9: Topic(
        "exploration hacking defeats later training",
        "Exploration hacking in RL can push a model to where further RL, or even supervised fine-tuning, fails.",
        (7,),
    ),
    10: Topic(
        "ECD is reversible",
        "Energy-conserving descent is reversible: invert the sign of the Hamiltonian and wind back.",
        (8,),
    ),
    11: Topic(
        "mini-batch noise adds energy to ECD",
        "Noise of mini-batches continuously adds energy to energy-conserving descent.",
        (9,),
    ),
    12: Topic(
        "the query-key symmetry spins parameters up",
        "The symmetry of queries and keys conserves an angular momentum; noise spins the parameters up in the space of "
        "a head, and off the hypersphere.",
        (9,),
    ),
}
