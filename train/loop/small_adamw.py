"""AdamW in less memory: weights in bfloat16 without a float32 copy, and moments in 8 bits.

Each tensor's step is computed in float32. What is kept of it is rounded: weights of bfloat16 stochastically, moments to
the nearest of 256 levels. The noise of the rounding is a function of the seed, the tensor and its number of steps, so
resumed runs are exact and all processes round alike.

torchao has such an optimizer too. Its noise comes from the global generator, which differs from process to process; it
compiles its step, which needs a compiler where it runs; and safetensors cannot hold its tensor classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.noise import key_to_seed

from .eight_bits import BLOCK, SMALLEST, from_eight_bits, to_eight_bits
from .rounding import round_stochastically

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""torch's names of the two moments, and whether each has a sign."""
SCALES = "_scales"
"""Suffix of the name under which the scales of an 8-bit moment are kept."""


class SmallAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), whose weights and moments may be kept in fewer bits.

    Attributes:
        grad_scale: divides the gradients as they are read, if set.
        found_inf: not 0 if the step is to be left out, if set.
    """

    # torch's mark of optimizers that read these two, see `decides_on_device`
    _step_supports_amp_scaling = True
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self, groups: Any, *, lr: float, betas: tuple[float, float], eight_bits: bool = False, seed: int = 0
    ) -> None:
        """Args:
        groups: parameters in float32 or bfloat16, or groups of them, with `weight_decay`.
        eight_bits: keep moments with at least `SMALLEST` numbers in 8 bits.
        seed: of the rounding's noise.
        """
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0})
        self.eight_bits, self.seed = eight_bits, seed
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._number = {parameter: number for number, parameter in enumerate(parameters)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient, unless `found_inf` says not to."""
        assert closure is None
        if self.found_inf is not None and self.found_inf.item():
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)

    @torch.no_grad()
    def move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """The step of one parameter of a group."""
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        state = self.state[parameter]
        state["step"] = state.get("step", torch.zeros(())) + 1
        number = int(state["step"])
        (beta1, beta2), lr = group["betas"], group["lr"]
        first = self.moment(parameter, "exp_avg").lerp_(gradient, 1 - beta1)
        second = (
            self.moment(parameter, "exp_avg_sq").mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        )
        weight = parameter.float() * (1 - lr * group["weight_decay"])
        divisor = (second.sqrt() / (1 - beta2**number) ** 0.5).add_(group["eps"])
        weight.addcdiv_(first, divisor, value=-lr / (1 - beta1**number))
        self._keep(parameter, "exp_avg", first)
        self._keep(parameter, "exp_avg_sq", second)
        parameter.copy_(self._rounded(weight, parameter, number))

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        """A moment in float32, of the parameter's shape: zeros before the first step."""
        state = self.state[parameter]
        if name not in state:
            return torch.zeros_like(parameter, dtype=torch.float32)
        kept: Tensor = state[name]
        if not self.has_scales(parameter):
            return kept
        return from_eight_bits(kept, state[name + SCALES], signed=MOMENTS[name])

    def has_scales(self, parameter: Tensor) -> bool:
        """Whether the parameter's moments are kept in 8 bits."""
        return self.eight_bits and parameter.numel() >= SMALLEST

    def slot_shapes(self, parameter: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of what is kept of a parameter after its first step, by name."""
        shapes: dict[str, tuple[int, ...]] = {"step": (), **dict.fromkeys(MOMENTS, tuple(parameter.shape))}
        if self.has_scales(parameter):
            shapes |= {name + SCALES: (-(-parameter.numel() // BLOCK),) for name in MOMENTS}
        return shapes

    def _keep(self, parameter: nn.Parameter, name: str, values: Tensor) -> None:
        state = self.state[parameter]
        if self.has_scales(parameter):
            state[name], state[name + SCALES] = to_eight_bits(values, signed=MOMENTS[name])
        else:
            state[name] = values

    def _rounded(self, weight: Tensor, parameter: nn.Parameter, number: int) -> Tensor:
        """The new weight in the parameter's number format."""
        if parameter.dtype != torch.bfloat16:
            return weight
        key = key_to_seed(self.seed, number, self._number[parameter], "rounding")
        return round_stochastically(weight, torch.Generator(parameter.device).manual_seed(key))
