"""Moving averages of the trained weights: one with a decay, or several of given widths, with snapshots."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm.config import Settings
from ldm.diffusion.ema import MAX_WIDTH, gamma_of, stored_name, update_weight
from ldm.io.files import write_manifest, write_tensors
from ldm.io.folders import new_folder

from .sharding import assign, full, gathered, local


class AverageSettings(Settings):
    """Power-function averages, in place of the one with `ema_decay` (Karras et al. 2024)."""

    widths: tuple[float, ...] = Field(
        (), description="relative widths, such as [0.05, 0.1], at most 0.28; none: one average with ema_decay"
    )
    applied_width: float | None = Field(
        None, description="the width used for previews, validation and the result; default: the first"
    )
    snapshot_every: int = Field(
        0, ge=0, description="optimizer steps between snapshots for `ldm ema`, best with two widths; 0: none"
    )

    def model_post_init(self, _: Any) -> None:
        if not all(0 < width <= MAX_WIDTH for width in self.widths):
            raise ValueError(f"choose widths above 0 and at most {MAX_WIDTH}")
        if len(set(self.widths)) < len(self.widths):
            raise ValueError("name each width once")
        if self.applied_width is not None and self.applied_width not in self.widths:
            raise ValueError("applied_width must be one of the widths")
        if self.snapshot_every and not self.widths:
            raise ValueError("snapshot_every needs widths, for instance [0.05, 0.1]")


class WeightAverages:
    """Moving averages of the trained weights: one for each width, or a single one with a decay.

    With a decay: average <- average + (1 - d) (weight - average), d = min(decay, (1 + step)/(10 + step)); the ramp lets
    a short run forget its random start. With widths: see `ldm.diffusion.ema`. Frozen weights have no average; of a LoRA
    run, only the adapter's weights are averaged. Averages are float32 whatever the weights are, because in bfloat16
    they would stand still. With a decay of 0 there is nothing to average, and the average is the weights themselves.

    Attributes:
        live: the trained weights by name.
    """

    def __init__(self, module: nn.Module, decay: float, settings: AverageSettings | None = None) -> None:
        settings = settings or AverageSettings()
        self.decay, self.widths = decay, settings.widths
        self.live: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
        kinds: tuple[float | None, ...] = settings.widths or (None,)
        self._averages = {kind: {name: self._first(p) for name, p in self.live.items()} for kind in kinds}
        self._applied = self._averages[settings.applied_width or kinds[0]]

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor | None = None) -> None:
        """Update the averages after optimizer step `step` (from 1).

        Args:
            skipped: a number on the weights' device, 1 if the step was skipped, which leaves the averages unchanged,
                else 0. The host does not wait for it.
        """
        if self.is_weights:
            return
        live = [local(tensor) for tensor in self.live.values()]
        for width, average in self._averages.items():
            weight = self._update_weight(step, width)
            own = [local(tensor) for tensor in average.values()]
            if skipped is None:
                lerp_all(own, live, weight)
            else:
                taken = weight * (1 - skipped.detach().float().reshape(()))
                lerp_all(own, live, [taken] * len(live))

    def _update_weight(self, step: int, width: float | None) -> float:
        if width is not None:
            return update_weight(step, gamma_of(width))
        return 1 - (min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0)

    @property
    def is_weights(self) -> bool:
        """Whether there is nothing to average, so that the averages share the memory of the weights."""
        return not (self.decay or self.widths)

    def _first(self, weight: Tensor) -> Tensor:
        """What an average begins with: a copy of a weight, in the same memory layout."""
        if self.is_weights:
            return weight.detach()
        short = weight.dtype == torch.bfloat16
        return weight.detach().to(torch.float32 if short else weight.dtype, copy=True)

    @property
    def current(self) -> dict[str, Tensor]:
        """The average that `applied` uses, by the weight's name; not copies."""
        return self._applied

    def tensors(self) -> dict[str, Tensor]:
        """Every average by the weight's name, prefixed with `width-0.05/` if there are widths. Not copies."""
        return {
            name if width is None else stored_name(width, name): tensor
            for width, average in self._averages.items()
            for name, tensor in average.items()
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the averages of a checkpoint, which must have the same names and shapes."""
        own = self.tensors()
        assert tensors.keys() == own.keys()
        for name, tensor in tensors.items():
            assign(own[name], tensor)

    @torch.no_grad()
    def replace_applied(self, weights: dict[str, Tensor]) -> None:
        """Make `applied` use these weights from now on, such as those of the best step."""
        assert weights.keys() == self._applied.keys()
        for name, tensor in weights.items():
            assign(self._applied[name], tensor)

    def to_whole(self, live: dict[str, Tensor]) -> Callable[[], None]:
        """Make `applied` swap whole tensors, not shards, with the parameters `live`. Every process must call it.

        Returns:
            a function that restores the shards.
        """
        shards = self.live, self._applied
        self.live, self._applied = live, {name: full(tensor) for name, tensor in self._applied.items()}

        def undo() -> None:
            self.live, self._applied = shards

        return undo

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the module has the averaged weights, afterwards its own again.

        Weights of bfloat16 are rounded to the nearest. A copy of the own ones is then kept, as the averages cannot hold
        both.
        """
        own = self._replace() if self._rounds else None
        if own is None:
            self._swap()
        try:
            yield
        finally:
            if own is None:
                self._swap()
            else:
                self._restore(own)

    @property
    def _rounds(self) -> bool:
        """Whether the weights are of a shorter number format than their averages."""
        return any(p.dtype != self._applied[name].dtype for name, p in self.live.items())

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.live.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._applied[name])
            self._applied[name].copy_(kept)

    @torch.no_grad()
    def _replace(self) -> dict[str, Tensor]:
        own = {name: p.detach().clone() for name, p in self.live.items()}
        self._restore(self._applied)
        return own

    @torch.no_grad()
    def _restore(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.live.items():
            parameter.copy_(weights[name])


def lerp_all(tensors: list[Tensor], ends: list[Tensor], weights: float | list[Tensor]) -> None:
    """tensor <- tensor + weight (end - tensor), in place, for all tensors in one launch.

    torch has no public function for this; `Tensor.lerp_` on each of some hundred tensors takes as many launches. Ends
    in another number format than their tensors are cast one by one, for they would not all fit at once.
    """
    if any(one.dtype != end.dtype for one, end in zip(tensors, ends, strict=True)):
        for number, (one, end) in enumerate(zip(tensors, ends, strict=True)):
            one.lerp_(end.to(one.dtype), weights if isinstance(weights, float) else weights[number])
        return
    torch._foreach_lerp_(tensors, ends, weights)


def save_snapshot(averages: WeightAverages, step: int, folder: Path, *, writes: bool = True) -> Path:
    """Write the averages of all widths into `folder/step-NNNNNN/`, atomically; an existing one is replaced.

    Args:
        writes: whether this process writes; if the averages are sharded, every process must call this.

    Raises:
        UserError: the disk is full or not writable.
    """
    assert averages.widths  # snapshots of an average with a decay cannot be recombined
    dest = folder / f"step-{step:06d}"
    tensors = gathered(averages.tensors(), keep=writes)
    if not writes:
        return dest
    with new_folder(dest, replace=True) as temporary:
        write_tensors(temporary / "averages.safetensors", tensors)
        write_manifest(temporary)
    return dest
