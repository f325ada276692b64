"""The contrastive loss of image and text features, over the samples of all processes.

Axis letters: b samples of this process, G samples of all processes (padding included), L tokens, E feature width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from .processes import ALONE, Processes


@dataclass(frozen=True)
class Pairs:
    """Images with their texts.

    Attributes:
        images: [b, E], of unit length.
        texts: [b, E], of unit length.
        token_ids: [b, L]; equal rows are equal texts.
        weights: [b]; 0 for padding.
    """

    images: Tensor
    texts: Tensor
    token_ids: Tensor
    weights: Tensor


def contrastive_losses(
    own: Pairs, scale: Tensor, num_rows: int, processes: Processes = ALONE
) -> dict[str, Tensor]:
    """Per-sample `loss` and `accuracy`, each [b]: find the text of each image and the image of each text.

    Radford et al. 2021, figure 3: the mean of the cross-entropies over the texts and over the images, of cosine
    similarities times `scale`. Another pair with the same text is not a wrong answer and is left out.

    Args:
        own: this process's pairs.
        num_rows: the most pairs that a process has; the same number on every process.
    """
    everyone, first = gather_pairs(own, num_rows, processes)
    target = torch.arange(first, first + len(own.weights), device=own.images.device)
    left_out = _same_text(own.token_ids, everyone.token_ids) | (everyone.weights == 0)
    left_out[torch.arange(len(target)), target] = False
    to_texts = (scale * own.images @ everyone.texts.T).masked_fill(left_out, -torch.inf)
    to_images = (scale * own.texts @ everyone.images.T).masked_fill(left_out, -torch.inf)
    losses = [functional.cross_entropy(logits, target, reduction="none") for logits in (to_texts, to_images)]
    hits = [(logits.argmax(dim=1) == target).float() for logits in (to_texts, to_images)]
    return {"loss": (losses[0] + losses[1]) / 2, "accuracy": (hits[0] + hits[1]) / 2}


def gather_pairs(own: Pairs, num_rows: int, processes: Processes) -> tuple[Pairs, int]:
    """The pairs of all processes, and the row at which this process's pairs start.

    With several processes, each is padded to `num_rows` rows of weight 0. Gradients flow back.
    """
    if processes.num_processes == 1:
        return own, 0

    def gather(rows: Tensor) -> Tensor:
        found: Tensor = _GatherRows.apply(_pad_rows(rows, num_rows), processes)
        return found

    images, texts = gather(torch.cat([own.images, own.texts], dim=1)).chunk(2, dim=1)
    return Pairs(images, texts, gather(own.token_ids), gather(own.weights)), processes.rank * num_rows


class _GatherRows(torch.autograd.Function):
    """[b, ...] of each process -> [G, ...]; every process uses a row, so its gradient is summed over them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.num_rows, ctx.rank = len(rows), processes.rank
        parts = [torch.empty_like(rows) for _ in range(processes.num_processes)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        distributed.all_reduce(gradient)
        start = ctx.rank * ctx.num_rows
        return gradient[start : start + ctx.num_rows], None


def _pad_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Append rows of zeros up to `num_rows`."""
    return torch.cat([rows, rows.new_zeros(num_rows - len(rows), *rows.shape[1:])])


def _same_text(own_ids: Tensor, all_ids: Tensor) -> Tensor:
    """[b, L] and [G, L] -> [b, G], whether two rows of token ids are equal."""
    return (own_ids[:, None] == all_ids[None]).all(dim=2)
