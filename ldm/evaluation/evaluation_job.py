"""Generate the images of an evaluation and keep their features, chunk by chunk, in one process or several.

Images are made in chunks of a fixed size. A chunk's features are written to one file, the images are not. The files are
read in order afterwards, so the numbers are the same for any number of processes, and a call that was stopped
continues with the chunks that are missing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor

from ldm.data.batches import ImageTransform
from ldm.data.duplicates import perceptual_hash
from ldm.data.sample import Sample
from ldm.data.sources.reading import SourceSettings, read_sources
from ldm.errors import UserError
from ldm.evaluation.clip_score import similarity_of_pairs
from ldm.evaluation.features import Extractor, folder_features, load_extractor, text_hash
from ldm.evaluation.memorisation import copied
from ldm.evaluation.perceptual import Lpips, check_large_enough, load_lpips, pair_distances
from ldm.io.files import open_tensors, read_tensors, write_bytes, write_tensors
from ldm.io.images import image_to_tensor, tensor_to_images
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_limits import LARGEST_SEED
from ldm.noise import permutation
from ldm.pipeline.batches import ImageRequest
from ldm.pipeline.pipeline import Pipeline, load_pipeline

CHUNK = 16
"""Images of a chunk, an even number. They are generated in one batch."""
SHOWN_CHUNKS, SHOWN_PX = 2, 128
"""How many chunks of each kind keep small images for the page, and their longer side."""
FEATURES = "features"

_JOB = "job.json"


@dataclass(frozen=True)
class EvaluationJob:
    """What is generated, what it is compared with, and how images are turned into features.

    Attributes:
        prompts: one for each image.
        seed: image i has `seed + i`, counted from 0.
        settings: of the images; those left open come from the model.
        folder: where the features and the results go.
        features: the extractor, see `ldm.evaluation.features.load_extractor`.
        clip: the folder of a CLIP model for the CLIP score, or None.
        data: where the reference images are, or None.
        sample_ids: the reference images that can be used, in order.
        reference_hash: of the contents of these images.
        lpips: also compare pairs of images by LPIPS.
        planted: also make features of copies of the reference images, see `ldm.evaluation.memorisation.copied`.
    """

    model: str
    prompts: tuple[str, ...]
    seed: int
    settings: Mapping[str, Any]
    folder: Path
    features: str
    clip: str | None = None
    data: SourceSettings | None = None
    sample_ids: tuple[str, ...] = ()
    reference_hash: str = ""
    device: str | None = None
    dtype: str | None = None
    planted: bool = False
    lpips: bool = False

    @property
    def chunks(self) -> list["Chunk"]:
        """All chunks: the reference first, because it is quick and its faults show at once."""
        num_reference = len(self.sample_ids)
        planted = [("planted", num_reference)] if self.planted else []
        sizes = [("reference", num_reference), *planted, ("generated", len(self.prompts))]
        return [
            Chunk(kind, number, start, min(start + CHUNK, total))
            for kind, total in sizes
            for number, start in enumerate(range(0, total, CHUNK))
        ]

    def path(self, chunk: "Chunk") -> Path:
        """The file of a chunk's features."""
        return self.folder / FEATURES / f"{chunk.kind}-{chunk.number:05d}.safetensors"

    def write(self, folder: Path) -> None:
        """Write it down for other processes."""
        write_bytes(folder / _JOB, TypeAdapter(EvaluationJob).dump_json(self))


def read_job(folder: Path) -> EvaluationJob:
    """The job that `EvaluationJob.write` put into a folder."""
    return TypeAdapter(EvaluationJob).validate_json((folder / _JOB).read_bytes())


@dataclass(frozen=True)
class Chunk:
    """Images `start` to `end`, of kind "generated", "reference" or "planted"."""

    kind: str
    number: int
    start: int
    end: int


def prompts_in_order(captions: Sequence[str], num_images: int) -> tuple[str, ...]:
    """One prompt for each image: the captions in a fixed random order, again from the first where they run out."""
    order = permutation(len(captions), "evaluation prompts")
    return tuple(captions[order[i % len(order)]] for i in range(num_images))


