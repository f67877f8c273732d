"""Settings for all tests: one thread, Ctrl-C, and hypothesis without deadlines, the same examples every time."""

import gc
import signal

import torch
from hypothesis import settings

torch.set_num_threads(1)
# A shell that starts the tests in the background has SIGINT ignored, here and in processes started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=150, database=None)
settings.load_profile("suite")


def pytest_collection_finish():
    """Thousands of items and imported modules stay to the end: nobody need look through them for garbage again."""
    gc.collect()
    gc.freeze()
