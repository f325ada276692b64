"""Which engine a model's denoiser runs on, and where the converted networks of OpenVINO are kept."""

import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from ldm.errors import UserError, unknown_name, warn
from ldm.models.engines.feature_reuse import NUM_FRESH_LAYERS
from ldm.models.engines.openvino_denoiser import (
    OpenVINODenoiser,
    added_inputs,
    is_converted,
    openvino_denoiser,
    runs_on_openvino,
)
from ldm.models.unet import UNetDenoiser
from ldm.types import Conditioning

ENGINES = ("torch", "openvino", "auto")
"""`auto` is openvino if that is installed, the model computes on the CPU in float32, and it pays; otherwise torch."""

CONVERSION_VERSION = 1
"""Increased when the same denoiser would be converted to something else."""

SAVED_SHARE = 0.25
"""The share of torch's time for a call that OpenVINO saves at least: measured 0.25 with 36 million weights, 0.4 with
860 million."""


@dataclass(frozen=True)
class Work:
    """The work that a denoiser is about to do.

    Attributes:
        num_rows: rows in all its calls together: a step of an image is one, or two with guidance.
        height: of the latents; so is `width`.
        num_tokens: L of the prompt embeddings.
        reuses_features: whether `deep_features_every` is above 1 anywhere.
    """

    num_rows: int
    height: int
    width: int
    num_tokens: int
    reuses_features: bool = False


def choose_engine(engine: str, denoiser: UNetDenoiser, work: Work) -> OpenVINODenoiser | None:
    """What the sampler calls in place of a denoiser, with the denoiser's weights as they are now.

    Args:
        engine: one of `ENGINES`.
        work: `auto` decides by it whether to convert the network, unless that is in the cache already.

    Returns:
        None for torch: the denoiser itself.

    Raises:
        UserError: the engine is unknown, or it is openvino and cannot be used here.

    Warns:
        LdmWarning: `auto` would have chosen openvino, but it cannot be used.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if engine == "torch" or (engine == "auto" and not _fits(denoiser)):
        return None
    device = next(denoiser.parameters()).device
    if device.type != "cpu":
        raise UserError(
            f"the engine openvino computes on the CPU, but the model is on {device}", "use device cpu"
        )
    folder = converted_folder(denoiser, in_passes=work.reuses_features)
    if engine == "auto" and not is_converted(folder) and not _pays(denoiser, work):
        return None
    from ldm.data.cache.cache_folder import mark_used  # as in `converted_folder`

    try:
        made = openvino_denoiser(denoiser, folder, in_passes=work.reuses_features)
        mark_used(folder)
        return made
    except UserError as error:
        if engine != "auto":
            raise
        warn(f"{error.what}, so torch is used")
        return None


def converted_folder(denoiser: UNetDenoiser, *, in_passes: bool = False) -> Path:
    """Where the cache keeps the converted network of a denoiser, by a hash of its weights."""
    from ldm.data.cache.cache_folder import cache_root  # not needed for torch, and slow to import
    from ldm.data.cache.keys import tensors_hash

    made_by = f"{CONVERSION_VERSION}-{version('openvino') if find_spec('openvino') else 'none'}"
    kind = f"-cut{NUM_FRESH_LAYERS}" if in_passes else ""
    return cache_root() / "openvino" / f"{tensors_hash(denoiser.unet)}-{made_by}{kind}"


def _fits(denoiser: UNetDenoiser) -> bool:
    weight = next(denoiser.parameters())
    if not runs_on_openvino(denoiser):  # it has inputs that the converted network does not have
        return False
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and find_spec("openvino") is not None


def _pays(denoiser: UNetDenoiser, work: Work) -> bool:
    num_weights = sum(weight.numel() for weight in denoiser.parameters())
    return repays(work.num_rows, _row_sec(denoiser, work), num_weights)


def repays(num_rows: int, row_sec: float, num_weights: int) -> bool:
    """Whether OpenVINO saves more time than converting, writing, checking and compiling take.

    Args:
        num_rows: of `Work`.
        row_sec: seconds that torch takes for a row.
        num_weights: of the network.
    """
    preparing_sec = 5.0 + 20e-9 * num_weights  # 4 s measured with 17 million weights; a disk of 200 MB/s
    return num_rows * row_sec * SAVED_SHARE > preparing_sec


@torch.no_grad()
def _row_sec(denoiser: UNetDenoiser, work: Work) -> float:
    """Seconds that torch takes for a row: the shorter of two calls, as the first one includes setup."""
    latents = torch.zeros(1, denoiser.latent_channels, work.height, work.width)
    embeds = Conditioning(torch.zeros(1, work.num_tokens, denoiser.text_width))
    if denoiser.needs_time_ids:
        added = added_inputs(denoiser, num_rows=1, num_ids=1)
        embeds = replace(embeds, pooled=added["text_embeds"], time_ids=added["time_ids"])
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        denoiser(latents, torch.tensor([500.0]), embeds)
        taken.append(time.perf_counter() - start)
    return min(taken)
