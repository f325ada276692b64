"""A run on shards that are read as they come: what it needs, and its order from wherever it is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from ldm.data.batches import LatentSamples
from ldm.data.report.stream_report import StreamReport
from ldm.data.stream_shards import list_shards, open_shard
from ldm.data.streaming import ShardStream, StreamedSamples, StreamOrder
from ldm.errors import UserError
from ldm.models.clip import ClipTextEncoder

from ..run.run import Run

if TYPE_CHECKING:
    from ..settings.denoiser import DenoiserSettings


def check_streaming(settings: "DenoiserSettings") -> None:
    """Refuse what needs all samples before the first step.

    Raises:
        UserError: the settings ask for something of the kind.
    """
    if settings.cache.enabled:
        raise UserError(
            "data.streaming encodes images as they come, and cache.enabled is true",
            "set cache.enabled=false, or data.streaming=false",
        )
    if not settings.preview.prompts:
        raise UserError(
            "data.streaming knows no captions before the run to draw previews of", "set preview.prompts"
        )


def streamed_samples(settings: "DenoiserSettings", like: LatentSamples) -> StreamedSamples:
    """The dataset of a stream, whose samples are what `like` makes of them."""
    return StreamedSamples(
        replace(like, masked=any(source.alpha_mask for source in settings.data.all_sources()))
    )


def begin_stream(
    run: Run, settings: "DenoiserSettings", text_encoder: ClipTextEncoder, multiple: int
) -> Callable[[int, Mapping[str, Any]], StreamOrder]:
    """What gives a run its order, once it is known at which step it is and what was saved of the stream there.

    Args:
        multiple: with buckets, image sides are multiples of this many pixels.

    Raises:
        UserError: a source is missing or has no shards.
    """
    data, accelerator = settings.data, run.accelerator
    shards = list_shards(data.all_sources())
    share = {"rank": accelerator.process_index, "num_processes": accelerator.num_processes}
    opening = partial(
        open_shard,
        settings=data,
        multiple=multiple,
        seed=settings.seed,
        image_index=None if settings.cache.rehash else settings.cache.root(),
        gather=gather_object,
        **share,
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
            shards, opening, settings.seed, settings.global_batch_size, reached=report.add, **share
        )
        return StreamOrder(stream, start_step, settings.num_steps, saved)

    return begin
