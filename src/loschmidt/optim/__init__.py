"""Optimizers with torch.optim's interface whose steps can be undone bit for bit."""

from .adam import Adam as Adam
from .adam import AdamW as AdamW
from .base import ReversibleOptimizer as ReversibleOptimizer
from .bbi import BBI as BBI
from .ecd import ECD as ECD
from .ecdq1 import ECDq1 as ECDq1
from .replay import replay as replay
from .sgd import SGD as SGD