def check_seeds(seed: int, num_images: int) -> None:
    """Raise UserError if the last image's seed is too large."""
    if seed + num_images - 1 > LARGEST_SEED:
        raise UserError(
            f"seed is {seed} with {num_images} images",
            f"the last image's seed must be at most {LARGEST_SEED}",
        )


Judge = Callable[[Sequence[str], Sequence[Image.Image]], list[bool]]
"""Whether each image shows what its prompt says."""


class Measurer:
    """A model with its extractors, which turns chunks into features.

    Args:
        pipeline: the model, if it is loaded already.
        judge: also keep whether it agrees with each generated image.

    Raises:
        UserError: the model or an extractor cannot be loaded, or a setting does not fit the model.
    """

    def __init__(
        self, job: EvaluationJob, pipeline: Pipeline | None = None, judge: Judge | None = None
    ) -> None:
        self.job, self.judge = job, judge
        self.pipeline = pipeline or load_pipeline(job.model, device=job.device, dtype=job.dtype)
        self.extractor: Extractor = load_extractor(
            job.features, self.pipeline.autoencoder, self.pipeline.device
        )
        self.clip: Extractor | None = None
        if job.clip is not None:
            self.clip = folder_features(Path(job.clip).expanduser(), self.pipeline.device)
            if self.clip.clip is None:
                raise UserError(f"--clip {job.clip} has no text encoder", "name the folder of a CLIP model")
        self.settings = GenerationSettings(**job.settings)
        self.lpips: Lpips | None = None
        if job.lpips:
            check_large_enough(*self.size)
            self.lpips = load_lpips(self.pipeline.device)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        full = self.settings.over(self.pipeline.defaults)
        multiple = self.pipeline.autoencoder.pixels_per_latent
        return full.height // multiple * multiple, full.width // multiple * multiple

    @cached_property
    def plan(self) -> dict[str, Any]:
        """All that a chunk's features depend on, as JSON."""
        identity = self.pipeline.identity
        return {
            "model": self.pipeline.model_id,
            "weights_hash": self.pipeline.weights_hash,
            "model_parts": identity.image_parts if identity else None,
            "settings": self.settings.over(self.pipeline.defaults).without("seed", "num_images").given(),
            "dtype": self.job.dtype or "float32",
            "device": self.pipeline.device.type,
            "size": list(self.size),
            "seed": self.job.seed,
            "prompts": text_hash(*self.job.prompts),
            "num_images": len(self.job.prompts),
            "reference": self.job.reference_hash,
            "num_reference": len(self.job.sample_ids),
            "features": self.extractor.to_dict(),
            "clip": self.clip.to_dict() if self.clip else None,
            **({"lpips": self.lpips.to_dict()} if self.lpips else {}),
        }

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """The reference images by id."""
        assert self.job.data is not None
        reading = read_sources([self.job.data], missing="empty", tolerant=True)
        return {sample.sample_id: sample for sample in reading.samples}

    def keep(self, chunk: Chunk) -> None:
        """Write a chunk's tensors, unless they exist; errors as `keep`."""
        keep(self.job.path(chunk), self.plan, partial(self.chunk, chunk), self.pipeline.device)

    def chunk(self, chunk: Chunk) -> dict[str, Tensor]:
        """The tensors to keep of a chunk."""
        if chunk.kind == "generated":
            prompts = self.job.prompts[chunk.start : chunk.end]
            images = self._generate(prompts, chunk.start)
            found = self._of_images(images, chunk)
            if self.clip is not None and self.clip.clip is not None:
                found["clip_images"] = self.clip(_stacked(images))
                found["clip_texts"] = self.clip.clip.of_texts(prompts).float().cpu()
            if self.judge is not None:
                found["judged"] = torch.tensor(self.judge(prompts, images), dtype=torch.float64)
            return found
        transform = ImageTransform(*self.size)
        ids = self.job.sample_ids[chunk.start : chunk.end]
        images = tensor_to_images(torch.stack([transform(self.samples[sample_id]) for sample_id in ids]))
        if chunk.kind == "planted":
            images = [copied(image, chunk.start + number) for number, image in enumerate(images)]
        return self._of_images(images, chunk)

    def _generate(self, prompts: Sequence[str], start: int) -> list[Image.Image]:
        requests = [
            ImageRequest(number, prompt, self.job.seed + start + number, self.settings)
            for number, prompt in enumerate(prompts)
        ]
        made = sorted(
            self.pipeline.make_images([requests], batch_size=CHUNK), key=lambda each: each.request.number
        )
        return [each.image for each in made]

    def _of_images(self, images: Sequence[Image.Image], chunk: Chunk) -> dict[str, Tensor]:
        pixel_values = _stacked(images)
        hashes = np.array([perceptual_hash(image) for image in images], np.uint64)
        found = {
            "features": self.extractor(pixel_values),
            "hashes": torch.from_numpy(hashes.view(np.int64)),
            "pair_ssim": similarity_of_pairs(pixel_values),
        }
        if self.lpips is not None:
            found["pair_lpips"] = pair_distances(self.lpips, pixel_values)
        if chunk.number < SHOWN_CHUNKS or (self.job.planted and chunk.kind != "planted"):
            found["thumbnails"] = torch.stack([_thumbnail(image) for image in images])
        return found


