"""One thread a test process: two workers with two threads each wait for one another."""

import gc

import torch

torch.set_num_threads(1)

# Tracing makes millions of objects that live for a test: looking through them takes a twelfth
# of its time.
gc.set_threshold(50_000, 10, 10)
