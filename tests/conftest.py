"""Settings for all tests: one thread, Ctrl-C, and hypothesis without deadlines, the same examples every time."""

import signal

import torch
from hypothesis import settings

torch.set_num_threads(1)
# A shell that starts the tests in the background has SIGINT ignored, here and in processes started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=150, database=None)
settings.load_profile("suite")
