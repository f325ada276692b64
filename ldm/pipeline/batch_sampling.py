"""One batch through the networks: from prompts and given images to latents, and from latents to decoded images.

Axis letters: B batch, C latent channels, H W pixels, h w latent size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.diffusion.guidance import Composition, GuidanceInputs, changing_prompts
from ldm.diffusion.paths import path_of_scheduler
from ldm.diffusion.sampling import KnownLatents, denoise
from ldm.diffusion.windows import in_windows
from ldm.errors import UserError
from ldm.models.control.controlnet import ControlOptions, with_controlnets
from ldm.models.control.ip_adapter import image_prompts_in
from ldm.models.control.networks import ControlNetwork
from ldm.models.control.t2i_adapter import adapter_residuals, sum_of
from ldm.models.engines.feature_reuse import reuse_deep_features
from ldm.models.engines.openvino_denoiser import OpenVINODenoiser
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.model import ModelParts
from ldm.models.perturbed_attention import PerturbedDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.noise import image_generators, normal_per_image
from ldm.pipeline.batches import PlannedBatch
from ldm.pipeline.control_images import scale_tree
from ldm.pipeline.decoding import decode_images, encode_images, encodes_in_tiles
from ldm.pipeline.input_images import canvas_size, latent_mask
from ldm.pipeline.interpolation import between, slerp
from ldm.pipeline.prompt_reading import PromptReader, PromptTexts, reader_for
from ldm.pipeline.settings import check_finite
from ldm.pipeline.tiles import windows_of
from ldm.pipeline.told_sizes import told_sizes
from ldm.tasks import encoder_for
from ldm.tasks.depth import latent_map
from ldm.tasks.guiding import told_guidance, without_branches
from ldm.tasks.task import with_prompt
from ldm.types import Conditioning, Denoiser, Step

ImageEmbeds = tuple[Tensor, ...]
"""Image prompts as in `Conditioning.image_embeds`."""


def latent_shape(autoencoder: KLAutoencoder, settings: GenerationSettings) -> tuple[int, int, int]:
    """C, h, w of an image of these settings."""
    multiple = autoencoder.pixels_per_latent
    height, width = canvas_size(settings.height, settings.width, multiple)
    return autoencoder.num_channels, height // multiple, width // multiple


def initial_noise(
    generators: Sequence[torch.Generator], settings: GenerationSettings, shape: Sequence[int]
) -> Tensor:
    """Standard normal noise [B, *shape]: each image's own, or on the way from it to that of `to_seed`."""
    noise = normal_per_image(generators, shape)
    if settings.to_seed < 0:
        return noise
    target = normal_per_image(image_generators([settings.to_seed]), shape)
    return slerp(noise, target, settings.frame, axes=(1, 2, 3))


@dataclass(frozen=True)
class PromptStage:
    """The embedded prompts of a batch in a part of the sampling.

    Attributes:
        conditioning: B rows.
        negative: one row.
    """

    conditioning: Conditioning
    negative: Conditioning
    composition: Composition


