"""One thread a test process: two workers with two threads each wait for one another.

Tracing makes millions of objects that live for a test, beside the millions of the libraries:
looking through all of them is a tenth of the time of the tests.
"""

import gc

import torch

torch.set_num_threads(1)
torch._dynamo.config.run_gc_after_compile = False
gc.set_threshold(50_000, 10, 10)


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be looked through again."""
    gc.collect()
    gc.freeze()
