"""Which training samples hurt: captions that do not fit, images learned by heart or never, near duplicates.

Everything is derived from the loss of each sample at fixed noise levels with fixed noise: with its own caption, with
captions of other samples, and at an earlier checkpoint. A diffusion model is a classifier of captions: the caption that
fits gives the lower loss (Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", 2023).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.noise import permutation

FLAGGED = 3.0
"""Samples this many standard deviations from the rest are flagged."""
LEAST_HELD_OUT = 10
"""Fewer held-out samples are not compared with."""
NORMAL_MAD = 1.4826
"""The standard deviation of a normal distribution divided by its median absolute deviation."""
REASONS = {
    "caption": "other captions explain this image as well as its own, or better",
    "by heart": "its loss fell much further than that of held-out images: learned by heart",
    "never learned": "its loss is far above that of the others",
    "duplicate": "looks like an earlier image of the data set",
}


@dataclass(frozen=True)
class Losses:
    """The losses of N samples at K noise levels, in float64.

    Attributes:
        own: [N, K] with their own captions.
        others: [M, N, K] with M captions of other samples.
        early: [N, K] with their own captions at an earlier checkpoint, or None.
        held_out: [N] whether a sample was held out of training.
    """

    own: Tensor
    others: Tensor
    early: Tensor | None
    held_out: Tensor


@dataclass(frozen=True)
class Entry:
    """One sample.

    Attributes:
        loss, stderr: mean over the noise levels, and its standard error.
        caption_gap, caption_gap_stderr: the loss with its own caption minus that with others; below 0 if it fits.
        caption_score: `log_ratio` in standard deviations of all samples' ratios; high means a misfit.
        fall: how far its loss fell since the earlier checkpoint; None without one.
        heart_score: the fall in standard deviations from that of held-out samples.
        hard_score: the loss in standard deviations from the others'.
        duplicate_of: the first sample that looks the same.
        reasons: keys of `REASONS`.
    """

    sample_id: str
    caption: str
    held_out: bool
    loss: float
    stderr: float
    caption_gap: float
    caption_gap_stderr: float
    caption_score: float
    fall: float | None
    heart_score: float | None
    hard_score: float
    duplicate_of: str | None
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "reasons": list(self.reasons)}


def other_captions(captions: Sequence[str], round_number: int) -> list[str]:
    """For each sample the caption of another one, at random; its own only if all captions are the same."""
    order = permutation(len(captions), "other captions", round_number)
    place = {index: position for position, index in enumerate(order)}
    found = []
    for index, caption in enumerate(captions):
        ahead = (order[(place[index] + step) % len(order)] for step in range(1, len(order)))
        found.append(next((captions[other] for other in ahead if captions[other] != caption), caption))
    return found


def paired_gap(own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of own - mean of others over the noise levels, and its standard error: [N, K], [M, N, K] -> [N], [N].

    Both have the same noise, so what they have in common cancels.
    """
    difference = own - others.mean(dim=0)
    return difference.mean(dim=1), _stderr(difference)


def log_ratio(own: Tensor, others: Tensor) -> Tensor:
    """The mean of log own - log others over the noise levels and captions: [N, K], [M, N, K] -> [N].

    The likelihood of n values at one noise level, with the best variance of the errors, is loss^(-n/2), so this ranks
    by likelihoods. It does not depend on how large the losses of an image or a level are, nor on the objective's
    weights; a mean of differences is mostly that of a few hard images at the noisiest levels.
    """
    least = torch.finfo(own.dtype).tiny
    return (own.clamp(min=least).log() - others.clamp(min=least).log().mean(dim=0)).mean(dim=1)


def _stderr(values: Tensor) -> Tensor:
    """Of the means of the rows; zero with one column."""
    num_draws = values.shape[1]
    return values.std(dim=1) / num_draws**0.5 if num_draws > 1 else torch.zeros(len(values))


def robust_scores(values: Tensor) -> Tensor:
    """[N] in standard deviations from the median, with the deviation estimated by the median absolute one.

    A few percent of outliers change neither.
    """
    middle = values.median()
    spread = float((values - middle).abs().median()) * NORMAL_MAD
    return (values - middle) / spread if spread > 0 else torch.zeros_like(values)


def heart_scores(fall: Tensor, held_out: Tensor) -> Tensor:
    """How far each loss fell, in standard deviations from the mean fall of held-out samples; [N], [N] -> [N].

    Without enough held-out samples: from the median of all.
    """
    known = fall[held_out]
    if len(known) < LEAST_HELD_OUT:
        return robust_scores(fall)
    return (fall - known.mean()) / known.std().clamp(min=1e-12)