def keep(
    path: Path, plan: Mapping[str, Any], make: Callable[[], dict[str, Tensor]], device: torch.device
) -> None:
    """Write the tensors that `make` returns, unless the file exists.

    Args:
        plan: what they depend on.

    Raises:
        UserError: the file belongs to another evaluation.
    """
    text = json.dumps(plan, sort_keys=True, default=str)
    plan_hash = hashlib.sha256(text.encode()).hexdigest()
    if not _is_finished(path, plan_hash):
        with torch.no_grad(), one_thread(device):
            write_tensors(path, make(), {"plan_hash": plan_hash, "plan": text})


def _stacked(images: Sequence[Image.Image]) -> Tensor:
    return torch.stack([image_to_tensor(image) for image in images])


def _thumbnail(image: Image.Image) -> Tensor:
    """[h, w, 3], uint8."""
    small = image.copy()
    small.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small))


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, use one thread inside the block: the last digits of a sum depend on how many there are."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_rank(
    job: EvaluationJob,
    rank: int = 0,
    num_processes: int = 1,
    *,
    say: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the features of a process's share: every `num_processes`-th chunk. Those that exist are kept.

    Args:
        on_progress: called with (images done, images in all) of this process.

    Raises:
        UserError: as `Measurer`; or the folder holds features of another evaluation.
    """
    say("loading the model")
    measurer = Measurer(job)
    mine = job.chunks[rank::num_processes]
    done, total = 0, sum(chunk.end - chunk.start for chunk in mine)
    on_progress(done, total)
    say("making images and features")
    for chunk in mine:
        measurer.keep(chunk)
        done += chunk.end - chunk.start
        on_progress(done, total)


def _is_finished(path: Path, plan_hash: str) -> bool:
    """Whether a chunk exists.

    Raises:
        UserError: it belongs to another evaluation.
    """
    if not path.exists():
        return False
    if _metadata(path).get("plan_hash") != plan_hash:
        raise UserError(
            f"{path.parent.parent} holds an evaluation of another model, data set or settings",
            "give another --output, or remove that folder",
        )
    return True


def _metadata(path: Path) -> dict[str, str]:
    with open_tensors(path) as file:
        return dict(file.metadata() or {})


@dataclass(frozen=True)
class Features:
    """All that was kept of the images, in order; see `Measurer.chunk`.

    Attributes:
        plan: what they depend on.
        generated, reference, planted: tensors by name.
    """

    plan: dict[str, Any]
    generated: dict[str, Tensor]
    reference: dict[str, Tensor]
    planted: dict[str, Tensor] = field(default_factory=dict)


def read_features(job: EvaluationJob) -> Features:
    """Read all chunks in order, which `run_rank` has written."""
    found: dict[str, list[dict[str, Tensor]]] = {"generated": [], "reference": [], "planted": []}
    for chunk in job.chunks:
        found[chunk.kind].append(read_tensors(job.path(chunk)))
    plan = json.loads(_metadata(job.path(job.chunks[-1]))["plan"])
    return Features(plan, *(_joined(parts) for parts in found.values()))


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}
