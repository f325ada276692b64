"""The facts of a model card about training: settings, time and measurements, without any wording."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ldm.evaluation.metrics import mean_text, share_text
from ldm.export.card.evaluations import Measurement, evaluation_rows
from ldm.export.card.facts import public_name
from ldm.export.card.run_record import RunRecord
from ldm.io.redaction import redacted

FROM_SCRATCH_ONLY = ("model", "schedule", "defaults")
"""Settings that have no effect in a run with a base model."""


@dataclass(frozen=True)
class LoraFacts:
    """The settings of a trained LoRA."""

    kind: str
    rank: int
    alpha: float
    layers: str
    with_text_encoder: bool


@dataclass(frozen=True)
class TrainingFacts:
    """How a run trained; None is a setting that the run does not have.

    Attributes:
        trainable: a value of the setting `trainable`.
        ended_at: the last step, if the run ended early.
        step: the step of the exported weights, if known.
        weights: "average", or the name of other weights of a checkpoint.
        is_best: the step has the lowest held-out loss.
        minutes: training time.
        settings: all settings as YAML, with private parts removed.
    """

    trainable: str
    from_scratch: bool
    lora: LoraFacts | None
    num_steps: int | None
    batch_size: int | None
    ended_at: int | None
    step: int | None
    weights: str
    is_best: bool
    height: int | None
    width: int | None
    learning_rate: float | None
    lr_schedule: str | None
    num_warmup_steps: int | None
    loss: str | None
    weighting: str | None
    caption_dropout: float | None
    ema_decay: float | None
    mixed_precision: str | None
    seed: int | None
    minutes: int
    settings: str


def training_facts(run: RunRecord) -> TrainingFacts:
    """The facts of a run."""
    num_steps = run.setting("num_steps")
    last = run.rows[-1]["step"] if run.rows else None
    losses = {row["step"]: row["validation_loss"] for row in run.rows if "validation_loss" in row}
    trainable = str(run.setting("trainable") or "unet")
    return TrainingFacts(
        trainable=trainable,
        from_scratch=not run.setting("base"),
        lora=_lora_facts(run) if trainable == "lora" else None,
        num_steps=num_steps,
        batch_size=run.setting("global_batch_size"),
        ended_at=last if last is not None and last < (num_steps or 0) else None,
        step=run.step,
        weights=run.weights,
        is_best=bool(losses) and run.step == min(losses, key=losses.__getitem__),
        height=run.setting("data.height"),
        width=run.setting("data.width"),
        learning_rate=run.setting("optim.learning_rate"),
        lr_schedule=run.setting("optim.lr_schedule"),
        num_warmup_steps=run.setting("optim.num_warmup_steps"),
        loss=run.setting("objective.loss"),
        weighting=run.setting("objective.weighting"),
        caption_dropout=run.setting("captions.dropout"),
        ema_decay=run.setting("optim.ema_decay"),
        mixed_precision=run.setting("mixed_precision"),
        seed=run.setting("seed"),
        minutes=_minutes(run.rows),
        settings=_settings(run),
    )


def _lora_facts(run: RunRecord) -> LoraFacts:
    layers, rank = run.setting("lora.target_modules"), run.setting("lora.rank")
    return LoraFacts(
        kind="LoKr"
        if run.setting("lora.kind") == "lokr"
        else "DoRA"
        if run.setting("lora.use_dora")
        else "LoRA",
        rank=rank,
        alpha=run.setting("lora.alpha") or rank,
        layers=layers if isinstance(layers, str) else ", ".join(map(str, layers or ())),
        with_text_encoder=bool(run.setting("lora.text_encoder")),
    )


def _settings(run: RunRecord) -> str:
    left_out = FROM_SCRATCH_ONLY if run.setting("base") else ()
    shown = {key: value for key, value in run.settings.items() if key not in left_out}
    return yaml.safe_dump(redacted(shown, name_paths=True), sort_keys=False, allow_unicode=True)


def _minutes(rows: Sequence[Mapping[str, Any]]) -> int:
    """The time between the rows. When a run is resumed, its clock restarts and a row has less than the one before."""
    seconds, before = 0.0, 0.0
    for row in rows:
        now = float(row.get("elapsed_sec", before))
        seconds += now - before if now >= before else now
        before = now
    return round(seconds / 60)


def measurements_of(reports: Sequence[Mapping[str, Any]], run: RunRecord | None) -> list[Measurement]:
    """What evaluations measured of exactly these weights.

    Args:
        run: that made the model, if known; names the data.
    """
    found: list[Measurement] = []
    for report in reports:
        found += _memorisation(report, run) + _prompt_following(report)
        found += _task_scores(report) + _task_quality(report) + list(evaluation_rows(report))
    return found


def held_out_loss(run: RunRecord | None) -> list[Measurement]:
    """What the run itself measured."""
    row = run.validation if run else None
    if row is None:
        return []
    text = f"{row['validation_loss']:.4g} at step {row['step']}"
    if "validation_loss_stderr" in row:
        text += f", standard error {row['validation_loss_stderr']:.2g}"
    return [Measurement("loss on held-out images", text, "ldm train config.yaml")]


def memorisation_of(run: RunRecord | None) -> Mapping[str, Any] | None:
    """How often the image for a training caption is nearest to that caption's training image, if measured."""
    return next((report["recall"] for report in run.reports if "recall" in report), None) if run else None


