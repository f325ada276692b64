"""The file that `ldm init` writes: the rule for the amount of training, and a comment on each line."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm.cli.autoconfig import HOLDOUT_FROM, BaseFacts, DataFacts

ADAPTERS = ("lora", "embedding")
LARGE_TEXT_WIDTH = 512
"""Models with wider prompt embeddings are of Stable Diffusion's size; smaller ones take larger learning rates."""
MAX_STEPS, NUM_PREVIEWS, NUM_VALIDATIONS = 20_000, 5, 20
COLUMN = 36
Line = tuple[int, str, Any, str]
"""Depth, key, value (None starts a group), comment."""


@dataclass(frozen=True)
class Amount:
    """The amount of training."""

    num_passes: int
    global_batch_size: int
    num_steps: int


def choose_amount(num_images: int, trainable: str, *, large: bool = True) -> Amount:
    """The number of passes over the images, the batch size and the number of steps.

    A LoRA of a small model learns with a high rate and gets 30 passes, because it soon memorises a small set (see
    docs/benchmarks/init-defaults.md); one of a large model gets 100. Whole networks get 20. There are at least 500
    steps, or 200 for a LoRA of a small model, and at most 20,000.

    The batch is an eighth of the images, rounded down to a power of two from 4 to 16 (whole networks: 32), and not
    larger than the data set.

    Args:
        large: whether the model is of Stable Diffusion's size.
    """
    quick = trainable == "lora" and not large
    num_passes = 30 if quick else 100 if trainable in ADAPTERS else 20
    most = 16 if trainable in ADAPTERS else 32
    batch = min(most, max(4, 2 ** max(0, (num_images // 8).bit_length() - 1)))
    batch = min(batch, 2 ** (num_images.bit_length() - 1))
    wanted = 50 * round(num_images * num_passes / batch / 50)
    return Amount(num_passes, batch, min(MAX_STEPS, max(200 if quick else 500, wanted)))


def num_prompts(amount: Amount) -> int:
    """How many prompts are previewed: as many as cost a tenth of the run, from 1 to 4.

    In forward passes: an image has 20 guided steps of two each, and the backward pass of a training step costs as much
    as two.
    """
    of_one = NUM_PREVIEWS * 20 * 2
    return max(1, min(4, 3 * amount.num_steps * amount.global_batch_size // (10 * of_one)))


def config_text(
    model: BaseFacts, data: DataFacts, trainable: str, dest: Path, name: str, run_dir: str
) -> str:
    """The text of the file."""
    large = model.text_width > LARGE_TEXT_WIDTH
    amount = choose_amount(data.num_used - data.num_held_out, trainable, large=large)
    lines = [
        *_run_lines(model, trainable, name, run_dir),
        *_amount_lines(model, data, trainable, amount),
        *_data_lines(model, data),
        *_caption_lines(model, data, trainable, name),
        *_training_lines(model, data, trainable, amount),
    ]
    prompts = list(dict.fromkeys(_prefix(trainable, name) + text for text in data.captions))
    prompts = prompts[: num_prompts(amount)]
    last = [f"  - {_plain(prompt)}" for prompt in prompts]
    body = [*_header(model, data, dest), *map(_line, lines), *last]
    return "\n".join(body) + "\n"


def _header(model: BaseFacts, data: DataFacts, dest: Path) -> Iterator[str]:
    yield f"# {_one_line(data.settings.path)} trained into {model.name}; written by `ldm init` for you to edit."
    yield f"# command: ldm train {shlex.quote(str(dest))}    (add --plan first to see what the run would do and cost)"
    yield (
        f"# model: {model.width} x {model.height} pixels, {model.prediction_type}, "
        f"{model.context_length} tokens a caption; data: {data.num_found} images found, {data.num_used} usable"
    )
    yield "# Other settings have their defaults: `ldm schema denoiser` lists them all."


def _run_lines(model: BaseFacts, trainable: str, name: str, run_dir: str) -> Iterator[Line]:
    yield 0, "program", "denoiser", ""
    yield 0, "run_dir", run_dir, "checkpoints, previews and the result; the same command resumes from there"
    yield 0, "base", model.name, "the model to start from: emoji, a folder, a run or a Hub id"
    yield (
        0,
        "trainable",
        trainable,
        "lora: a small change beside the model; unet: the network, for many images",
    )
    large = model.text_width > LARGE_TEXT_WIDTH
    if trainable == "lora":
        yield 0, "lora", None, ""
        yield 1, "rank", 16, "size of the change; higher learns more, but memorises small sets"
        yield 1, "alpha", 16.0, "the change is scaled by alpha / rank"
        layers = "attention" if large else "all"
        yield 1, "target_modules", layers, "which layers change: attention, attention+feedforward or all"
        yield 1, "text_encoder", not large, "true: the meaning of words is trained too"
    if trainable == "embedding":
        yield 0, "embedding", None, ""
        yield 1, "token", f"<{name}>", "the new word, for use in prompts"
        yield 1, "initial_word", "picture", "a known word with a similar meaning: choose a better one"


def _amount_lines(model: BaseFacts, data: DataFacts, trainable: str, amount: Amount) -> Iterator[Line]:
    num_images = data.num_used - data.num_held_out
    rule = f"{num_images} images x {amount.num_passes} passes / {amount.global_batch_size}"
    yield 0, "num_steps", amount.num_steps, f"{rule}, within limits; more steps memorise the images"
    yield 0, "global_batch_size", amount.global_batch_size, "images per step: an eighth of all, 4 to 32"
    big = data.settings.height * data.settings.width >= 256 * 256
    micro = min(4, amount.global_batch_size) if big else amount.global_batch_size
    yield (
        0,
        "max_micro_batch",
        micro,
        "images at once: a lower number needs less memory and gives the same result",
    )
    yield 0, "save_every", amount.num_steps // NUM_PREVIEWS, "steps between checkpoints"
    yield 0, "preview_every", amount.num_steps // NUM_PREVIEWS, "steps between preview images"
    yield 0, "mixed_precision", "no", "bf16 on a recent CUDA device: half the memory, faster"
    whole = big and trainable not in ADAPTERS
    yield 0, "gradient_checkpointing", whole, "true: less memory, about a third slower"


def _data_lines(model: BaseFacts, data: DataFacts) -> Iterator[Line]:
    chosen = data.settings
    yield 0, "data", None, ""
    yield 1, "path", chosen.path, "captioned images; nothing is written there"
    if chosen.kind != "auto":
        yield 1, "kind", chosen.kind, "what the path contains"
    if chosen.caption_column != "text":
        yield 1, "caption_column", chosen.caption_column, "the column with the captions"
    if chosen.image_column != "image":
        yield 1, "image_column", chosen.image_column, "the column with the images or their names"
    if "max_bad_fraction" in chosen.model_fields_set:
        yield 1, "max_bad_fraction", chosen.max_bad_fraction, "share of images that may be unusable"
    own = (chosen.height, chosen.width) == (model.height, model.width)
    size = "the model's native size" if own else "below the model's native size, as the images are small"
    yield 1, "height", chosen.height, f"pixels: {size}; multiples of {model.multiple}"
    yield 1, "width", chosen.width, "pixels"
    shapes = f"{data.num_other_shapes} images have another shape"
    yield (
        1,
        "buckets",
        chosen.buckets,
        f"true: keep aspect ratios, with about height x width pixels; {shapes}",
    )
    yield 1, "upscale", chosen.upscale, "true: enlarge images that are too small; false: refuse them"
    yield 1, "flip", False, "true: mirror at random, if left and right do not matter; doubles the cache"
    held_out = f"{data.num_held_out} images held out for validation"
    if not data.num_held_out:
        held_out = f"none of fewer than {HOLDOUT_FROM} images is held out: the previews show when to stop"
    yield 1, "holdout_fraction", chosen.holdout_fraction, held_out


def _caption_lines(model: BaseFacts, data: DataFacts, trainable: str, name: str) -> Iterator[Line]:
    tagged = sum(text.count(",") >= 4 for text in data.captions)
    yield 0, "captions", None, ""
    yield 1, "dropout", 0.1, "share of samples trained without caption, which guidance needs"
    if data.missing != "error":
        yield 1, "missing", data.missing, "what is done with images that have no caption"
    shuffled = f"true: shuffle tags each time; {tagged} captions look like tags"
    yield 1, "shuffle_tags", False, shuffled
    yield (
        1,
        "prefix",
        _prefix(trainable, name).strip(),
        "text before every caption, such as a word for the style",
    )
    chunks = max(1, min(model.max_chunks, max(data.chunks)))
    cut = sum(needed > chunks for needed in data.chunks)
    tokens = f"captions of {chunks} x {model.context_length - 2} tokens; {cut} are longer and are cut"
    yield 0, "prompt_chunks", chunks, tokens


def _training_lines(model: BaseFacts, data: DataFacts, trainable: str, amount: Amount) -> Iterator[Line]:
    large = model.text_width > LARGE_TEXT_WIDTH
    rate = {"lora": (5e-4, 1e-4), "embedding": (5e-3, 5e-3)}.get(trainable, (1e-4, 1e-5))[large]
    yield 0, "objective", None, ""
    yield 1, "weighting", "min_snr", "none: the plain loss; min_snr learns faster"
    yield 0, "optim", None, ""
    yield 1, "learning_rate", rate, "halve it if images fall apart, double it if nothing changes"
    yield 1, "num_warmup_steps", min(100, amount.num_steps // 20), "steps over which it rises"
    decay = 0.98 if amount.num_steps <= 1000 else 0.99 if amount.num_steps <= 4000 else 0.999
    yield 1, "ema_decay", decay, "decay of the averaged weights, which are the result"
    if data.num_held_out:
        yield 0, "validation", None, ""
        every = amount.num_steps // NUM_VALIDATIONS
        yield 1, "every", every, "steps between validations on the held-out images"
        yield 1, "keep_best", True, "true: the result has the weights of the best validation"
        patience = "stop after so many validations without a better one; 0: train to the end"
        yield 1, "patience", NUM_VALIDATIONS // 4, patience
    yield 0, "preview", None, ""
    yield 1, "prompts", None, "generated every preview_every steps; replace them with your own"


def _prefix(trainable: str, name: str) -> str:
    """The text that puts a new token into captions."""
    return f"<{name}> " if trainable == "embedding" else ""


def _line(line: Line) -> str:
    depth, key, value, comment = line
    text = f"{'  ' * depth}{key}:" + ("" if value is None else f" {_plain(value)}")
    return f"{text:{COLUMN}}# {comment}" if comment else text


def _plain(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 0.01 else repr(value)  # YAML does not read 1e-04 as a number
    if isinstance(value, str):
        text: str = yaml.safe_dump([value], allow_unicode=True, width=10**9, default_flow_style=True)
        return text.strip()[1:-1]
    return str(yaml.safe_dump(value)).split("\n")[0]


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())
