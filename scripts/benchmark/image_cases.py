"""What `generate` measures: models of three sizes, or a user's own, and how they are sampled."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

from ldm.errors import UserError

from .models import MEDIUM, NARROW_VAE, SD15, SMALLEST, Shape
from .samples import Scale, Setting

THEIRS, TORCH, ENGINE, HALF, FAST = "diffusers", "ldm", "ldm openvino", "ldm half guided", "ldm fast preset"
TUNED, COMPILED = "diffusers, tuned", "ldm compiled"


@dataclass(frozen=True)
class Case:
    """A model, and how images are generated with it.

    Attributes:
        shape: shape of a model with random weights, or None for an existing model.
        goals: ratios to diffusers that the sides should reach.
        together: whether all sides fit into memory at once; otherwise each is measured separately with diffusers.
        one_process: whether our sides share a process and a converted network, which is faster. Their peak memory is
            then measured together.
    """

    name: str
    shape: Shape | None
    size_px: int
    num_steps: int
    goals: Mapping[str, float]
    sides: tuple[str, ...] = (TUNED, TORCH, ENGINE, HALF, FAST)
    together: bool = True
    one_process: bool = False
    model: str = "emoji"

    @property
    def title(self) -> str:
        return f"{self.name}, {self.size_px} px, {self.num_steps} steps"


EMBEDDED = Case("embedded model", None, 64, 20, {})
MEDIUM_CASE = Case(
    "36M UNet",
    # with a narrow autoencoder: the goals concern the cost of sampling, and `decode` measures the rest
    replace(MEDIUM, text_width=512, text_layers=2, vae_channels=NARROW_VAE),
    256,
    20,
    {ENGINE: 1.3, HALF: 1.7},
)
SD15_CASE = Case("SD1.5-size UNet", SD15, 256, 20, {ENGINE: 1.6, HALF: 2.0, FAST: 3.5}, together=False)
CUDA_CASE = Case(
    "SD1.5-size UNet", SD15, 512, 20, {COMPILED: 2.0}, sides=(TUNED, TORCH, COMPILED, HALF, FAST)
)
CASES: Mapping[Scale, tuple[Case, ...]] = {
    "full": (EMBEDDED, MEDIUM_CASE, SD15_CASE),
    # a narrow autoencoder, because with few steps decoding, the same on all sides, would weigh more
    "quick": (
        EMBEDDED,
        replace(MEDIUM_CASE, num_steps=8),
        replace(
            SD15_CASE,
            shape=replace(SD15, vae_channels=NARROW_VAE),
            num_steps=4,
            sides=(ENGINE, HALF, FAST),
            one_process=True,
        ),
    ),
    "smallest": (Case("smallest model", SMALLEST, 64, 4, {TORCH: 0.001}),),
}


def cases_of(setting: Setting) -> tuple[Case, ...]:
    """The cases to measure: on CUDA a single one, since all sides fit into memory there and OpenVINO is not used.

    Raises:
        UserError: no case has the side and the part of a name that were asked for.
    """
    cases = (CUDA_CASE,) if setting.device.startswith("cuda") else CASES[setting.scale]
    if setting.model:
        cases = (case_of(setting.model, setting.scale),)
    elif setting.device.startswith("cuda") and setting.scale == "smallest":
        cases = CASES["smallest"]
    without = ENGINE if not find_spec("openvino") or setting.device.startswith("cuda") else ""
    chosen = tuple(
        replace(case, sides=sides, num_steps=setting.num_steps or case.num_steps)
        for case in cases
        if setting.case in case.name
        if (sides := tuple(s for s in case.sides if s != without and setting.side in ("", s)))
    )
    if not chosen:
        known = "; ".join(f"{case.name}: {', '.join(case.sides)}" for case in cases)
        raise UserError(f"no case has {setting.case!r} in its name and the side {setting.side!r}", known)
    return chosen


def case_of(model: str, scale: Scale) -> Case:
    """A user's model, with its default size and number of steps."""
    from ldm.pipeline.pipeline import load_pipeline

    loaded = load_pipeline(model, device="cpu")
    size_px, num_steps = loaded.defaults.height, loaded.defaults.num_inference_steps
    return Case(loaded.model_id, None, size_px, num_steps if scale == "full" else 4, {}, model=model)
