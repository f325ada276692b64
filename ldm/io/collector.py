"""Python's collector of cyclic garbage, which is in the way while libraries are imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for cyclic garbage meanwhile; for imports and loading, also as a decorator.

    An import makes objects that stay, and each search goes through all that there are: a quarter of the time in which
    torch, diffusers and transformers are imported.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
