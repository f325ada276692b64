"""`ldm train CONFIG --plan`: what a run would do and cost, counted and measured. Nothing is written."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

from ldm.data.batches import LatentSamples
from ldm.data.order import steps_per_epoch
from ldm.io.files import free_bytes

from ..data.denoiser_data import preview_inputs
from ..data.latents import ImageReaders
from ..data.read import TrainingData
from ..loop.denoiser_loss import DenoiserLoss
from ..loop.steps import Periodic
from ..run.checkpoints import checkpoint_tensors
from ..run.run import Run
from ..settings.denoiser import DenoiserSettings
from ..settings.shared import TrainSettings
from .cache_cost import CacheCost, plan_captions, plan_images
from .other_load import OtherLoad
from .preview_cost import PreviewCost, measure_previews
from .state_cost import StateCost, count_state
from .step_cost import Size, StepCost, measure_steps, memory_in_use

NUM_SHOWN = 3
"""How many reasons for refusals are shown."""


@dataclass(frozen=True)
class Plan:
    """What a run would do and cost.

    Attributes:
        num_found: samples found; `num_train` and `num_held_out` are used, `refusals` are the reasons for the others.
        buckets: (height, width) in pixels -> number of training samples.
        start_step: the step that the run resumes from; 0 for a new run.
        state: what is kept of the trained weights, counted.
        checkpoint_bytes: of one checkpoint.
        num_checkpoints: the most on the disk at once: those kept, and one being written.
        free_bytes: on the disk of the run's directory, and on that of the cache.
        load: how busy other programs kept the machine while the times were measured.
        notes: what may be a mistake.
    """

    num_found: int
    num_train: int
    num_held_out: int
    refusals: tuple[str, ...]
    buckets: dict[Size, int]
    global_batch_size: int
    steps_per_epoch: int
    start_step: int
    num_steps: int
    num_processes: int
    device: str
    num_trained: int
    num_parameters: int
    state: StateCost
    step: StepCost
    images: CacheCost
    captions: CacheCost
    previews: PreviewCost
    load: OtherLoad
    checkpoint_bytes: int
    num_checkpoints: int
    free_bytes: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def num_passes(self) -> float:
        """How often each sample is seen in total."""
        return self.num_steps / self.steps_per_epoch

    @property
    def encode_sec(self) -> float:
        """Seconds to fill the cache, shared by the processes."""
        costs = (self.images, self.captions)
        return sum(cost.num_lacking * cost.each_sec for cost in costs) / self.num_processes

    @property
    def steps_sec(self) -> float:
        """Seconds for the remaining steps, without validation, previews and checkpoints."""
        return (self.num_steps - self.start_step) * self.step.step_sec

    def __str__(self) -> str:
        rows = list(self._rows())
        return "\n".join(f"{name + ':':12}{text}" for name, text in rows)

    def _rows(self) -> Iterator[tuple[str, str]]:
        step, size = self.step, self.step.size
        used = f"{self.num_train} to train on, {self.num_held_out} held out, {len(self.refusals)} refused"
        yield "samples", f"{self.num_found} found: {used}"
        for reason in self.refusals[:NUM_SHOWN]:
            yield "refused", reason
        sizes = (f"{width} x {height} ({count})" for (height, width), count in self.buckets.items())
        yield "buckets", ", ".join(sizes)
        begin = f" from step {self.start_step}" if self.start_step else ""
        yield "steps", f"{self.num_steps}{begin}, of at most {self.global_batch_size} samples"
        yield "epoch", f"{self.steps_per_epoch} steps; {self.num_passes:.1f} epochs in total"
        pieces = f"{step.num_micro_batches} micro-batches of at most {step.micro_batch}"
        yield "batch", f"{pieces} in each of {self.num_processes} processes on {self.device}"
        yield "parameters", f"{self.num_trained:,} trained of {self.num_parameters:,}"
        kept = ", ".join(f"{_bytes(count)} of {name}" for name, count in asdict(self.state).items())
        yield "state", f"{_bytes(self.state.total)} in each process: {kept}"
        batch = f"{step.num_samples} samples of {size[1]} x {size[0]}"
        more = f"{_bytes(step.growth_bytes)} more than before the first"
        yield "memory", f"{_bytes(step.peak_bytes)} at the peak of a step on {batch}, {more}"
        yield "time", f"{step.step_sec:.3g} s a step, the median of {step.num_timed}"
        yield from self._cache_rows()
        yield from self._preview_rows()
        parts = {
            "steps": self.steps_sec,
            "encoding": self.encode_sec,
            "previews": self.previews.previews_sec,
            "validation": self.previews.validations_sec,
            "evaluation": self.previews.evaluations_sec,
        }
        left = [f"{_duration(seconds)} of {what}" for what, seconds in parts.items() if seconds]
        yield "remaining", f"{', '.join(left) or 'nothing'}, plus checkpoints"
        yield "machine", str(self.load)
        most = f"at most {self.num_checkpoints} checkpoints of {_bytes(self.checkpoint_bytes)}"
        yield "disk", f"{most}; {_bytes(self.free_bytes[0])} free"
        yield from (("note", note) for note in self.notes)

    def _preview_rows(self) -> Iterator[tuple[str, str]]:
        cost = self.previews
        if cost.num_previews:
            images = f"{cost.num_previews} x {cost.num_images} images of {cost.size[1]} x {cost.size[0]}"
            yield "previews", f"{images}, {cost.image_sec:.3g} s each"
        if cost.num_evaluations:
            yield "evaluation", f"{cost.num_evaluations} times, {cost.evaluation_sec:.3g} s each"

    def _cache_rows(self) -> Iterator[tuple[str, str]]:
        for what, cost in (("images", self.images), ("captions", self.captions)):
            if cost.num_wanted:
                lacks = f"lacks {cost.num_lacking} of {cost.num_wanted} {what}"
                yield "cache", f"{lacks}: {_bytes(cost.num_bytes)}, {cost.each_sec:.2g} s each"


def make_plan(
    run: Run,
    settings: DenoiserSettings,
    loss: DenoiserLoss,
    data: TrainingData,
    samples_of: Callable[[ImageReaders], LatentSamples],
) -> Plan:
    """Count and measure what a run on `data` would do. Every process must call it; `loss` is trained by it.

    Args:
        samples_of: makes the dataset of `data.train` from the readers of its images.
    """
    everything = [*data.train, *data.held_out]
    parameters = {p for part in loss.parts.modules().values() for p in part.parameters()}
    bucket_of = [one.size for one in data.train]
    images, readers = plan_images(run, settings, loss, everything)
    captions, loss.prompts = plan_captions(run, settings, loss, everything)
    in_use = memory_in_use(run.device)
    state = run.start(loss)
    start_step, load = state.step, OtherLoad()
    with load.measuring(run.accelerator):
        step = measure_steps(run, state, samples_of(readers), bucket_of, data.sample_ids, in_use)
    previews = measure_previews(
        run,
        settings,
        loss,
        preview_inputs(settings, data.train, loss.task),
        start=start_step,
        held_out=len(data.held_out),
    )
    checkpoint = [tensor for group in checkpoint_tensors(state).values() for tensor in group.values()]
    plan = Plan(
        num_found=data.prepared.num_found,
        num_train=len(data.train),
        num_held_out=len(data.held_out),
        refusals=tuple(refusal.reason for refusal in data.prepared.refusals),
        buckets=dict(sorted(Counter(bucket_of).items(), key=lambda entry: entry[0][::-1])),
        global_batch_size=settings.global_batch_size,
        steps_per_epoch=steps_per_epoch(bucket_of, settings.global_batch_size),
        start_step=start_step,
        num_steps=settings.num_steps,
        num_processes=run.processes.num_processes,
        device=run.device.type,
        num_trained=sum(p.numel() for p in parameters if p.requires_grad),
        num_parameters=sum(p.numel() for p in parameters),
        state=count_state(state, fused_backward=settings.optim.fused_backward),
        step=step,
        images=images,
        captions=captions,
        previews=previews,
        load=load,
        checkpoint_bytes=sum(tensor.nbytes for tensor in checkpoint),
        num_checkpoints=most_checkpoints(settings),
        free_bytes=(free_bytes(settings.run_dir), free_bytes(settings.cache.root())),
    )
    return replace(plan, notes=(*run.changes, *notes_on(plan, settings)))


def most_checkpoints(settings: TrainSettings) -> int:
    """The most checkpoints on the disk at once: those kept at the end, and one being written."""
    due, last = Periodic(settings.save_every, also=settings.keep_every).due, settings.num_steps
    saved = [step for step in range(1, last + 1) if due(step, last)]
    permanent = {step for step in saved if settings.keep_every and step % settings.keep_every == 0}
    return len({*saved[-settings.keep_checkpoints :], *permanent}) + 1


def notes_on(plan: Plan, settings: DenoiserSettings) -> Iterator[str]:
    """What may be a mistake in a plan, and how to fix it."""
    batch, step, num_idle = plan.global_batch_size, plan.step, plan.num_processes - plan.global_batch_size
    if num_idle > 0:
        yield f"global_batch_size = {batch}: {num_idle} of {plan.num_processes} processes have no sample in a step"
    if (largest := max(plan.buckets.values())) < batch:
        yield f"no bucket fills global_batch_size = {batch}: the largest has {largest} samples"
    if plan.num_passes < 1:
        yield f"not every sample is seen: an epoch has {plan.steps_per_epoch} steps, num_steps = {plan.num_steps}"
    if plan.num_held_out and not settings.validation.every:
        yield f"the {plan.num_held_out} held-out samples are not used: set validation.every"
    if plan.start_step == plan.num_steps:
        yield f"{settings.run_dir} is finished: set a larger num_steps, or another run_dir"
    if step.micro_batch < min(step.num_samples, settings.max_micro_batch):
        yield f"only {step.micro_batch} samples at once fit in memory: set max_micro_batch={step.micro_batch}"
    if plan.load.matters:
        yield f"{plan.load}: with the machine to itself, the run takes less time than planned here"
    if plan.previews.previews_sec > plan.steps_sec / 2 > 0:
        yield "previews take long: lower preview.num_inference_steps, or set fewer preview.prompts"
    needs = plan.num_checkpoints * plan.checkpoint_bytes, plan.images.num_bytes + plan.captions.num_bytes
    for need, free, what in zip(needs, plan.free_bytes, ("checkpoints", "cache"), strict=True):
        if need > free:
            yield f"the disk is too small: {_bytes(need)} for the {what}, {_bytes(free)} free"


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} bytes"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
