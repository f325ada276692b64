"""What a model has of the networks that control it by images."""

from dataclasses import dataclass
from typing import Any

CONTROLNET, T2I_ADAPTER = "ControlNetModel", "T2IAdapter"
"""The classes of diffusers."""


@dataclass(frozen=True)
class ControlNetwork:
    """A network that turns control images of one kind into residuals.

    Attributes:
        name: of its folder, without a path.
        sha256: of its weights and its configuration.
        network: a diffusers `ControlNetModel` or `T2IAdapter`.
    """

    kind: str
    name: str
    sha256: str
    network: Any

    @property
    def is_adapter(self) -> bool:
        """Whether it is a T2I-Adapter, whose residuals do not depend on the latents."""
        return type(self.network).__name__ == T2I_ADAPTER