def make_ledger(
    sample_ids: Sequence[str],
    captions: Sequence[str],
    losses: Losses,
    duplicates: Sequence[Sequence[str]] = (),
) -> list[Entry]:
    """One entry for each sample, in order.

    Args:
        duplicates: groups of sample ids that look alike.
    """
    gap, gap_stderr = paired_gap(losses.own, losses.others)
    caption_scores = robust_scores(log_ratio(losses.own, losses.others))
    hard_scores = robust_scores(losses.own.mean(dim=1))
    fall = None if losses.early is None else (losses.early - losses.own).mean(dim=1)
    hearts = None if fall is None else heart_scores(fall, losses.held_out)
    first_of = {each: group[0] for group in duplicates for each in group[1:]}
    stderr = _stderr(losses.own)
    entries = []
    for i, sample_id in enumerate(sample_ids):
        held_out = bool(losses.held_out[i])
        flags = {
            "caption": caption_scores[i] > FLAGGED and gap[i] > -2 * gap_stderr[i],
            "by heart": hearts is not None and not held_out and hearts[i] > FLAGGED,
            "never learned": hard_scores[i] > FLAGGED and not held_out,
            "duplicate": sample_id in first_of,
        }
        entries.append(
            Entry(
                sample_id=sample_id,
                caption=captions[i],
                held_out=held_out,
                loss=float(losses.own[i].mean()),
                stderr=float(stderr[i]),
                caption_gap=float(gap[i]),
                caption_gap_stderr=float(gap_stderr[i]),
                caption_score=float(caption_scores[i]),
                fall=None if fall is None else float(fall[i]),
                heart_score=None if hearts is None else float(hearts[i]),
                hard_score=float(hard_scores[i]),
                duplicate_of=first_of.get(sample_id),
                reasons=tuple(reason for reason, flagged in flags.items() if flagged),
            )
        )
    return entries


def standardised_gap(losses: Losses) -> dict[str, float] | None:
    """The mean loss of held-out minus held-in samples, its standard error, and their quotient.

    None without enough samples of both.
    """
    means = losses.own.mean(dim=1)
    inside, outside = means[~losses.held_out], means[losses.held_out]
    if min(len(inside), len(outside)) < LEAST_HELD_OUT:
        return None
    stderr = float(inside.var() / len(inside) + outside.var() / len(outside)) ** 0.5
    gap = float(outside.mean() - inside.mean())
    return {"gap": gap, "stderr": stderr, "z": gap / stderr if stderr else 0.0}


def drop_list(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The ids that training would leave out, each with its reason: captions that do not fit, and repeats.

    Images that are hard or learned by heart are shown, but not dropped: that is not a fault of theirs.
    """
    dropped = ("caption", "duplicate")
    return [
        (each.sample_id, REASONS[reason])
        for each in entries
        for reason in each.reasons[:1]
        if reason in dropped
    ]


def auroc(scores: Sequence[float], is_planted: Sequence[bool]) -> float:
    """The probability that a planted sample has a higher score than another; ties count half (Mann-Whitney)."""
    planted = torch.tensor([s for s, p in zip(scores, is_planted, strict=True) if p], dtype=torch.float64)
    others = torch.tensor([s for s, p in zip(scores, is_planted, strict=True) if not p], dtype=torch.float64)
    above = (planted[:, None] > others[None]).double() + 0.5 * (planted[:, None] == others[None]).double()
    return float(above.mean())


def summary(entries: Sequence[Entry], losses: Losses) -> dict[str, Any]:
    """Counts by reason, and the gap of held-out samples."""
    counts = {reason: sum(reason in each.reasons for each in entries) for reason in REASONS}
    return {"num_samples": len(entries), "flagged": counts, "held_out_gap": standardised_gap(losses)}


def ranked(entries: Sequence[Entry]) -> Mapping[str, list[Entry]]:
    """The flagged entries of each reason, the worst first."""
    keys = {
        "caption": lambda each: each.caption_score,
        "by heart": lambda each: each.heart_score or 0.0,
        "never learned": lambda each: each.hard_score,
        "duplicate": lambda each: each.loss,
    }
    return {
        reason: sorted((each for each in entries if reason in each.reasons), key=key, reverse=True)
        for reason, key in keys.items()
    }
