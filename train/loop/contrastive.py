"""The contrastive loss of image and text features, over the samples of all processes.

Axis letters: b samples of this process, G of all processes (padding included), L tokens, E feature width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional


@dataclass(frozen=True)
class Pairs:
    """Images and texts that belong together.

    Attributes:
        images: [b, E], of unit length.
        texts: [b, E], of unit length.
        token_ids: [b, L]; equal rows mean equal texts.
        weights: [b]; 0 for what stands there only to fill a place.
    """

    images: Tensor
    texts: Tensor
    token_ids: Tensor
    weights: Tensor


def contrastive_losses(own: Pairs, scale: Tensor, num_rows: int) -> dict[str, Tensor]:
    """Per-sample `loss` and `accuracy`, each [b]: find the text of each image and the image of each text.

    Radford et al. 2021, figure 3: half the cross-entropy over the texts and half that over the images, of
    cosine similarities times `scale`. A pair with the same text is no wrong answer and is left out.

    Args:
        own: this process' pairs.
        num_rows: the most pairs that a process has; the same number on every process.
    """
    everyone, first = gather_pairs(own, num_rows)
    target = torch.arange(first, first + len(own.weights), device=own.images.device)
    left_out = _same_text(own.token_ids, everyone.token_ids) | (everyone.weights == 0)
    left_out[torch.arange(len(target)), target] = False
    to_texts = (scale * own.images @ everyone.texts.T).masked_fill(left_out, -torch.inf)
    to_images = (scale * own.texts @ everyone.images.T).masked_fill(left_out, -torch.inf)
    losses = [functional.cross_entropy(logits, target, reduction="none") for logits in (to_texts, to_images)]
    hits = [(logits.argmax(dim=1) == target).float() for logits in (to_texts, to_images)]
    return {"loss": (losses[0] + losses[1]) / 2, "accuracy": (hits[0] + hits[1]) / 2}


def gather_pairs(own: Pairs, num_rows: int) -> tuple[Pairs, int]:
    """The pairs of all processes, and the row at which this process' begin.

    With several processes each has `num_rows` rows, those it lacks weighing nothing. Gradients flow back.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return own, 0
    features = _GatherRows.apply(_pad_rows(torch.cat([own.images, own.texts], dim=1), num_rows))
    images, texts = features.chunk(2, dim=1)
    token_ids = _GatherRows.apply(_pad_rows(own.token_ids, num_rows))
    weights = _GatherRows.apply(_pad_rows(own.weights, num_rows))
    return Pairs(images, texts, token_ids, weights), distributed.get_rank() * num_rows


class _GatherRows(torch.autograd.Function):
    """[b, ...] of each process -> [G, ...]; a row's gradient is summed over the processes, for all use it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        distributed.all_reduce(gradient)
        start = distributed.get_rank() * ctx.num_rows
        return gradient[start : start + ctx.num_rows]


def _pad_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Zeros added below, to `num_rows` rows."""
    return torch.cat([rows, rows.new_zeros(num_rows - len(rows), *rows.shape[1:])])


def _same_text(own_ids: Tensor, all_ids: Tensor) -> Tensor:
    """[b, L] and [G, L] -> [b, G], whether two rows of token ids are the same."""
    return (own_ids[:, None] == all_ids[None]).all(dim=2)
