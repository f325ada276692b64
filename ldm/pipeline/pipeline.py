"""A text-to-image model ready for use: from prompts to pictures.

pipeline = load_pipeline("emoji")
pipeline.generate("a red apple", seed=7).images[0]
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.diffusion.guidance import Interval
from ldm.diffusion.sampling import SamplingPlan, denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler
from ldm.errors import LdmWarning
from ldm.models.adapters.fuse import UsedLora
from ldm.models.clip import ClipTextEncoder
from ldm.models.devices import DTYPES, pick_device, pick_dtype
from ldm.models.engines.compiled import is_compiled
from ldm.models.engines.openvino_denoiser import OpenVINODenoiser
from ldm.models.loading.folder import Defaults, weights_hash
from ldm.models.loading.model import ModelParts, load_model, save_parts
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.noise import image_generators, normal_per_image
from ldm.pipeline.decoding import decode_images
from ldm.pipeline.settings import (
    Generation,
    OnStep,
    Request,
    batch_rows,
    check_finite,
    check_latents,
    check_text_to_image,
    complete_request,
    count_on,
    list_rows,
    program_settings,
    warn_unused,
)
from ldm.types import Conditioning

__all__ = ["DTYPES", "Generation", "LdmWarning", "OnStep", "Pipeline", "load_pipeline", "pick_device"]


def load_pipeline(
    model: str | Path = "emoji",
    *,
    loras: Sequence[tuple[str | Path, float]] = (),
    device: str | None = None,
    dtype: str | None = None,
) -> "Pipeline":
    """Load a model.

    Args:
        model: "emoji" (embedded), a folder in the diffusers layout or of an adapter, a run folder, a .safetensors file
            in the original layout, or a Hub id "user/name".
        loras: LoRA files to add to it, of any naming or as folders, each with its weight; 1 is as trained.
        device: such as "cpu" or "cuda"; by default a GPU where there is one.
        dtype: "float32" (default), "float16" or "bfloat16", of the denoiser and the text encoder.

    Raises:
        UserError: no such model or LoRA, or it is incomplete, damaged, or not allowed.
    """
    torch_dtype, torch_device = pick_dtype(dtype), pick_device(device)
    loaded = load_model(model, loras=loras, dtype=torch_dtype)
    return Pipeline(loaded.parts, model_id=loaded.model_id, folder=loaded.place, loras=loaded.loras).to(
        torch_device
    )


class Pipeline:
    """A model's parts and how to make pictures with them.

    Attributes:
        parts: the networks, the scheduler's configuration and the defaults.
        model_id: a name without a path.
        folder: where the parts were loaded from, a folder or a file, or None.
        loras: what was added to the weights in `folder`.
        engine: what the sampler calls in place of the denoiser, of `ldm.pipeline.engine_choice`; None for torch.
        low_memory: keep only the part at work on the device, and decode one picture at a time.
    """

    def __init__(
        self,
        parts: ModelParts,
        *,
        model_id: str = "unsaved",
        folder: Path | None = None,
        loras: Sequence[UsedLora] = (),
    ) -> None:
        self.parts = parts
        self.model_id = model_id
        self.folder = folder
        self.loras = tuple(loras)
        self.engine: OpenVINODenoiser | None = None
        self.low_memory = False
        self.device = next(parts.denoiser.parameters()).device

    @property
    def denoiser(self) -> UNetDenoiser:
        return self.parts.denoiser

    @property
    def autoencoder(self) -> KLAutoencoder:
        return self.parts.autoencoder

    @property
    def text_encoder(self) -> ClipTextEncoder:
        return self.parts.text_encoder

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return self.parts.scheduler_config

    @property
    def defaults(self) -> Defaults:
        return self.parts.defaults

    @cached_property
    def weights_hash(self) -> str | None:
        """One SHA-256 over the model's safetensors; None for a model that was not loaded from a folder."""
        return weights_hash(self.folder) if self.folder else None

    def to(self, device: torch.device | str) -> "Pipeline":
        """Move to a device; returns itself."""
        for module in self.parts.modules().values():
            module.to(device)
        self.device = torch.device(device)
        return self

    def save(self, folder: str | Path, **options: Any) -> None:
        """Write the model as a stock diffusers folder; options as `ldm.models.loading.model.save_parts`."""
        save_parts(self.parts, Path(folder), **options)

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: Interval | None = None,
        deep_features_every: int = 1,
        scheduler: str | None = None,
        karras: bool = False,
        height: int | None = None,
        width: int | None = None,
        max_prompt_chunks: int | None = None,
        batch_size: int = 8,
        latents: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Generation:
        """Make `num_images` pictures of each prompt; the i-th has seed `seed + i`, whatever the others are.

        What is left None comes from the model's defaults.

        Args:
            negative_prompt: what the pictures should not show; used when guidance_scale > 1.
            seeds: one for each picture, prompt after prompt, in place of `seed`.
            guidance_scale: 1 or less means no guidance.
            guidance_rescale: 0 to 1, see `ldm.diffusion.sampling.rescale_guidance`.
            guidance_interval: where guidance is used, see `ldm.diffusion.sampling.Interval`; (0, 0.5): half of them.
            deep_features_every: n: the deep UNet is computed every n-th step, see `ldm.models.engines.feature_reuse`.
            scheduler: a key of `ldm.diffusion.scheduler_names.SCHEDULERS`.
            karras: space the noise levels as Karras et al. 2022 do.
            height: in pixels, rounded to what the model can make; so is `width`.
            max_prompt_chunks: contexts of the text encoder that a long prompt may fill; 1 cuts as diffusers does.
            batch_size: pictures made at once; it changes memory and time only.
            latents: the initial standard normal noise [N, C, h, w] in place of the seeds'; `settings` hold its hash.
            on_step: called after every step.

        Raises:
            UserError: a setting is out of range or does not fit the model.

        Warns:
            LdmWarning: a prompt is cut off, the negative prompt is not used, or a size is rounded.
        """
        check_text_to_image(self.model_id, self.denoiser)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = list_rows(prompts, seed=seed, seeds=seeds, num_images=num_images, batch_size=batch_size)
        request = complete_request(
            self.defaults,
            multiple=self.autoencoder.pixels_per_latent,
            latents=latents,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            deep_features_every=deep_features_every,
            scheduler=scheduler,
            karras=karras,
            height=height,
            width=width,
            max_prompt_chunks=max_prompt_chunks,
        )
        if latents is not None:
            check_latents(latents, (len(rows), *self._latent_shape(request)))
        warn_unused(prompts, request, self.text_encoder.truncated_words)
        batches = batch_rows([self._num_chunks(prompt, request) for prompt, _ in rows], batch_size)
        scheduler = make_scheduler(request.scheduler, self.scheduler_config, karras=karras)
        plan = plan_sampling(scheduler, request.num_inference_steps)
        made: dict[int, tuple[Image.Image, Tensor, dict[str, Any]]] = {}
        for index, batch in enumerate(batches):
            noise = None if latents is None else latents[batch]
            report = count_on(on_step, index, len(batches))
            final = self._sample([rows[i] for i in batch], request, plan, noise, report)
            images, in_tiles = self._decode(final)
            for i, image, own in zip(batch, images, final.cpu(), strict=True):
                given = None if latents is None else latents[i]
                made[i] = image, own, self._settings(request, *rows[i], given, in_tiles)
        in_order = [made[i] for i in range(len(rows))]
        return Generation(
            [image for image, _, _ in in_order],
            torch.stack([own for _, own, _ in in_order]),
            [settings for _, _, settings in in_order],
        )

    def _sample(
        self,
        rows: list[tuple[str, int]],
        request: Request,
        plan: SamplingPlan,
        noise: Tensor | None,
        on_step: OnStep | None,
    ) -> Tensor:
        """The final latents [B, C, h, w] of B rows of (prompt, seed), whose prompts need the same chunks."""
        num_chunks = self._num_chunks(rows[0][0], request)
        prompt_embeds = self._embed([prompt for prompt, _ in rows], num_chunks)
        negative = self._embed([request.negative_prompt], num_chunks)
        generators = image_generators([seed for _, seed in rows])
        if noise is None:
            noise = normal_per_image(generators, self._latent_shape(request))
        latents = noise = noise.to(self.device, torch.float32)
        with self._at_work(self.denoiser):
            for step, latents in denoise(
                request.denoiser_for(self.engine or self.denoiser, negative),
                plan,
                noise,
                prompt_embeds,
                generators=generators,
            ):
                if on_step is not None:
                    on_step(step.index + 1, plan.num_steps, step, latents)
        check_finite(latents, request.scheduler, plan.num_steps)
        return latents

    def _num_chunks(self, prompt: str, request: Request) -> int:
        """The chunks of a picture: what its prompt and, where one is used, the negative prompt need."""
        used = [prompt, request.negative_prompt] if request.guidance_scale > 1 else [prompt]
        return min(max(map(self.text_encoder.chunks_needed, used)), request.max_prompt_chunks)

    def _embed(self, prompts: list[str], num_chunks: int) -> Conditioning:
        with self._at_work(self.text_encoder):
            embeds: Conditioning = self.text_encoder(prompts, num_chunks)
        return embeds

    def _decode(self, latents: Tensor) -> tuple[list[Image.Image], bool]:
        with self._at_work(self.autoencoder):
            return decode_images(self.autoencoder, latents, one_by_one=self.low_memory)

    @contextmanager
    def _at_work(self, module: nn.Module) -> Iterator[None]:
        """With low memory, a part is on the device only while it works."""
        if self.low_memory:
            for other in self.parts.modules().values():
                other.to(self.device if other is module else "cpu")
        yield

    def _latent_shape(self, request: Request) -> tuple[int, int, int]:
        multiple = self.autoencoder.pixels_per_latent
        return self.autoencoder.num_channels, request.height // multiple, request.width // multiple

    def settings_of(self, prompts: Sequence[str], seeds: Sequence[int], **given: Any) -> list[dict[str, Any]]:
        """The settings that `generate` would give its pictures, none of which is made; arguments as there."""
        request = complete_request(self.defaults, multiple=self.autoencoder.pixels_per_latent, **given)
        return [self._settings(request, *row) for row in zip(prompts, seeds, strict=True)]

    def _settings(
        self, request: Request, prompt: str, seed: int, noise: Tensor | None = None, in_tiles: bool = False
    ) -> dict[str, Any]:
        """Everything needed to make one picture again, ready for JSON."""
        made_with: dict[str, Any] = {"model_id": self.model_id, "weights_hash": self.weights_hash}
        made_with |= {"loras": [asdict(lora) for lora in self.loras]} if self.loras else {}
        made_with |= program_settings(next(self.denoiser.parameters()).dtype, self.engine)
        made_with |= {"compiled": True} if is_compiled(self.denoiser) else {}
        made_with |= {"decoded_in_tiles": True} if in_tiles else {}
        return request.picture_settings(prompt, seed, noise) | made_with
