"""The share of right answers, and its interval."""

from dataclasses import dataclass
from statistics import NormalDist


def wilson_interval(num_right: int, num_judged: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share p = num_right / n, which stays in [0, 1] and holds at p = 0 and 1 too.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), with z the normal quantile: E. B. Wilson,
    "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22 (1927) 209.

    Raises:
        ValueError: num_judged is below 1, or num_right is not between 0 and num_judged.
    """
    if not 0 <= num_right <= num_judged or num_judged < 1:
        raise ValueError(f"{num_right} right of {num_judged} judged is no share")
    n, p = num_judged, num_right / num_judged
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = p + z * z / (2 * n)
    spread = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass(frozen=True)
class Share:
    """How many pictures, of those judged on it, have an attribute right."""

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
        """share, low and high (the interval), num_right, num_judged; for JSON."""
        low, high = self.interval
        counts = {"num_right": self.num_right, "num_judged": self.num_judged}
        return {"share": self.share, "low": low, "high": high, **counts}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.3f} [{low:.3f}, {high:.3f}] of {self.num_judged}"
