"""A run as it goes: progress for people, metrics for programs."""

from .display import Display as Display
from .display import Plain as Plain
from .display import Silent as Silent
from .draw import Notebook as Notebook
from .draw import Rich as Rich
from .draw import choose as choose
from .jsonl import JSONL as JSONL
from .jsonl import read as read
from .metrics import record as record
from .metrics import send as send
from .metrics import writers as writers
from .tensorboard import TensorBoard as TensorBoard
from .workers import Outcome as Outcome
from .workers import Tell as Tell
from .workers import Workers as Workers
