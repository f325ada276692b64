"""The progress bar of a call from Python."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from ldm.io.progress import is_watched, work_bar
from ldm.types import Step

if TYPE_CHECKING:
    from ldm.pipeline.settings import OnStep


@contextmanager
def bar_for_steps(progress: bool | None, on_step: "OnStep | None") -> Iterator["OnStep | None"]:
    """What to call after each sampling step: `on_step`, a progress bar, both or nothing.

    Args:
        progress: show a bar; None shows one on a terminal and in notebooks, if there is no `on_step`.
    """
    if not (is_watched() and on_step is None if progress is None else progress):
        yield on_step
        return
    with work_bar("step") as bar:

        def report(done: int, total: int, step: Step, latents: Tensor) -> None:
            bar.show(done, total)
            if on_step is not None:
                on_step(done, total, step, latents)

        yield report
