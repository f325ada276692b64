"""Training on shards that are read during the run: what it needs, and its order from any step on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from accelerate.utils import gather_object

from ldm.data.batches import LatentSamples
from ldm.data.report.stream_report import StreamReport
from ldm.data.stream_shards import list_shards, open_shard
from ldm.data.streaming import ShardStream, StreamedSamples, StreamOrder
from ldm.errors import UserError
from ldm.models.clip import ClipTextEncoder
from ldm.tasks import find_task

from ..run.run import Run
from ..settings.denoiser import DenoiserSettings


def check_streaming(settings: DenoiserSettings) -> None:
    """Refuse settings that need all samples before the first step.

    Raises:
        UserError: names the setting.
    """
    if settings.cache.enabled:
        raise UserError(
            "data.streaming encodes images in each step, but cache.enabled is true",
            "set cache.enabled=false, or data.streaming=false",
        )
    if not settings.preview.prompts:
        raise UserError("data.streaming has no captions for previews before the run", "set preview.prompts")


def streamed_samples(settings: DenoiserSettings, like: LatentSamples) -> StreamedSamples:
    """The dataset of a stream, whose samples become items as `like` makes them."""
    return StreamedSamples(
        replace(like, masked=any(source.alpha_mask for source in settings.data.all_sources())),
        find_task(settings.task).inputs,
    )


def begin_stream(
    run: Run, settings: DenoiserSettings, text_encoder: ClipTextEncoder, multiple: int
) -> Callable[[int, Mapping[str, Any]], StreamOrder]:
    """A function that makes a run's order from its step and from what was saved of the stream there.

    Args:
        multiple: with buckets, image sides are multiples of this many pixels.

    Raises:
        UserError: a source is missing or has no shards.
    """
    data, processes = settings.data, run.processes
    shards = list_shards(data.all_sources())
    opening = partial(
        open_shard,
        settings=data,
        multiple=multiple,
        seed=settings.seed,
        image_index=None if settings.cache.rehash else settings.cache.root(),
        gather=gather_object,
        inputs=find_task(settings.task).inputs,
        missing=settings.captions.missing,
        rank=processes.rank,
        num_processes=processes.num_processes,
    )

    def begin(start_step: int, saved: Mapping[str, Any]) -> StreamOrder:
        report = StreamReport(
            run.run_dir,
            len(shards),
            data.max_bad_fraction,
            resumed=bool(saved),
            main=run.main,
            count_tokens=text_encoder.count_tokens,
            context_length=text_encoder.tokens_read(settings.prompt_chunks),
        )
        stream = ShardStream(
            shards,
            opening,
            settings.seed,
            settings.global_batch_size,
            processes.rank,
            processes.num_processes,
            reached=report.add,
        )
        return StreamOrder(stream, start_step, settings.num_steps, saved)

    return begin
