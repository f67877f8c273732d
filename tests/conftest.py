"""Settings for all tests: one thread, and hypothesis without deadlines, drawing the same examples every time."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=150, database=None)
settings.load_profile("suite")
