"""What was measured since the last row of metrics.jsonl, as means, added up on the device so that nothing waits."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.diffusion.objective import NUM_TENTHS


@dataclass
class MetricWindow:
    """Sums of the steps' metrics since the last row. A part of the checkpoint: a resumed run writes the same rows.

    Attributes:
        sums: by name, in float64; `steps` counts the steps that were not skipped.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor], skipped: Tensor) -> None:
        """Take in a step's metrics, unless it was skipped."""
        kept = ~skipped.bool()
        for name, value in {**metrics, "steps": torch.ones_like(metrics["loss"])}.items():
            part = torch.where(kept, value, 0.0).double()
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def take(self) -> dict[str, Tensor]:
        """The means since the last call, which begins a new window; NaN where there was no step, or no sample.

        `loss_tK` is the mean over the samples of tenth K, of which `count_tK` says how many there were.
        """
        sums, self.sums = self.sums, {}
        counts = {f"count_t{tenth}" for tenth in range(NUM_TENTHS)}
        return {
            name: value / sums[name.replace("loss_t", "count_t") if name.startswith("loss_t") else "steps"]
            for name, value in sums.items()
            if name != "steps" and name not in counts
        }

    def numbers(self) -> dict[str, float]:
        """The sums as plain numbers, for a checkpoint."""
        return {name: float(value) for name, value in self.sums.items()}

    @classmethod
    def from_numbers(cls, numbers: dict[str, float], device: torch.device) -> "MetricWindow":
        """The window that `numbers` was called on, to the last bit."""
        return cls({name: torch.tensor(v, dtype=torch.float64, device=device) for name, v in numbers.items()})
