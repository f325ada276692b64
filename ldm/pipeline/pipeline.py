"""A text-to-image model ready for use: from prompts to images.

pipeline = load_pipeline("emoji")
pipeline.generate("a red apple", seed=7).images[0]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.diffusion.sampling import SamplingPlan, plan_sampling, steps_before
from ldm.diffusion.scheduler_names import OWN_SCHEDULER
from ldm.diffusion.schedulers import adds_noise, make_scheduler, replaced_settings, resolve_scheduler
from ldm.errors import LdmWarning, UserError, warn
from ldm.models.adapters.embedding_files import UsedEmbedding, apply_embeddings
from ldm.models.adapters.folder import identity_of_model
from ldm.models.adapters.fuse import UsedLora
from ldm.models.clip import ClipTextEncoder
from ldm.models.control.load_ip_adapter import load_image_prompts
from ldm.models.control.load_networks import load_controls
from ldm.models.devices import DTYPES, free_cached_memory, is_out_of_memory, pick_device, pick_dtype
from ldm.models.engines.compiled import is_compiled
from ldm.models.engines.openvino_denoiser import OpenVINODenoiser
from ldm.models.generation_settings import GenerationSettings
from ldm.models.identity import Identity
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.model import NONE, ModelParts, Substitutes, load_model, save_parts
from ldm.models.settings_as_arguments import keyword_parameters, spell_out
from ldm.models.settings_reading import parse_settings
from ldm.models.timestep_list import parse_timesteps
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.pipeline.batch_sampling import BatchSampler, latent_shape
from ldm.pipeline.batches import (
    Batch,
    ImageRequest,
    Kind,
    PlannedBatch,
    PromptForm,
    halved,
    input_sizes,
    list_images,
    plan_batches,
    sized,
)
from ldm.pipeline.compositing import completed_image
from ldm.pipeline.control_images import (
    GivenControl,
    GivenReference,
    check_controls,
    used_controls,
)
from ldm.pipeline.decoding import check_image_fits
from ldm.pipeline.guide_model import GuideModel, load_guide_model
from ldm.pipeline.input_images import GivenImage
from ldm.pipeline.outpainting import made_at_once, outpaint, windows_of
from ldm.pipeline.prompt_reading import reader_for
from ldm.pipeline.record import INPUTS_VERSION, ImageRecord
from ldm.pipeline.refiner import REFINER, Refiner, check_hand_over, load_refiner
from ldm.pipeline.settings import (
    Generation,
    MadeImage,
    OnStep,
    check_applicable,
    check_call,
    check_guidance,
    check_latents,
    check_not_on_the_way,
    check_same_form,
    check_task_fits,
    complete,
    first_step,
    given_besides,
    latents_hash,
    program_settings,
    read_prompts,
    stacked,
    warn_unused,
    with_inputs,
)
from ldm.pipeline.step_bar import bar_for_steps
from ldm.pipeline.tiles import complete_windows
from ldm.pipeline.unusual import warn_of_lora, warn_of_prompts, warn_of_settings
from ldm.provenance.watermark import check_size, embed, payload_of
from ldm.tasks import Task, task_for_images
from ldm.types import Step

__all__ = [
    "DTYPES",
    "Generation",
    "GenerationSettings",
    "ImageRecord",
    "LdmWarning",
    "OnStep",
    "Pipeline",
    "load_pipeline",
    "pick_device",
]


BATCH_SIZE = 8
"""Images made at once by default."""


def load_pipeline(
    model: str | Path | None = None,
    *,
    loras: Sequence[tuple[str | Path, float]] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    vae: str | Path | None = None,
    base: str | Path | None = None,
    prediction_type: str | None = None,
    controlnets: Mapping[str, str | Path] | None = None,
    ip_adapters: Sequence[str | Path] = (),
    image_encoder: str | Path | None = None,
    guide_model: str | Path | None = None,
    refiner: str | Path | None = None,
    embeddings: Sequence[str | Path] = (),
) -> "Pipeline":
    """Load a model. An argument that is None is not given.

    Args:
        model: "emoji" (included, the default), a folder in the diffusers layout or of an adapter, a run folder, a
            .safetensors file in the original layout, or a Hub id "user/name".
        loras: LoRA files or folders in any naming, each with its weight; 1 is as trained.
        device: such as "cpu" or "cuda"; by default a GPU if there is one.
        dtype: "float32" (default), "float16" or "bfloat16", of the denoiser and the text encoder.
        vae: an autoencoder in place of the model's: a folder or a .safetensors file.
        base: a model from which a .safetensors file takes the networks that it lacks.
        prediction_type: "epsilon" or "v_prediction", if the model does not say or is wrong.
        controlnets: ControlNets and T2I-Adapters by the kind of their control images, such as
            `{"depth": "models/controlnet-depth"}`: folders, runs, .safetensors files of ControlNets, or Hub ids.
        ip_adapters: files or folders of IP-Adapters for reference images, one for all or one for each.
        image_encoder: the folder of the CLIP image encoder of the IP-Adapters; None: `image_encoder` beside the first.
        guide_model: a weaker model with the same text encoder and autoencoder, for guidance "autoguidance".
        refiner: a second model, which finishes the sampling from `denoising_end` on, such as the refiner of SDXL.
        embeddings: files of textual inversion, each `FILE` or `FILE=<token>`: new tokens for prompts.

    Raises:
        UserError: a model or LoRA does not exist, or is incomplete, damaged or not allowed.
    """
    torch_dtype, torch_device = pick_dtype(dtype), pick_device(device)
    for place, weight in loras or ():
        warn_of_lora(Path(place).name, weight)
    substitutes = Substitutes(vae, base, prediction_type)
    loaded = load_model(
        "emoji" if model is None else model, loras=loras or (), dtype=torch_dtype, substitutes=substitutes
    )
    parts = loaded.parts
    parts.controls |= load_controls(
        controlnets or {}, parts, torch_dtype, lambda: identity_of_model(parts, loaded.place).base_parts
    )
    if ip_adapters:
        parts.image_prompts = load_image_prompts(ip_adapters, image_encoder, parts, torch_dtype)
    elif image_encoder is not None:
        raise UserError("an image encoder is given without an IP-Adapter", "add --ip-adapter FILE")
    pipeline = Pipeline(
        parts, model_id=loaded.model_id, folder=loaded.place, loras=loaded.loras, substitutes=substitutes
    )
    if guide_model is not None:
        pipeline.guide_model = load_guide_model(
            guide_model, pipeline.model_id, pipeline.identity, torch_dtype
        )
    if refiner is not None:
        pipeline.refiner = load_refiner(refiner, parts, pipeline.model_id, torch_dtype)
    if embeddings:
        pipeline.add_embeddings(embeddings)
    return pipeline.to(torch_device)


class Pipeline:
    """A model's parts and how to make images with them.

    Attributes:
        parts: the networks, the scheduler's configuration and the defaults.
        model_id: a name without a path.
        folder: where the parts were loaded from, a folder or a file, or None.
        loras: those added to the weights in `folder`.
        substitutes: what was used in place of the model's own.
        engine: what the sampler calls in place of the denoiser, from `ldm.pipeline.engine_choice`; None for torch.
        low_memory: keep only the part in use on the device, and decode one image at a time.
        guide_model: the weaker model of autoguidance, or None.
        refiner: the model that finishes the sampling, or None.
        embeddings: tokens that were added to the model's own.
    """

    def __init__(
        self,
        parts: ModelParts,
        *,
        model_id: str | None = None,
        folder: Path | None = None,
        loras: Sequence[UsedLora] | None = None,
        substitutes: Substitutes = NONE,
    ) -> None:
        self.parts = parts
        self.model_id = "unsaved" if model_id is None else model_id
        self.folder = folder
        self.loras = tuple(loras or ())
        self.substitutes = substitutes
        self.engine: OpenVINODenoiser | None = None
        self.low_memory = False
        self.guide_model: GuideModel | None = None
        self.refiner: Refiner | None = None
        self.embeddings: tuple[UsedEmbedding, ...] = ()
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
    def told(self) -> frozenset[str]:
        """What the model is told besides a prompt, or a second one that refines its images: see `Setting.told`."""
        return self.parts.family.told | (self.refiner.parts.family.told if self.refiner else frozenset())

    @property
    def defaults(self) -> GenerationSettings:
        return self.parts.defaults

    @cached_property
    def weights_hash(self) -> str | None:
        """One SHA-256 over the model's safetensors, and what was used in their place; None for one without a folder."""
        return self.substitutes.hash(weights_hash(self.folder)) if self.folder else None

    @cached_property
    def identity(self) -> Identity | None:
        """What the model is, component by component; None for a model that was not loaded from a folder or file."""
        return identity_of_model(self.parts, self.folder) if self.folder else None

    def to(self, device: torch.device | str) -> "Pipeline":
        """Move to a device; returns itself."""
        for module in self.parts.modules().values():
            module.to(device)
        if self.guide_model:
            self.guide_model.denoiser.to(device)
        for module in self.refiner.parts.modules().values() if self.refiner else ():
            module.to(device)
        self.device = torch.device(device)
        return self

    def add_embeddings(self, places: Sequence[str | Path]) -> None:
        """Add tokens from files, each `FILE` or `FILE=<token>`, for prompts of this model and of its refiner.

        Raises:
            UserError: as `ldm.models.adapters.embedding_files.apply_embeddings`.
        """
        _ = self.identity  # of the model without them: records name the tokens by themselves
        readers = [self.text_encoder, *([self.refiner.parts.text_encoder] if self.refiner else [])]
        self.embeddings += apply_embeddings(readers, places)

    def save(self, folder: str | Path, **options: Any) -> None:
        """Write the model as a stock diffusers folder; options as `ldm.models.loading.model.save_parts`."""
        given = {name: value for name, value in options.items() if value is not None}
        save_parts(self.parts, Path(folder), **given)

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        settings: GenerationSettings | None = None,
        image: GivenImage | Sequence[GivenImage] | None = None,
        mask: GivenImage | Sequence[GivenImage] | None = None,
        control: Mapping[str, GivenControl | list[GivenControl]] | None = None,
        reference: GivenReference | list[GivenReference] | None = None,
        seeds: Sequence[int] | None = None,
        batch_size: int | None = None,
        latents: Tensor | None = None,
        on_step: OnStep | None = None,
        progress: bool | None = None,
        **given: Any,
    ) -> Generation:
        """Make `num_images` images of each prompt; the i-th has seed `seed + i`.

        Its noise does not depend on the other images, and its pixels depend on them by at most 1/255.

        Every field of `GenerationSettings` is an argument too. One that is None or left out comes from `settings`, then
        from the model's defaults.

        Args:
            settings: for all images; the arguments win over it.
            image: what to start from, files or PIL images: one for all prompts, or one for each. The images made have
                its size, unless `height` or `width` is given.
            mask: white where `image` may change, or "alpha" for its transparent part. Elsewhere the pixels stay
                exactly as they are.
            control: control images by kind, such as `{"depth": "depth.png"}`: each for all prompts, or a list with one
                for each; `(image, 0.8)` has a scale. The model needs a network for each kind: see `load_pipeline`. The
                images made have the size of the first one, unless a size or `image` is given.
            reference: images that serve as prompts, for a model with IP-Adapters: one, or a list, for all prompts;
                `(image, 0.6)` has a scale, and `(image, {"up.block_0": 1.0})` one for each block.
            seeds: one for each image, prompt after prompt, in place of `seed`.
            batch_size: images made at once, 8 by default. The noise is the same bit for bit, and the pixels are within
                1/255 whatever it is.
            latents: the initial standard normal noise [N, C, h, w], in place of the seeds'; the records hold its hash.
            on_step: called after every step.
            progress: show a bar; by default on a terminal and in notebooks, if there is no `on_step`.
            given: fields of `GenerationSettings`. `negative_prompt` may be a list, with one for each prompt.

        Raises:
            UserError: an argument has the wrong type, or a setting is unknown, out of range or does not fit the model.

        Warns:
            LdmWarning: a prompt is cut off, the negative prompt is not used, or a size is rounded.
        """
        check_call(seeds, batch_size, latents, on_step)
        base = settings or GenerationSettings()
        negative = given.pop("negative_prompt", None)
        chosen = parse_settings(given, type(base)).over(base)
        asked = with_inputs(read_prompts(prompts, negative, chosen), image, mask, control, reference)
        images = list_images(asked, seeds)
        at_once = BATCH_SIZE if batch_size is None else batch_size
        with bar_for_steps(progress, on_step) as report:
            made = list(self.make_images([images], batch_size=at_once, latents=latents, on_step=report))
        return _in_order(made)

    @torch.no_grad()
    def make_images(
        self,
        groups: Sequence[Batch],
        *,
        batch_size: int,
        latents: Tensor | None = None,
        halve: bool = False,
        on_step: OnStep | None = None,
    ) -> Iterator[MadeImage]:
        """Make images batch after batch, and yield each as soon as its batch is done.

        Args:
            groups: images of different groups are never in one batch.
            latents: the initial noise [N, C, h, w] of the images numbered 1 to N.
            halve: continue with half as many images at once if a batch does not fit in memory.

        Raises:
            UserError: a setting does not fit the model, or with `halve` not even one image fits in memory.

        Warns:
            LdmWarning: as `generate`, and with `halve`, that a batch does not fit in memory.
        """
        waiting, done = self._plan(groups, batch_size, latents), 0
        weak = self.guide_model.denoiser if self.guide_model else None
        second = self.refiner.parts if self.refiner else None
        sampler = BatchSampler(self.parts, self.device, self.engine, self.low_memory, weak, second)
        while waiting:
            batch, total = waiting[0], done + sum(each.num_steps for each in waiting)
            noise = None if latents is None else latents[[image.number - 1 for image in batch.images]]
            reporter = partial(_reporter, on_step, done - batch.plan.start, total)
            try:
                if batch.windows:
                    made = outpaint(sampler, batch, noise, partial(_of_window, reporter, batch))
                else:
                    batch = replace(batch, encoded_in_tiles=sampler.encodes_in_tiles(batch))
                    made = _decoded(sampler, batch, sampler.sample(batch, noise, reporter(0)))
            except RuntimeError as error:
                if not halve or not is_out_of_memory(error):
                    raise
                made = None
            if made is None:
                free_cached_memory()  # not above: while the error is handled it keeps the batch's memory alive
                waiting = halved(waiting)
                continue
            yield from self._finished(batch, *made, noise)
            waiting, done = waiting[1:], done + batch.num_steps

    def _plan(self, groups: Sequence[Batch], batch_size: int, latents: Tensor | None) -> list[PlannedBatch]:
        """The batches to make; the settings of each kind are completed, and its sampler planned, once."""
        has_time_ids = self.parts.family.time_ids is not None
        check_task_fits(self.model_id, self.parts.task, self.denoiser, has_time_ids=has_time_ids)
        images = [image for group in groups for image in group]
        completed = self._complete(images, latents)
        prompts: dict[Kind, list[str]] = {kind: [] for kind in completed}
        for image in images:
            prompts[image.kind].append(image.prompt)
        for kind, full in completed.items():
            at_once = made_at_once(full, self.defaults, self.autoencoder.pixels_per_latent)
            check_image_fits(self.denoiser, *at_once, self.autoencoder.pixels_per_latent, full.tile_size)
            reader = reader_for(self.text_encoder, full)
            embeds = self.denoiser.embeds_guidance
            warn_unused(prompts[kind], full, reader.truncated_words, embeds_guidance=embeds)
            self._warn_replaced(full, is_chosen=self._given_karras(kind[0]) is not None)
            warn_of_prompts(
                [
                    *prompts[kind],
                    full.to_prompt,
                    full.negative_prompt,
                    full.prompt_2,
                    full.negative_prompt_2,
                ],
                reads_weights=reader.rule is not None,
            )
            engine = self.engine.name if self.engine else "torch"
            has_guide, has_refiner = self.guide_model is not None, self.refiner is not None
            check_guidance(kind[0], full, has_guide=has_guide, engine=engine, has_refiner=has_refiner)
            warn_of_settings(full, self.defaults, at_once, any_size=self._task(kind).in_windows)
            if latents is not None:
                check_not_on_the_way(full)
                check_latents(latents, (len(images), *latent_shape(self.autoencoder, full)))
        tasks = {kind: self._task(kind) for kind in completed}
        plans = {kind: self._sampling_plans(full, tasks[kind]) for kind, full in completed.items()}

        def form(image: ImageRequest) -> PromptForm:
            return self._prompt_form(image.prompt, completed[image.kind])

        return [
            PlannedBatch(
                batch,
                completed[kind],
                tasks[kind],
                form(batch[0]),
                plans[kind][0],
                windows_of(batch[0], completed[kind], self.defaults, self.autoencoder.pixels_per_latent),
                refining=plans[kind][1],
            )
            for group in groups
            for batch in plan_batches(group, batch_size, lambda image: (form(image), input_sizes(image)))
            for kind in (batch[0].kind,)
        ]

    def _complete(self, images: Batch, latents: Tensor | None = None) -> dict[Kind, GenerationSettings]:
        """The settings of the images, each with what it leaves open filled in."""
        for kind, image in {image.kind: image for image in images}.items():
            check_controls(image.controls, self.parts, self._task(kind), has_engine=self.engine is not None)
        return {
            kind: self._complete_one(kind, latents) for kind in dict.fromkeys(image.kind for image in images)
        }

    def _complete_one(self, kind: Kind, latents: Tensor | None) -> GenerationSettings:
        settings, task, besides = self.sized(kind), self._task(kind), given_besides(kind)
        besides |= {REFINER} if self.refiner else frozenset()
        check_applicable(settings, task, besides, self.told)
        multiple = self.autoencoder.pixels_per_latent
        full = complete(settings, self.defaults, multiple=multiple, task=task, latents=latents, given=besides)
        full = task.completed(full, settings)
        if task.in_windows:
            full = complete_windows(full, settings, self.defaults, multiple)
        if full.watermark:
            check_size(full.width, full.height)
        karras = self._given_karras(settings)
        name, with_karras = resolve_scheduler(full.scheduler, self.scheduler_config, karras)
        return full.model_copy(update={"scheduler": name, "karras": with_karras})

    def _given_karras(self, settings: GenerationSettings) -> bool | None:
        """Whether Karras spacing is asked for; None where that is left open."""
        found: bool | None = {**self.defaults.given(), **settings.given()}.get("karras")
        return found

    def _warn_replaced(self, settings: GenerationSettings, *, is_chosen: bool) -> None:
        """Say what a sampler that was chosen by name does otherwise than the model's scheduler config asks for."""
        replaced = replaced_settings(
            settings.scheduler, self.scheduler_config, karras=settings.karras, is_chosen=is_chosen
        )
        if replaced:
            warn(
                f"scheduler {settings.scheduler!r} replaces settings of the model's scheduler config: "
                f"{', '.join(replaced)}; --scheduler {OWN_SCHEDULER} keeps them"
            )

    def sized(self, kind: Kind) -> GenerationSettings:
        """The settings of images, with the size of the image that they are made from where they leave it open."""
        enlarges = kind.size is not None and self._task(kind).enlarges
        return sized(kind, self.autoencoder.pixels_per_latent if enlarges else 1)

    def _task(self, kind: Kind) -> Task:
        return task_for_images(self.parts.task, kind.inputs).for_model(self.parts)

    def _sampling_plans(
        self, settings: GenerationSettings, task: Task
    ) -> tuple[SamplingPlan, SamplingPlan | None]:
        """The steps of this model, and those of the refiner if there is one."""
        start = first_step(settings.strength, settings.num_inference_steps) if task.start.image else 0
        timesteps = parse_timesteps(settings.timesteps)
        if timesteps and settings.karras:
            raise UserError(
                "timesteps are given, and karras spaces them otherwise", "leave one of the two out"
            )

        def planned(config: Mapping[str, Any], first: int, stop: int | None = None) -> SamplingPlan:
            made = make_scheduler(settings.scheduler, config, karras=settings.karras, churn=settings.churn)
            steps = settings.num_inference_steps
            return plan_sampling(made, steps, start=first, stop=stop, timesteps=timesteps)

        if self.refiner is None:
            return planned(self.scheduler_config, start), None
        middle = steps_before(planned(self.scheduler_config, 0), settings.denoising_end)
        plan = planned(self.scheduler_config, start, max(middle, start))
        refining = planned(self.refiner.parts.scheduler_config, max(middle, start))
        check_hand_over(plan, refining, settings.denoising_end)
        return plan, refining

    def _prompt_form(self, prompt: str, settings: GenerationSettings) -> PromptForm:
        """The chunks that an image's prompt needs, and the negative prompt if it is used; and what AND joins."""
        reader = reader_for(self.text_encoder, settings)
        weights = reader.weights(prompt)
        has_branches = settings.guidance_scale > 1 and not self.denoiser.embeds_guidance
        used = [prompt, settings.prompt_2]
        if has_branches or weights != (1.0,):
            used += [settings.negative_prompt, settings.negative_prompt_2]
        if settings.to_prompt:
            used.append(settings.to_prompt)
            check_same_form(prompt, weights, settings.to_prompt, reader.weights(settings.to_prompt))
        num_chunks = min(max(map(reader.chunks_needed, used)), settings.max_prompt_chunks)
        return PromptForm(num_chunks, weights)

    def _finished(
        self,
        batch: PlannedBatch,
        latents: Tensor,
        images: list[Image.Image],
        in_tiles: bool,
        noise: Tensor | None,
    ) -> Iterator[MadeImage]:
        for row, request in enumerate(batch.images):
            own_noise = None if noise is None else noise[row]
            record = self._record(request, batch.settings, own_noise)
            tiled = {"decoded_in_tiles": in_tiles, "encoded_in_tiles": batch.encoded_in_tiles}
            record = record.model_copy(update=tiled)
            image = images[row]
            if batch.settings.watermark:
                image = embed(image, payload_of(record.to_json()))
            yield MadeImage(request, image, latents[row], record)

    def expected_records(self, images: Batch) -> list[ImageRecord]:
        """The records that `make_images` would give the images, none of which is made."""
        completed = self._complete(images)
        return [self._record(image, completed[image.kind]) for image in images]

    def _record(
        self,
        image: ImageRequest,
        settings: GenerationSettings,
        noise: Tensor | None = None,
    ) -> ImageRecord:
        given: dict[str, Any] = {}
        if noise is not None:  # no seed makes it again
            draws_more = (
                adds_noise(settings.scheduler, self.scheduler_config)
                or settings.churn > 0
                or self._task(image.kind).enlarges
            )
            step_noise = {"step_noise_seed": image.seed} if draws_more else {}
            given = {"latents_hash": latents_hash(noise), **step_noise}
        if settings.guidance == "autoguidance" and self.guide_model:
            given["guide_hash"] = self.guide_model.weights_hash
        if self.refiner:
            given |= {"record_version": INPUTS_VERSION, "refiner_hash": self.refiner.weights_hash}
        if self.embeddings:
            given |= {"record_version": INPUTS_VERSION, "embeddings": self.embeddings}
        if settings.changed():
            given["record_version"] = INPUTS_VERSION
        if image.inputs:
            inputs = {name: each.record for name, each in image.inputs.items() if each.is_given}
            given |= {"record_version": INPUTS_VERSION, "task": self._task(image.kind).name, "inputs": inputs}
        if image.controls:
            controls = used_controls(image.controls, self.parts, self._task(image.kind))
            given |= {"record_version": INPUTS_VERSION, "controls": controls}
        return ImageRecord(
            prompt=image.prompt,
            seed=image.seed if noise is None else None,
            settings=settings,
            model_id=self.model_id,
            weights_hash=self.weights_hash,
            model_parts=self.identity.image_parts if self.identity else None,
            loras=self.loras,
            compiled=is_compiled(self.denoiser),
            **given,
            **program_settings(next(self.denoiser.parameters()).dtype, self.engine),
        )


