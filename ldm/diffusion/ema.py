"""Power-function averages of weights, and post-hoc reconstruction of any width (Karras et al. 2024, "EDM2").

The average is updated after optimizer step t (from 1) by

    average_t = beta_t average_{t-1} + (1 - beta_t) weights_t,    beta_t = (1 - 1/t)^(gamma + 1)      (their Eq. 127)

By telescoping, the share of weights_i in average_t is exactly (i^(gamma+1) - (i-1)^(gamma+1)) / t^(gamma+1), and the
random initialization has no share. The width ("sigma_rel") is the standard deviation of these shares, seen as a
density over time, relative to t: a width of 0.05 gives 85 % of the weight to the last tenth of the run.
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
"""Just below 1/sqrt(12), the width of the plain mean (gamma 0) and the largest possible."""

CHUNK = 16384
"""Steps processed at once in the least-squares fit, so that a long run needs no large matrix."""


class Snapshot(NamedTuple):
    """The optimizer step and the width of one stored average."""

    step: int
    width: float


class Rebuilding(NamedTuple):
    """A requested average as a linear combination of snapshots.

    Attributes:
        coefficients: [S], the coefficient of each snapshot; they sum to 1.
        residual: norm of the error in the shares, relative to the norm of the requested shares; 0 is exact.
    """

    coefficients: Array
    residual: float


def gamma_of(width: float) -> float:
    """The exponent gamma for a relative width: Algorithm 2 of Karras et al. 2024, the largest root of a cubic.

    Raises:
        UserError: the width is not in (0, MAX_WIDTH].
    """
    if not 0 < width <= MAX_WIDTH:
        raise UserError(f"averaging width {width:g}", f"choose a width above 0 and at most {MAX_WIDTH}")
    inverse = width**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def update_weight(step: int, gamma: float) -> float:
    """1 - beta_t, the factor of the new weights after optimizer step `step` (from 1); 1 at the first step."""
    if step == 1:
        return 1.0
    return -math.expm1((gamma + 1) * math.log1p(-1 / step))


def shares(snapshot_step: int, gamma: float, steps: Array) -> Array:
    """The share of the weights of each of `steps` in the average after `snapshot_step`; 0 for later steps."""
    after = np.clip(steps / snapshot_step, 0, 1)
    before = np.clip((steps - 1) / snapshot_step, 0, 1)
    return np.asarray(after ** (gamma + 1) - before ** (gamma + 1))


def rebuild(snapshots: Sequence[Snapshot], wanted: Snapshot) -> Rebuilding:
    """The combination of snapshots whose shares best match those of the requested average, by least squares.

    This is Algorithm 3 of Karras et al. 2024 with two differences: the shares are the exact shares of single steps
    instead of their continuous limit, and the coefficients are constrained to sum to 1. Weights that did not change
    are therefore reproduced exactly, and when fine-tuning, the error only affects the change from the base.

    Raises:
        UserError: there are no snapshots up to the requested step, or a width is out of range.
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
    """The R factor [S, S] of a QR decomposition of the shares, and the norm of the requested shares.

    The last snapshot's shares are subtracted from all columns, which makes the coefficients sum to 1. The last column
    holds the requested shares. The factor is updated chunk by chunk: least squares on it gives the same solution as
    least squares on all T rows.
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
    """The name of an averaged weight in a file: `width-0.05/` followed by the weight's name."""
    return f"width-{width!r}/{name}"


def split_name(stored: str) -> tuple[float, str]:
    """The width and the weight's name in a name made by `stored_name`.

    Raises:
        UserError: the name does not have that form.
    """
    prefix, _, name = stored.partition("/")
    try:
        return float(prefix.removeprefix("width-")), name
    except ValueError:
        raise UserError(
            f"{stored!r} is not an averaged weight", "choose a file of averaging snapshots"
        ) from None
