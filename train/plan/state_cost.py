"""What the training state takes: counted, not measured."""

from dataclasses import dataclass

from ..loop.state import TrainState, trained_weights
from ..run.checkpoints import checkpoint_tensors


@dataclass(frozen=True)
class StateCost:
    """Bytes of the trained weights and of all that is kept for each of them, in this process.

    Attributes:
        gradients: during a step.
        moments: of the optimizer, with scales and step counters.
        averages: of the weights.
    """

    weights: int
    gradients: int
    moments: int
    averages: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.moments + self.averages


def count_state(state: TrainState, *, fused_backward: bool = False) -> StateCost:
    """Count the bytes of a state that has been trained for a step; before it, the optimizer has no moments.

    Args:
        fused_backward: each gradient is freed before the next one is there.
    """
    kept = {
        file: sum(tensor.nbytes for tensor in tensors.values())
        for file, tensors in checkpoint_tensors(state).items()
    }
    each = [weight.nbytes for weight in trained_weights(state.module).values()]
    gradients = max(each) if fused_backward else sum(each)
    averages = 0 if state.average.is_weights else kept["average"]
    return StateCost(kept["weights"], gradients, kept["optimizer"], averages)
