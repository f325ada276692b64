"""Power-function averages of weights, and any width of them rebuilt afterwards (Karras et al. 2024, "EDM2").

The average after optimizer step t (from 1) takes in the weights as

    average_t = beta_t average_{t-1} + (1 - beta_t) weights_t,    beta_t = (1 - 1/t)^(gamma + 1)      (their Eq. 127)

so that weights_i stand in average_t with the share (i^(gamma+1) - (i-1)^(gamma+1)) / t^(gamma+1): exactly, by
telescoping, and nothing is left of the random start. A width is the standard deviation of those shares, as of a
density over time, relative to t ("sigma_rel"): 0.05 gives 85 % to the last tenth of the run.
Letters: S snapshots, T optimizer steps.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm.errors import UserError

Array = NDArray[np.float64]

MAX_WIDTH = 0.28
"""Near 1/sqrt(12), the width of the plain mean (gamma 0), which is as wide as an average gets."""

CHUNK = 16384
"""Steps taken into the least squares at once, so that a long run needs no large matrix."""


class Snapshot(NamedTuple):
    """One stored average: after which optimizer step, of which width."""

    step: int
    width: float


class Rebuilding(NamedTuple):
    """How a wanted average is put together from snapshots.

    Attributes:
        coefficients: [S], what each snapshot counts; they sum to 1.
        residual: size of what of the wanted shares is missed, as a fraction of theirs; 0 is exact.
    """

    coefficients: Array
    residual: float


def gamma_of(width: float) -> float:
    """The exponent of a relative width: Algorithm 2 of Karras et al. 2024, the largest root of the cubic.

    Raises:
        UserError: the width is not above 0 and at most MAX_WIDTH.
    """
    if not 0 < width <= MAX_WIDTH:
        raise UserError(f"width {width:g} of an average", f"choose one above 0 and at most {MAX_WIDTH}")
    inverse = width**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def update_weight(step: int, gamma: float) -> float:
    """1 - beta_t: what the weights after optimizer step `step` (from 1) count; at the first step all."""
    if step == 1:
        return 1.0
    return -math.expm1((gamma + 1) * math.log1p(-1 / step))


def shares(snapshot_step: int, gamma: float, steps: Array) -> Array:
    """What the weights after each of `steps` count in the average after `snapshot_step`; 0 for later ones."""
    after = np.clip(steps / snapshot_step, 0, 1)
    before = np.clip((steps - 1) / snapshot_step, 0, 1)
    return np.asarray(after ** (gamma + 1) - before ** (gamma + 1))


def rebuild(snapshots: Sequence[Snapshot], wanted: Snapshot) -> Rebuilding:
    """The combination of snapshots whose shares come nearest to the wanted average's, by least squares.

    This is Algorithm 3 of Karras et al. 2024 with two differences: the shares are the exact ones of single steps
    instead of their continuous limit, and the coefficients are those that fit best among those that sum to 1. So
    weights that did not move come back as they were, and in a fine-tuning an error is one of the movement alone.

    Raises:
        UserError: there are no snapshots up to the wanted step, or a width is out of range.
    """
    usable = [snapshot for snapshot in snapshots if snapshot.step <= wanted.step]
    if not usable:
        raise UserError(f"no snapshots up to step {wanted.step}", "train with optim.average.snapshot_every")
    factor, norm = _triangle(usable, wanted)
    solved = np.linalg.lstsq(factor[:, :-1], factor[:, -1], rcond=None)[0]
    missed = np.linalg.norm(factor[:, -1] - factor[:, :-1] @ solved)
    found = dict(zip(usable, [*solved, 1 - solved.sum()], strict=True))
    coefficients = np.array([found.get(snapshot, 0.0) for snapshot in snapshots])
    return Rebuilding(coefficients, float(missed) / norm)


def _triangle(usable: Sequence[Snapshot], wanted: Snapshot) -> tuple[Array, float]:
    """The triangular factor [S, S] of the shares less the last snapshot's, the wanted ones in its last column.

    That the coefficients sum to 1 is put in by those differences. The factor is carried from chunk to chunk: a
    least squares over it is the one over all T rows. Beside it the norm of the wanted shares.
    """
    columns = [(s.step, gamma_of(s.width)) for s in (*usable[:-1], wanted, usable[-1])]
    factor, squares = np.zeros((0, len(usable))), 0.0
    for start in range(1, wanted.step + 1, CHUNK):
        steps = np.arange(start, min(start + CHUNK, wanted.step + 1), dtype=np.float64)
        rows = np.stack([shares(step, gamma, steps) for step, gamma in columns], axis=1)
        squares += float(np.square(rows[:, -2]).sum())
        stacked = np.concatenate([factor, rows[:, :-1] - rows[:, -1:]])
        factor = np.asarray(np.linalg.qr(stacked, mode="r"), dtype=np.float64)
    return factor, math.sqrt(squares)


def stored_name(width: float, name: str) -> str:
    """The name of a weight's average in a file: `width-0.05/` and the weight's own name."""
    return f"width-{width!r}/{name}"


def split_name(stored: str) -> tuple[float, str]:
    """Width and weight of a name that `stored_name` made.

    Raises:
        UserError: it is no such name.
    """
    prefix, _, name = stored.partition("/")
    try:
        return float(prefix.removeprefix("width-")), name
    except ValueError:
        raise UserError(f"{stored!r} is no average of a weight", "this is no snapshot of averages") from None
