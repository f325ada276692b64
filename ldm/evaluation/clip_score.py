"""How well images fit their prompts, and how much images of a set differ from each other."""

import torch
from torch import Tensor
from torch.nn import functional

from ldm.evaluation.intervals import Estimate, mean_interval
from ldm.evaluation.metrics import WINDOW_PX, ssim


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of each image's and its prompt's features, [N, d] and [N, d] -> [N].

    Hessel et al., "CLIPScore", 2021, eq. 1, with torchmetrics' factor of 100 in place of 2.5. Higher is better, and the
    number means nothing without the name of the pair of encoders.
    """
    return 100 * functional.cosine_similarity(images.double(), texts.double(), dim=1).clamp(min=0)


def clip_score(images: Tensor, texts: Tensor) -> Estimate:
    """The mean of `clip_scores`, with Student's t interval over the images."""
    return mean_interval(clip_scores(images, texts))


def similarity_of_pairs(pixel_values: Tensor) -> Tensor:
    """SSIM of images 1 and 2, 3 and 4, ...: [N, 3, H, W] in [-1, 1] -> [N // 2]. 1 is no diversity at all.

    No image is in two pairs, so the pairs are independent, and the interval of their mean is Student's.
    """
    num_pairs = len(pixel_values) // 2
    if min(pixel_values.shape[-2:]) < WINDOW_PX:
        return torch.full((num_pairs,), torch.nan)
    return ssim(pixel_values[: 2 * num_pairs : 2], pixel_values[1 : 2 * num_pairs : 2])
