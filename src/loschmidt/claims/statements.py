"""What each of the twelve claims says, in our words: for a report that has no record of it yet."""

from collections.abc import Mapping

STATEMENTS: Mapping[int, str] = {
    1: "In SGD the model can't choose the evidence that it is shown, so counter-evidence undoes what evidence did.",
    2: "SGD with momentum is not reversible in the way energy-conserving descent is, because it has friction.",
    3: "Friction makes training look like cooling, and learning like crystallisation.",
    4: "A model can end in a form of lower energy that can't be un-formed.",
    5: "A question: how do you un-grok modular addition with a loss function?",
    6: "Losses that undo what was learned may not be feasible, or may not do what you want.",
    7: "To reverse energy-conserving descent by a loss, you must reverse weight decay as well.",
    8: "Gradient hacking under supervised fine-tuning is extremely difficult.",
    9: "Exploration hacking in RL can push a model to where further RL, or even supervised fine-tuning, fails.",
    10: "Energy-conserving descent is reversible: invert the sign of the Hamiltonian and wind back.",
    11: "Noise of mini-batches continuously adds energy to energy-conserving descent.",
    12: (
        "The symmetry of queries and keys conserves an angular momentum; noise spins the parameters up in the space of "
        "a head, and off the hypersphere."
    ),
}
"""By number; a claim that is built states itself."""
