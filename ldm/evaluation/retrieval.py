"""How well images and texts find each other: recall at k."""

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at(similarity: Tensor, texts: Sequence[str], num_best: int) -> dict[str, float]:
    """Share of images whose text is among the `num_best` most similar ones, and of texts whose image is.

    A candidate with the same text is no wrong answer. A tie is a miss: equal similarities score nothing.

    Args:
        similarity: [N, N], of image i (row) and text j (column); a pair stands on the diagonal.
        texts: the N texts.
    """
    ids = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    text_ids = torch.tensor([ids[text] for text in texts], device=similarity.device)
    other = text_ids[:, None] != text_ids[None]
    found = similarity.diagonal()
    return {
        "image_to_text": _recall(similarity, found, other, num_best),
        "text_to_image": _recall(similarity.T, found, other, num_best),
    }


def _recall(similarity: Tensor, found: Tensor, other: Tensor, num_best: int) -> float:
    """`~(a < b)` rather than `a >= b`: what is not a number then counts as a miss."""
    num_better = (~(similarity < found[:, None]) & other).sum(dim=1)
    return float((num_better < num_best).double().mean())
