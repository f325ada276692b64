"""Program: a CLIP model, whose image and text encoders learn to match images and captions (Radford et al. 2021).

`python -m train.text_encoder CONFIG key=value ...` or `ldm train CONFIG`. Rerun the same command to resume.
The run's `text_encoder/` is a transformers CLIPTextModel; its `tokenizer/` is a CLIPTokenizer with a vocabulary learned
from the training captions.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm.data.batches import ImageSamples, pixel_batches
from ldm.data.cache.cache_folder import cache_root
from ldm.data.prepare import BucketedSample
from ldm.errors import UserError
from ldm.evaluation.metrics import recall_at
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid, tensor_to_images
from ldm.io.messages import say_warning
from ldm.io.png import write_chunks
from ldm.models.clip_conversion import ClipShape, make_open_clip, to_transformers
from ldm.models.clip_vocabulary import (
    MAX_MERGES,
    learn_merges,
    make_tokenizer,
    token_ids,
    write_tokenizer,
)
from ldm.noise import permutation

from .data.read import TrainingData, read_data, write_data_report
from .loop.contrastive import Pairs, contrastive_losses
from .loop.processes import Processes
from .loop.state import TrainState
from .loop.steps import Batch
from .run.program import run_program
from .run.run import Run
from .settings.shared import TrainSettings

MAX_SCALE = 100.0
"""Upper limit of the learned scale of the similarities, as in CLIP."""
NUM_CANDIDATES = 1000
"""The most images that recall is measured on; it falls with the number of candidates."""


class TextEncoderSettings(TrainSettings):
    """Settings of the program `text_encoder`."""

    program: Literal["text_encoder"]
    num_merges: int = Field(default=1000, ge=0, le=MAX_MERGES, description="vocabulary size minus 514")
    model: ClipShape = ClipShape()


class ContrastiveLoss(nn.Module):
    """The two encoders and their loss as one module: a batch in, one loss per sample out.

    Args:
        clip: an open_clip model.
        tokenizer: a CLIPTokenizer.
        num_rows: the most samples of a batch that one process gets.
    """

    def __init__(self, clip: nn.Module, tokenizer: Any, num_rows: int, processes: Processes) -> None:
        super().__init__()
        self.clip: Any = clip
        self.tokenizer, self.num_rows, self.processes = tokenizer, num_rows, processes

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss` and `accuracy`, each [b]; see `contrastive_losses`."""
        images = self.encode_images(batch["pixel_values"])
        ids = token_ids(self.tokenizer, batch["caption"]).to(images.device)
        texts = self.clip.encode_text(ids, normalize=True).float()
        scale = self.clip.logit_scale.clamp(max=math.log(MAX_SCALE)).exp()
        pairs = Pairs(images, texts, ids, batch["weight"])
        return contrastive_losses(pairs, scale, self.num_rows, self.processes)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] -> unit vectors [B, E]."""
        features: Tensor = self.clip.encode_image(pixel_values, normalize=True)
        return features.float()

    @torch.no_grad()
    def similarity(self, placed: Sequence[BucketedSample]) -> Tensor:
        """Cosine similarity [N, N] of each sample's image (row) and each sample's first caption (column)."""
        device = next(self.parameters()).device
        images = [self.encode_images(p.to(device)) for p in pixel_batches(placed)]
        texts = []
        for start in range(0, len(placed), 32):
            ids = token_ids(self.tokenizer, [one.sample.text for one in placed[start : start + 32]])
            texts.append(self.clip.encode_text(ids.to(device), normalize=True).float())
        return (torch.cat(images) @ torch.cat(texts).T).cpu()


def measure(loss: ContrastiveLoss, placed: Sequence[BucketedSample]) -> dict[str, float]:
    """Recall at 1 and 5 among at most `NUM_CANDIDATES` samples, with their first captions."""
    chosen = [placed[i] for i in permutation(len(placed), "recall")[:NUM_CANDIDATES]]
    similarity = loss.similarity(chosen)
    numbers: dict[str, float] = {"num_images": len(chosen)}
    for num_best in (1, 5):
        recalls = recall_at(similarity, [one.sample.text for one in chosen], num_best)
        numbers |= {f"{direction}_recall_at_{num_best}": value for direction, value in recalls.items()}
    return numbers


def write_grid(loss: ContrastiveLoss, placed: Sequence[BucketedSample], path: Path) -> None:
    """Write a grid of images, each above the caption among theirs that is most similar to it."""
    shown = placed[:16]
    nearest = loss.similarity(shown).argmax(dim=1).tolist()
    images = tensor_to_images(torch.stack([one.pixels() for one in shown]))
    grid = image_grid(images, num_columns=8, captions=[shown[i].sample.text for i in nearest])
    write_chunks(path, grid, {}, overwrite=True)


def rows_per_process(settings: TextEncoderSettings, num_processes: int) -> int:
    """The most samples of a batch that one process gets.

    Raises:
        UserError: they do not go through the network at once. Each sample is compared with all others of its batch, so
            smaller pieces would change the loss.
    """
    num_rows = math.ceil(settings.global_batch_size / num_processes)
    if settings.max_micro_batch < num_rows:
        raise UserError(
            f"max_micro_batch = {settings.max_micro_batch} splits the {num_rows} samples that are compared",
            f"set max_micro_batch={num_rows} or a smaller global_batch_size",
        )
    return num_rows


def warn_of_long_captions(tokenizer: Any, captions: Sequence[str]) -> None:
    """Warn of captions that do not fit in the context."""
    limit = tokenizer.model_max_length
    cut = [text for text in captions if len(tokenizer(text, verbose=False)["input_ids"]) > limit]
    if cut:
        what = f"{len(cut)} captions are cut to model.context_length = {limit} tokens"
        say_warning(f"{what}, for instance {cut[0]!r}")


def train(settings: TextEncoderSettings) -> None:
    """Train, then write `text_encoder/`, `tokenizer/` and `report.json` into the run directory."""
    if settings.data.buckets:
        raise UserError(
            "data.buckets = true for the text encoder", "leave it out, because CLIP takes images of one size"
        )
    run = Run(settings)
    data = read_data(run, folder=cache_root())
    captions = [caption for one in data.train for caption in one.sample.captions]
    merges = learn_merges(captions, settings.num_merges)
    tokenizer = make_tokenizer(merges, settings.model.context_length)
    if run.main:
        warn_of_long_captions(tokenizer, captions)
    size = (settings.data.height, settings.data.width)
    clip = make_open_clip(settings.model, vocab_size=len(tokenizer), image_size_px=size)
    num_rows = rows_per_process(settings, run.processes.num_processes)
    loss = ContrastiveLoss(clip, tokenizer, num_rows, run.processes)
    dataset = ImageSamples(data.train, seed=settings.seed, flip=settings.data.flip)

    def preview(state: TrainState, path: Path) -> None:
        with state.average.applied():
            write_grid(loss, data.held_out or data.train, path)

    state = run.train(  # the training loop
        loss,
        dataset,
        bucket_of=[one.size for one in data.train],
        sample_ids=data.sample_ids,
        preview=preview,
        opened=lambda: write_data_report(run.run_dir, data),
        may_split=False,
    )
    if run.main:
        with new_folder(run.run_dir / "tokenizer", replace=True) as folder:
            write_tokenizer(folder, merges, settings.model.context_length)
        with state.average.applied():
            _write_result(run, loss, data)


def _write_result(run: Run, loss: ContrastiveLoss, data: TrainingData) -> None:
    with new_folder(run.run_dir / "text_encoder", replace=True) as folder:
        to_transformers(loss.clip).save_pretrained(folder)
    report = {"train": measure(loss, data.train)}
    if data.held_out:
        report["held_out"] = measure(loss, data.held_out)
    write_json(run.run_dir / "report.json", {"vocab_size": len(loss.tokenizer), **report})
    for split, numbers in report.items():
        recalls = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items() if name != "num_images")
        print(f"{split}: {recalls} among {numbers['num_images']} images")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(TextEncoderSettings, train, argv)


if __name__ == "__main__":
    sys.exit(main())
