"""Python's cyclic garbage collector, which slows down imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector during imports and loading; also usable as a decorator.

    Imports create objects that stay alive, and each collection visits all of them. That takes a quarter of the time of
    importing torch, diffusers and transformers.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