@dataclass(frozen=True)
class BatchSampler:
    """A model's parts at work on a batch.

    Attributes:
        engine: what is called in place of the denoiser; None for torch.
        low_memory: keep only the part in use on the device, and encode and decode one image at a time.
        weak: a weaker denoiser, for autoguidance.
        refiner: the parts of a second model, which finishes what this one has begun.
    """

    parts: ModelParts
    device: torch.device
    engine: OpenVINODenoiser | None = None
    low_memory: bool = False
    weak: Denoiser | None = None
    refiner: ModelParts | None = None

    def sample(
        self,
        batch: PlannedBatch,
        noise: Tensor | None = None,
        on_step: Callable[[Step, Tensor], None] | None = None,
    ) -> Tensor:
        """The final latents [B, C, h, w] of a batch.

        Args:
            noise: [B, C, h, w]; by default each image's own, drawn from its seed.

        Raises:
            UserError: the latents are not finite, or the denoiser cannot reuse its deep features.
        """
        settings = batch.settings
        images = self._given_images(batch)
        generators = image_generators(batch.seeds)
        if noise is None:
            noise = initial_noise(generators, settings, latent_shape(self.parts.autoencoder, settings))
        noise = noise.to(self.device, torch.float32)
        start, known = self._start(batch, images)
        if start is not None and not batch.plan.steps:
            return start
        latents: Tensor | None = None
        for model, part, given in self._in_turn(batch, images):
            stages, stage_of = model._prompt_stages(part, given)
            networks = (control.network for _, _, control in model._controls(part))
            with model._at_work(model.parts.denoiser, *networks), model._image_prompts(part):
                for step, reached in denoise(
                    model._guided(part, stages, stage_of),
                    part.plan,
                    noise,
                    stages[0].conditioning,
                    generators=generators,
                    start=start,
                    known=known,
                    latents=latents,
                ):
                    if on_step is not None:
                        on_step(step, reached)
                latents = reached
        assert latents is not None  # there was a step
        check_finite(latents, settings.scheduler, batch.steps_at_once)
        return latents

    def _in_turn(
        self, batch: PlannedBatch, images: Mapping[str, Tensor]
    ) -> "Iterator[tuple[BatchSampler, PlannedBatch, Mapping[str, Tensor]]]":
        """This model and then the second one, each with its part of the sampling and the images that it is given."""
        if self.refiner is None or batch.refining is None:
            yield self, batch, images
            return
        second = BatchSampler(self.refiner, self.device, low_memory=self.low_memory)
        with second._at_work():  # with low memory, only one of the two models is on the device
            yield self, batch, images
        with self._at_work():
            yield second, batch.refined(batch.refining), {}
        with second._at_work():
            pass

    def decode(self, latents: Tensor) -> tuple[list[Image.Image], bool]:
        """Images of latents [B, C, h, w], and whether they were decoded in tiles."""
        with self._at_work(self.parts.autoencoder):
            return decode_images(self.parts.autoencoder, latents, one_by_one=self.low_memory)

    def _given_images(self, batch: PlannedBatch) -> dict[str, Tensor]:
        """The images of a batch by the names that its task gives them: masks [B, 1, H, W], others [B, 3, H, W]."""
        size = self._given_size(batch)
        given = {}
        for name, inner in batch.task.given.items():
            rows = [image.inputs[name] for image in batch.images]
            distinct = {id(each): each for each in rows}  # several images of a batch may share one
            values = {key: each.values(*size) for key, each in distinct.items()}
            given[inner] = torch.stack([values[id(each)] for each in rows]).to(self.device)
        for column, control in enumerate(batch.controls):
            if control.kind == batch.task.own_control:
                given[control.kind] = latent_map(self._hints(batch, column), size[-1])
        return given

    def _given_size(self, batch: PlannedBatch) -> tuple[int, int, int]:
        """Height and width that the given images get, and what they are padded to multiples of."""
        multiple, settings = self.parts.autoencoder.pixels_per_latent, batch.settings
        if batch.task.enlarges:
            return -(-settings.height // multiple), -(-settings.width // multiple), 1
        return settings.height, settings.width, multiple

    def _prompt_stages(
        self, batch: PlannedBatch, images: Mapping[str, Tensor]
    ) -> tuple[list[PromptStage], list[int]]:
        """The stages of a batch's prompts, and the stage of each step; prompts that do not change have one."""
        reader = reader_for(self.parts.text_encoder, batch.settings)
        num_steps = batch.plan.start + batch.plan.num_steps  # a second model does those after them
        texts = [self._texts(reader, batch, index) for index in range(num_steps)]
        distinct = list(dict.fromkeys(texts[batch.plan.start :] or texts))
        references = self._references(batch)
        embedded = [self._embed_stage(reader, *each, batch, references) for each in distinct]
        first = self._conditioning(batch, embedded[0].conditioning, images)  # encodes the images once
        first = self._controlled_by(batch, first)
        if self.parts.denoiser.embeds_guidance:
            first = told_guidance(first, batch.settings.guidance_scale)
        others = [with_prompt(first, each.conditioning) for each in embedded[1:]]
        stages = [replace(s, conditioning=c) for s, c in zip(embedded, [first, *others], strict=True)]
        return stages, [distinct.index(each) if each in distinct else 0 for each in texts]

    def _texts(
        self, reader: PromptReader, batch: PlannedBatch, index: int
    ) -> tuple[PromptTexts, PromptTexts | None]:
        """What the prompts are at a step, and those that they are on the way to."""
        settings = batch.settings
        own = reader.at_step(batch.prompts, settings, index)
        if not settings.to_prompt:
            return own, None
        return own, reader.at_step([settings.to_prompt] * len(batch.images), settings, index)

    def _embed_stage(
        self,
        reader: PromptReader,
        texts: PromptTexts,
        target: PromptTexts | None,
        batch: PlannedBatch,
        references: tuple[ImageEmbeds, ImageEmbeds],
    ) -> PromptStage:
        num_chunks, (weight, *weights) = batch.form.num_chunks, batch.form.weights
        given, empty = references
        with self._at_work(self.parts.text_encoder):
            found = [reader.embed(each, num_chunks, texts.second) for each in texts.composed]
            negative = reader.embed([texts.negative], num_chunks, texts.negative_second)
            if target is not None:
                ends = [reader.embed(each, num_chunks, target.second) for each in target.composed]
                pairs = zip(found, ends, strict=True)
                found = [between(start, end, batch.settings.frame) for start, end in pairs]
        sizes, negative_sizes = told_sizes(batch.settings)
        found = [self.parts.with_sizes(each, [sizes]) for each in found]
        prompt, *others = (replace(each, image_embeds=given) for each in found)
        negative = replace(self.parts.with_sizes(negative, [negative_sizes]), image_embeds=empty)
        return PromptStage(prompt, negative, Composition(weight, tuple(zip(weights, others, strict=True))))

    def _conditioning(
        self, batch: PlannedBatch, prompt: Conditioning, images: Mapping[str, Tensor]
    ) -> Conditioning:
        """The denoiser's inputs besides the latents and the timesteps."""
        if not images:
            return prompt
        images = batch.task.prepared(images, batch.settings, batch.seeds)
        with self._at_work(self.parts.autoencoder):
            moments_of = partial(self._moments, in_tiles=batch.encoded_in_tiles)
            encode = encoder_for(batch.task, self.parts.autoencoder, moments_of)
            return batch.task.generation_conditioning(prompt, images, encode)

    def _start(
        self, batch: PlannedBatch, images: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, KnownLatents | None]:
        """The latents [B, C, h, w] that sampling starts from, and those that it leaves as they are."""
        named = batch.task.start
        masked_whole = named.mask is not None and batch.settings.strength == 1
        if named.image is None or (masked_whole and not named.blends):
            return None, None
        with self._at_work(self.parts.autoencoder):
            latents = self._encode(images[named.image], in_tiles=batch.encoded_in_tiles)
        start = None if masked_whole else latents
        if named.mask is None or not named.blends:
            return start, None
        mask = latent_mask(images[named.mask], self.parts.autoencoder.pixels_per_latent)
        return start, KnownLatents(latents, mask)

    def encodes_in_tiles(self, batch: PlannedBatch) -> bool:
        """Whether the images of a batch are to be encoded in tiles; a warning says so."""
        if "image" not in batch.task.given or batch.task.enlarges:
            return False
        height, width = latent_shape(self.parts.autoencoder, batch.settings)[1:]
        return encodes_in_tiles(self.parts.autoencoder, height, width, self.device)

    def _encode(self, pixel_values: Tensor, *, in_tiles: bool) -> Tensor:
        """The means of the latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1]."""
        moments = self._moments(pixel_values, in_tiles=in_tiles)
        return self.parts.autoencoder.scale(moments.chunk(2, dim=1)[0])

    def _moments(self, pixel_values: Tensor, *, in_tiles: bool) -> Tensor:
        """The moments [B, 2C, h, w] of images; one at a time with low memory."""
        return encode_images(
            self.parts.autoencoder, pixel_values, one_by_one=self.low_memory, in_tiles=in_tiles
        )

    def _guided(
        self, batch: PlannedBatch, stages: Sequence[PromptStage], stage_of: Sequence[int]
    ) -> Denoiser:
        """The denoiser that one sampling calls, made anew for each: it may keep deep features between steps.

        Raises:
            UserError: the denoiser cannot reuse its deep features.
        """
        every = batch.settings.deep_features_every
        reusing = partial(reuse_deep_features, self.engine or self.parts.denoiser, every)
        denoiser = self._prepared(reusing, batch)
        inputs = self._guidance_inputs(batch)
        settings = batch.settings
        if self.parts.denoiser.embeds_guidance:
            settings = without_branches(settings)
        guided = [
            batch.task.guided(
                denoiser,
                stage.conditioning,
                stage.negative,
                settings,
                replace(inputs, composition=stage.composition),
            )
            for stage in stages
        ]
        if len(stages) == 1:
            return guided[0]
        conditionings = [stage.conditioning for stage in stages]
        return changing_prompts(list(zip(guided, conditionings, strict=True)), stage_of)

    def _prepared(self, make: Callable[[], Denoiser], batch: PlannedBatch) -> Denoiser:
        """The denoiser of a sampling: it works on a large image in windows, controlled by the batch's images.

        Args:
            make: a denoiser for one window.

        Raises:
            UserError: a controlled image needs several windows.
        """
        _, height, width = latent_shape(self.parts.autoencoder, batch.settings)
        multiple = self.parts.autoencoder.pixels_per_latent
        windows = windows_of(height, width, batch.settings, multiple)
        if len(windows) == 1:
            return self._controlled(make(), batch)
        if self._controls(batch):
            what = f"an image of {len(windows)} windows cannot be controlled"
            raise UserError(what, "set tile_size to the size of the image, or make a smaller one")
        return in_windows([make() for _ in windows], windows)

    def _controls(self, batch: PlannedBatch) -> list[tuple[int, float, ControlNetwork]]:
        """The networks that read the control images of a batch, each with the image's place and scale."""
        return [
            (column, each.weight, self.parts.controls[each.kind])
            for column, each in enumerate(batch.controls)
            if each.kind != batch.task.own_control
        ]

    def _controlled_by(self, batch: PlannedBatch, conditioning: Conditioning) -> Conditioning:
        """The conditioning with the hints of ControlNets, and with the residuals of T2I-Adapters, computed once.

        Raises:
            UserError: a control image has another shape than the image to make.
        """
        hints, adapters = [], []
        for column, scale, network in self._controls(batch):
            hint = self._hints(batch, column)
            if network.is_adapter:
                with self._at_work(network.network):
                    adapters.append(adapter_residuals(network.network, hint, scale))
            else:
                hints.append(hint)
        summed = tuple(sum_of(each) for each in zip(*adapters, strict=True))
        return replace(conditioning, hints=tuple(hints), adapter_residuals=summed)

    def _references(self, batch: PlannedBatch) -> tuple[ImageEmbeds, ImageEmbeds]:
        """What the IP-Adapters read of the batch's reference images, and of none, for the negative prompt."""
        prompts = self.parts.image_prompts
        if not batch.references or prompts is None:
            return (), ()
        found = []
        with self._at_work(prompts.encoder):
            for number, adapter in enumerate(prompts.adapters_for(len(batch.references))):
                column = len(batch.controls) + number
                images = [image.controls[column].image.open() for image in batch.images]
                found.append(prompts.embed(adapter, images))
        given, empty = zip(*found, strict=True)
        return given, empty

    def _image_prompts(self, batch: PlannedBatch) -> AbstractContextManager[None]:
        """The UNet with attention to the batch's reference images."""
        prompts, references = self.parts.image_prompts, batch.references
        if not references or prompts is None:
            return nullcontext()
        adapters = prompts.adapters_for(len(references))
        return image_prompts_in(
            self.parts.denoiser.unet, prompts, adapters, list(map(scale_tree, references))
        )

    def _hints(self, batch: PlannedBatch, column: int) -> Tensor:
        """One control image of each row, [B, 3, H, W] in [0, 1]."""
        settings, multiple = batch.settings, self.parts.autoencoder.pixels_per_latent
        rows = [image.controls[column] for image in batch.images]
        distinct = {id(each.image): each for each in rows}  # several images of a batch may share one
        size = (settings.height, settings.width, multiple, settings.canny_thresholds)
        values = {key: each.hint(*size) for key, each in distinct.items()}
        return torch.stack([values[id(each.image)] for each in rows]).to(self.device)

    def _controlled(self, denoiser: Denoiser, batch: PlannedBatch) -> Denoiser:
        """The denoiser with the residuals of the batch's ControlNets."""
        if not batch.controls:
            return denoiser
        nets = [(each.network, scale) for _, scale, each in self._controls(batch) if not each.is_adapter]
        plan, settings = batch.plan, batch.settings
        num_steps, num_rows = plan.start + batch.steps_at_once, len(batch.images) * len(batch.form.weights)
        options = ControlOptions(settings.control_interval, num_steps, settings.guess_mode, num_rows)
        return with_controlnets(denoiser, nets, options)

    def _guidance_inputs(self, batch: PlannedBatch) -> GuidanceInputs:
        """What guidance needs besides the prompts."""
        settings = batch.settings
        perturbs = settings.guidance == "pag" and settings.pag_scale > 0
        perturbed = (
            self._prepared(partial(PerturbedDenoiser, self.parts.denoiser), batch) if perturbs else None
        )
        weak = None if self.weak is None else self._controlled(self.weak, batch)
        return GuidanceInputs(path=path_of_scheduler(batch.plan.prototype), weak=weak, perturbed=perturbed)

    @contextmanager
    def _at_work(self, *modules: nn.Module) -> Iterator[None]:
        """With low memory, a part is on the device only while it is in use."""
        if self.low_memory and self.engine is None:  # an engine runs on the CPU, where nothing has to move
            for other in self.parts.modules().values():
                other.to(self.device if any(other is module for module in modules) else "cpu")
        yield
