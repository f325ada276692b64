"""Which task a model was trained for: what its folder says, or else what its UNet's channels say.

Axis letters: C latent channels.
"""

from pathlib import Path

from ldm.errors import UserError
from ldm.io.json_files import read_object
from ldm.models.families.family import Family
from ldm.models.families.stable_diffusion import UPSCALER_CHANNELS, UPSCALER_LABELS
from ldm.models.generation_settings import TEXT_TO_IMAGE
from ldm.models.unet import UNetDenoiser

RESTORE_LABELS = 101
"""The class labels of a model that restores: how damaged an image is, in per cent."""


def task_of_channels(denoiser: UNetDenoiser) -> str:
    """The task of a UNet by what it takes besides C latents; text-to-image if that is like no task.

    Without class labels no channels, 1, C, or 1 + C; with them 3, or C.
    """
    latent_channels = denoiser.latent_channels
    known = {
        (0, 0): TEXT_TO_IMAGE,
        (1, 0): "depth",
        (latent_channels, 0): "edit",
        (1 + latent_channels, 0): "inpaint",
        (UPSCALER_CHANNELS, UPSCALER_LABELS): "upscale",
        (latent_channels, RESTORE_LABELS): "restore",
    }
    return known.get((denoiser.concat_channels, denoiser.num_class_labels), TEXT_TO_IMAGE)


def read_task(folder: Path, family: Family, denoiser: UNetDenoiser) -> str:
    """The task that a folder in the diffusers layout is for.

    `ldm.json` says it, or else the channels of the UNet.

    Raises:
        UserError: `ldm.json` names a task that this UNet has not the channels for.
    """
    by_channels, ours = task_of_channels(denoiser), folder / "ldm.json"
    said = read_object(ours).get("task", by_channels) if ours.is_file() else by_channels
    if said != by_channels and (said in (TEXT_TO_IMAGE, *family.task_pipelines) or not isinstance(said, str)):
        raise UserError(
            f"{ours} says task {said!r}, and the unet has {denoiser.input_channels} input channels",
            f"these are for {by_channels}: restore the file",
        )
    return str(said)
