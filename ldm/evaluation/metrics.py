"""Metrics: PSNR and SSIM of images, recall at k of retrieval; proportions and means with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, exp, lgamma, log
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional

from ldm.noise import generator_for

LARGEST_COMB = 1000
"""The largest n whose binomial coefficients are floats."""
WINDOW_PX = 11
"""Side of SSIM's window. Smaller images have no SSIM."""
NUM_RESAMPLES = 10_000


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, [B, 3, H, W] in [-1, 1] -> [B]: 10 log10(2^2 / MSE)."""
    error = (first - second).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    return 10 * torch.log10(4.0 / error)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair, [B, 3, H, W] in [-1, 1] -> [B]; H and W are at least `WINDOW_PX`.

    Wang et al. 2004, eq. 13, with their Gaussian window (11 px, sigma 1.5), averaged over all positions where the
    window lies inside the image, and over channels. (torchmetrics pads the image by reflection instead.)
    """
    window = _gaussian_window(first.shape[1])

    def local_mean(image: Tensor) -> Tensor:
        return functional.conv2d(image, window, groups=image.shape[1])

    mean_a, mean_b = local_mean(first), local_mean(second)
    var_a = local_mean(first * first) - mean_a**2
    var_b = local_mean(second * second) - mean_b**2
    covariance = local_mean(first * second) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    quality = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return quality.mean(dim=(1, 2, 3))


def _gaussian_window(channels: int) -> Tensor:
    position = torch.arange(WINDOW_PX, dtype=torch.float32) - WINDOW_PX // 2
    line = torch.exp(-(position**2) / (2 * 1.5**2))
    line = line / line.sum()
    return torch.outer(line, line).expand(channels, 1, WINDOW_PX, WINDOW_PX).contiguous()


def recall_at(similarity: Tensor, texts: Sequence[str], num_best: int) -> dict[str, float]:
    """Share of images whose text is among the `num_best` most similar ones, and of texts whose image is.

    A candidate with the same text does not count as a wrong answer. A tie counts as a miss, so equal similarities
    score nothing.

    Args:
        similarity: [N, N], of image i (row) and text j (column); matching pairs are on the diagonal.
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
    """Uses `~(a < b)` rather than `a >= b`, so that a NaN counts as a miss."""
    num_better = (~(similarity < found[:, None]) & other).sum(dim=1)
    return float((num_better < num_best).double().mean())


def wilson_interval(num_right: int, num_judged: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion p = num_right / n. It stays within [0, 1] and also holds at p = 0 and 1.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), with z the normal quantile: E. B. Wilson,
    "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22 (1927) 209.

    Raises:
        ValueError: num_judged is below 1, or num_right is not between 0 and num_judged.
    """
    if not 0 <= num_right <= num_judged or num_judged < 1:
        raise ValueError(f"{num_right} right of {num_judged} judged is not a proportion")
    n, p = num_judged, num_right / num_judged
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = p + z * z / (2 * n)
    spread = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def exact_interval(num_right: int, num_judged: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion: the p for which neither tail of the binomial is below (1 - confidence) / 2.

    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26 (1934) 404.

    Raises:
        ValueError: num_judged is below 1, or num_right is not between 0 and num_judged.
    """
    if not 0 <= num_right <= num_judged or num_judged < 1:
        raise ValueError(f"{num_right} right of {num_judged} judged is not a proportion")
    tail = (1 - confidence) / 2
    low = 0.0 if num_right == 0 else _solve(lambda p: 1 - _at_most(num_right - 1, num_judged, p) - tail)
    high = 1.0 if num_right == num_judged else _solve(lambda p: tail - _at_most(num_right, num_judged, p))
    return low, high


def _at_most(k: int, n: int, p: float) -> float:
    """The probability of at most k successes in n."""
    if n <= LARGEST_COMB:
        return sum(_chosen(n)[i] * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    if p <= 0 or p >= 1:
        return float(p <= 0 or k >= n)
    chosen = lgamma(n + 1)  # of n over i as a logarithm: as a number it is too large for a float
    logs = (
        chosen - lgamma(i + 1) - lgamma(n - i + 1) + i * log(p) + (n - i) * log(1 - p) for i in range(k + 1)
    )
    return min(1.0, sum(map(exp, logs)))


@lru_cache(maxsize=4)
def _chosen(n: int) -> tuple[float, ...]:
    """The binomial coefficients of n: to compute one anew for each term takes seconds for n = 1,000."""
    return tuple(float(comb(n, i)) for i in range(n + 1))


def _solve(rising: Callable[[float], float]) -> float:
    """The zero in [0, 1] of a rising function, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Share:
    """How many of the images that were judged for an attribute have it right."""

    num_right: int
    num_judged: int

    @property
    def share(self) -> float:
        return self.num_right / self.num_judged

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson_interval(self.num_right, self.num_judged)

    def to_dict(self) -> dict[str, float]:
        """share, low and high (the interval), num_right and num_judged, for JSON."""
        low, high = self.interval
        counts = {"num_right": self.num_right, "num_judged": self.num_judged}
        return {"share": self.share, "low": low, "high": high, **counts}

    def __str__(self) -> str:
        return f"{share_text(self.to_dict())} of {self.num_judged}"


def share_text(share: Mapping[str, float]) -> str:
    """A judged share of a report with its interval, such as `0.960 [0.923, 0.983]`."""
    return f"{share['share']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """The mean of values of images, its percentile bootstrap interval, and their number: mean, low, high, num_images.

    The images are resampled with replacement 10,000 times, from a fixed key (Efron and Tibshirani, "An Introduction to
    the Bootstrap", 1993, chapter 13). For a paired comparison, give the differences.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values have no mean")
    drawn = generator_for("bootstrap", len(values))
    numbers = torch.tensor(values, dtype=torch.float64)
    chosen = torch.randint(len(values), (NUM_RESAMPLES, len(values)), generator=drawn)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.quantile(numbers[chosen].mean(dim=1), ends).tolist()
    return {"mean": float(numbers.mean()), "low": low, "high": high, "num_images": len(values)}


def mean_text(found: Mapping[str, float]) -> str:
    """A mean of a report with its interval, such as `27.310 [26.902, 27.704]`."""
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
