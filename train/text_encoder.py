"""Program: a CLIP, an image tower and a text tower trained to find each other (Radford et al. 2021).

`python -m train.text_encoder CONFIG key=value ...` or `ldm train CONFIG`. Rerun the same command to resume.
The run's `text_encoder/` is a transformers CLIPTextModel, `tokenizer/` a CLIPTokenizer whose vocabulary was
learned from the training captions.
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
from ldm.evaluation.retrieval import recall_at
from ldm.io.files import new_folder, write_json
from ldm.io.images import image_grid, tensor_to_images
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
from .loop.steps import Batch
from .run.program import run_program
from .run.run import Run
from .run.state import TrainState
from .settings.shared import TrainSettings

MAX_SCALE = 100.0
"""What the learned scale of the similarities is held under, as CLIP's was."""
NUM_CANDIDATES = 1000
"""The most images that recall is measured on; it falls as the candidates grow in number."""


class TextEncoderSettings(TrainSettings):
    """Settings of the program `text_encoder`."""

    program: Literal["text_encoder"]
    num_merges: int = Field(default=1000, ge=0, le=MAX_MERGES, description="vocabulary size less 514")
    model: ClipShape = ClipShape()


class ContrastiveLoss(nn.Module):
    """The two towers and their loss as one module: a batch in, one loss a sample out.

    Args:
        clip: an open_clip model.
        tokenizer: a CLIPTokenizer.
        num_rows: the most samples of a batch that one process gets.
    """

    def __init__(self, clip: nn.Module, tokenizer: Any, num_rows: int) -> None:
        super().__init__()
        self.clip: Any = clip
        self.tokenizer, self.num_rows = tokenizer, num_rows

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss` and `accuracy`, each [b]; see `contrastive_losses`."""
        images = self.encode_images(batch["pixel_values"])
        ids = token_ids(self.tokenizer, batch["caption"]).to(images.device)
        texts = self.clip.encode_text(ids, normalize=True).float()
        scale = self.clip.logit_scale.clamp(max=math.log(MAX_SCALE)).exp()
        return contrastive_losses(Pairs(images, texts, ids, batch["weight"]), scale, self.num_rows)

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


def measure(module: ContrastiveLoss, placed: Sequence[BucketedSample]) -> dict[str, float]:
    """Recall at 1 and 5 among at most `NUM_CANDIDATES` of the samples, by their first captions."""
    chosen = [placed[i] for i in permutation(len(placed), "recall")[:NUM_CANDIDATES]]
    similarity = module.similarity(chosen)
    numbers: dict[str, float] = {"num_images": len(chosen)}
    for num_best in (1, 5):
        recalls = recall_at(similarity, [one.sample.text for one in chosen], num_best)
        numbers |= {f"{direction}_recall_at_{num_best}": value for direction, value in recalls.items()}
    return numbers


def write_grid(module: ContrastiveLoss, placed: Sequence[BucketedSample], path: Path) -> None:
    """A picture of images, each above the caption among theirs that is nearest to it."""
    shown = placed[:16]
    nearest = module.similarity(shown).argmax(dim=1).tolist()
    images = tensor_to_images(torch.stack([one.pixels() for one in shown]))
    image_grid(images, num_columns=8, captions=[shown[i].sample.text for i in nearest]).save(path)


def rows_per_process(settings: TextEncoderSettings, num_processes: int) -> int:
    """The most samples of a batch that one process gets.

    Raises:
        UserError: they do not go through the network at once. The samples of a batch are each other's wrong
            answers: in pieces they would be fewer, and the loss another one.
    """
    num_rows = math.ceil(settings.global_batch_size / num_processes)
    if settings.max_micro_batch < num_rows:
        raise UserError(
            f"max_micro_batch = {settings.max_micro_batch} splits the {num_rows} samples that are compared",
            f"set max_micro_batch={num_rows} or a smaller global_batch_size",
        )
    return num_rows


def warn_of_long_captions(tokenizer: Any, captions: Sequence[str]) -> None:
    """Say on stderr how many captions do not fit the context."""
    limit = tokenizer.model_max_length
    cut = [text for text in captions if len(tokenizer(text, verbose=False)["input_ids"]) > limit]
    if cut:
        what = f"{len(cut)} captions are cut to model.context_length = {limit} tokens"
        print(f"warning: {what}, for instance {cut[0]!r}", file=sys.stderr)


def train(settings: TextEncoderSettings) -> None:
    """Train, then write `text_encoder/`, `tokenizer/` and `report.json` into the run directory."""
    if settings.data.buckets:
        raise UserError(
            "data.buckets = true for the text encoder", "its image tower reads one size: leave it out"
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
    module = ContrastiveLoss(clip, tokenizer, rows_per_process(settings, run.accelerator.num_processes))
    dataset = ImageSamples(data.train, seed=settings.seed, flip=settings.data.flip)

    def preview(state: TrainState, path: Path) -> None:
        with state.average.applied():
            write_grid(module, data.held_out or data.train, path)

    state = run.train(
        module,
        dataset,
        bucket_of=[one.size for one in data.train],
        preview=preview,
        opened=lambda: write_data_report(run.run_dir, data),
        may_split=False,
    )
    if run.main:
        with new_folder(run.run_dir / "tokenizer", replace=True) as folder:
            write_tokenizer(folder, merges, settings.model.context_length)
        with state.average.applied():
            _write_result(run, module, data)


def _write_result(run: Run, module: ContrastiveLoss, data: TrainingData) -> None:
    with new_folder(run.run_dir / "text_encoder", replace=True) as folder:
        to_transformers(module.clip).save_pretrained(folder)
    report = {"train": measure(module, data.train)}
    if data.held_out:
        report["held_out"] = measure(module, data.held_out)
    write_json(run.run_dir / "report.json", {"vocab_size": len(module.tokenizer), **report})
    for split, numbers in report.items():
        recalls = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items() if name != "num_images")
        print(f"{split}: {recalls} among {numbers['num_images']} images")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(TextEncoderSettings, train, argv)


if __name__ == "__main__":
    sys.exit(main())