def _in_order(made: list[MadeImage]) -> Generation:
    """What `Pipeline.generate` returns: batches are not in the order of the prompts."""
    made = sorted(made, key=lambda each: each.request.number)
    return Generation(
        [each.image for each in made],
        stacked([each.latents for each in made]),
        [each.record for each in made],
    )


def _decoded(
    sampler: BatchSampler, batch: PlannedBatch, final: Tensor
) -> tuple[Tensor, list[Image.Image], bool]:
    """The latents [B, C, h, w] and the images of a batch, and whether they were decoded in tiles."""
    decoded, in_tiles = sampler.decode(final)
    rows = zip(batch.images, decoded, strict=True)
    return final.cpu(), [completed_image(request, batch, image) for request, image in rows], in_tiles


def _of_window(
    reporter: Callable[[int], Callable[[Step, Tensor], None] | None], batch: PlannedBatch, window: int
) -> Callable[[Step, Tensor], None] | None:
    """The reporter of the steps of a window, which begin when those of the windows before it are done."""
    return reporter(window * batch.steps_at_once)


def _reporter(
    on_step: OnStep | None, done: int, total: int, more_done: int
) -> Callable[[Step, Tensor], None] | None:
    """What calls `on_step` for a sampling whose step of index 0 comes when `done + more_done` of `total` are done.

    The first step of a sampling that starts from an image has a higher index, and `done` is less by as much.
    """
    if on_step is None:
        return None
    return lambda step, latents: on_step(done + more_done + step.index + 1, total, step, latents)


spell_out(Pipeline.generate, keyword_parameters(GenerationSettings))