def _memorisation(report: Mapping[str, Any], run: RunRecord | None) -> list[Measurement]:
    if "recall" not in report:
        return []
    path = run.setting("data.path") if run else None
    data = shlex.quote(public_name(path)) if isinstance(path, str) else "DATA"
    what = "memorisation: the nearest training image is the caption's own"
    command = f"python scripts/evaluate_emoji.py --model MODEL --data {data} --output DIR"
    return [Measurement(what, _share(report["recall"]["top_1"], "captions"), command)]


def _prompt_following(report: Mapping[str, Any]) -> list[Measurement]:
    plain = " --plain" if report.get("plain") else ""
    kinds = {"seen": "combinations seen in training", "held_out": "combinations held out of training"}
    return [
        Measurement(
            f"the image has everything that the prompt asks for, {what}",
            _share(report[kind]["all"], "prompts"),
            f"python scripts/score_shapes.py --model MODEL --output DIR{plain}",
        )
        for kind, what in kinds.items()
        if isinstance(report.get(kind), Mapping) and "all" in report[kind]
    ]


def _task_scores(report: Mapping[str, Any]) -> list[Measurement]:
    if "held_out" not in report.get("scores", {}):
        return []
    task = report["task"]
    command = f"python scripts/score_tasks.py {task} --model MODEL --output DIR --size-px {report['size_px']}"
    kinds = {"seen": "combinations seen in training", "held_out": "combinations held out of training"}
    return [
        Measurement(
            f"{task}: the image is as asked and nothing else has changed, {what}",
            _share(report["scores"][kind]["all"]["all"], "images"),
            report.get("command", command),
        )
        for kind, what in kinds.items()
    ]


def _task_quality(report: Mapping[str, Any]) -> list[Measurement]:
    """The gain over each simpler method, for combinations held out of training."""
    titles = {"psnr": "PSNR in dB", "ssim": "SSIM", "f1": "F1 of the layout"}
    if "gains" not in report:
        return []
    task = report["task"]
    command = f"python scripts/score_tasks.py {task} --model MODEL --output DIR --size-px {report['size_px']}"
    return [
        Measurement(
            f"{task}: gain in {titles.get(name, name)} over {simpler.replace('_', ' ')}",
            f"{mean_text(found)} on {found['num_images']:,} images",
            report.get("command", command),
        )
        for simpler, kinds in report["gains"].items()
        for name, found in kinds["all"].items()
    ]


def _share(share: Mapping[str, Any], noun: str) -> str:
    return f"{share_text(share)} of {share['num_judged']:,} {noun}"
