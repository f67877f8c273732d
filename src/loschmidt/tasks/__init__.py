"""What is learned, in one piece: a fresh model, data to train and test on, a loss, an accuracy."""

from collections.abc import Callable

from .base import Task as Task
from .digits import digits as digits
from .modular_addition import modular_addition as modular_addition
from .text import text as text

TASKS: dict[str, Callable[..., Task]] = {
    "modular-addition": modular_addition,
    "text": text,
    "digits": digits,
}
