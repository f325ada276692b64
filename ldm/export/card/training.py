"""What a card says of a run: how the model was trained, its curves, and what was measured of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldm.evaluation.curves import draw_curves, panels_of
from ldm.export.card.layout import Measurement
from ldm.export.card.markdown import escaped, fenced, table
from ldm.export.card.run_record import RunRecord
from ldm.export.card.samples import CURVES
from ldm.io.redaction import redacted

TRAINED = {
    "lora": "a LoRA",
    "embedding": "a new word",
    "unet": "the denoiser",
    "text_encoder": "the text encoder",
    "unet+text_encoder": "the denoiser and the text encoder",
}
OF_MODELS_FROM_NOTHING = ("model", "schedule", "defaults")
"""Settings that a run with a base has none of: there they only stand with their default values."""


def training_section(run: RunRecord) -> str:
    """The section "Training": the settings that matter most as a table, then all of them."""
    left_out = OF_MODELS_FROM_NOTHING if run.setting("base") else ()
    shown = {key: value for key, value in run.settings.items() if key not in left_out}
    resolved = yaml.safe_dump(redacted(shown, name_paths=True), sort_keys=False, allow_unicode=True)
    summary = "<summary>The resolved settings, config.yaml</summary>"
    details = f"<details>\n{summary}\n\n{fenced(resolved, 'yaml')}\n\n</details>"
    note = "Training is the command `ldm train config.yaml` with the settings below; paths are shortened to names."
    return f"{table(('setting', 'value'), _training_rows(run))}\n\n{note}\n\n{details}"


def _training_rows(run: RunRecord) -> list[tuple[str, str]]:
    rows = {
        "trained": _trained(run),
        "optimizer steps": _steps(run),
        "size": _joined(run, "{} x {} px (height x width)", "data.height", "data.width"),
        "learning rate": _joined(
            run,
            "{}, {}, {} steps of warm-up",
            *_of("optim", "learning_rate", "lr_schedule", "num_warmup_steps"),
        ),
        "objective": _joined(run, "{}, weighting {}", "objective.loss", "objective.weighting"),
        "captions left out": _joined(run, "{}", "captions.dropout"),
        "average of the weights": _joined(run, "decay {}", "optim.ema_decay"),
        "mixed precision": _joined(run, "{}", "mixed_precision"),
        "seed": _joined(run, "{}", "seed"),
        "time": _time(run.rows),
    }
    return [(name, text) for name, text in rows.items() if text]


def _of(group: str, *names: str) -> list[str]:
    return [f"{group}.{name}" for name in names]


def _joined(run: RunRecord, text: str, *paths: str) -> str:
    """Settings put into a text; empty where the run has not all of them."""
    values = [run.setting(path) for path in paths]
    return "" if None in values else text.format(*(str(value) for value in values))


def _trained(run: RunRecord) -> str:
    trained = str(run.setting("trainable") or "unet")
    text = TRAINED.get(trained, escaped(trained)) + ("" if run.setting("base") else ", from nothing")
    if trained == "lora":
        kind = "DoRA" if run.setting("lora.use_dora") else "LoRA"
        layers = run.setting("lora.target_modules")
        named = layers if isinstance(layers, str) else ", ".join(map(str, layers or ()))
        alpha = run.setting("lora.alpha") or run.setting("lora.rank")
        text = f"a {kind} of rank {run.setting('lora.rank')}, alpha {alpha:g}, layers: {escaped(named)}"
        text += ", text encoder included" if run.setting("lora.text_encoder") else ""
    return text


def _steps(run: RunRecord) -> str:
    text = _joined(run, "{} of {} pictures", "num_steps", "global_batch_size")
    if run.rows and run.rows[-1]["step"] < (run.setting("num_steps") or 0):
        text += f"; ended after {run.rows[-1]['step']}"
    if run.step is None:
        return text
    losses = {row["step"]: row["validation_loss"] for row in run.rows if "validation_loss" in row}
    is_best = losses and run.step == min(losses, key=losses.__getitem__)
    kind = "" if run.weights == "average" else f" ({escaped(run.weights)})"
    return f"{text}; the weights are of step {run.step}{kind}" + (
        ", with the lowest held-out loss" if is_best else ""
    )


def _time(rows: Sequence[Mapping[str, Any]]) -> str:
    """The time between the rows; a row with less than the one before it is of a run that was resumed."""
    seconds, before = 0.0, 0.0
    for row in rows:
        now = float(row.get("elapsed_sec", before))
        seconds += now - before if now >= before else now
        before = now
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else ""


def write_curves(folder: Path, run: RunRecord) -> str:
    """Draw the curves of a run beside a card; returns the section "Curves", empty where nothing was logged."""
    if not panels_of({run.name: run.rows}):
        return ""
    draw_curves({run.name: run.rows}, folder / CURVES)
    return f"![loss, held-out loss and learning rate over the optimizer steps]({CURVES})"


def measurements_of(run: RunRecord) -> list[Measurement]:
    """What the run measured itself, and what evaluations measured of these very weights."""
    found = _held_out_loss(run)
    for report in run.reports:
        found += _recall(report, run) + _following(report)
    return found


def _held_out_loss(run: RunRecord) -> list[Measurement]:
    row = run.validation
    if row is None:
        return []
    text = f"{row['validation_loss']:.4g} at step {row['step']}"
    if "validation_loss_stderr" in row:
        text += f", standard error {row['validation_loss_stderr']:.2g}"
    return [Measurement("loss on held-out pictures", text, "ldm train config.yaml")]


def memorisation_of(run: RunRecord | None) -> Mapping[str, Any] | None:
    """The share of training captions whose picture comes nearest to their own training picture, and of how many."""
    return next((report["recall"] for report in run.reports if "recall" in report), None) if run else None


def _recall(report: Mapping[str, Any], run: RunRecord) -> list[Measurement]:
    if "recall" not in report:
        return []
    data = _data_word(run.setting("data.path"))
    what = "memorisation: a picture's nearest training picture is its caption's own"
    command = f"python scripts/evaluate_emoji.py --model MODEL --data {data} --output DIR"
    return [Measurement(what, _share(report["recall"]["top_1"], "captions"), command)]


def _following(report: Mapping[str, Any]) -> list[Measurement]:
    """Of drawn scenes: pictures with all that the prompt asks for."""
    plain = " --plain" if report.get("plain") else ""
    kinds = {"seen": "combinations seen in training", "held_out": "combinations held out of training"}
    return [
        Measurement(
            f"the picture has all that the prompt asks for, {what}",
            _share(report[kind]["all"], "prompts"),
            f"python scripts/score_shapes.py --model MODEL --output DIR{plain}",
        )
        for kind, what in kinds.items()
        if isinstance(report.get(kind), Mapping) and "all" in report[kind]
    ]


def _share(share: Mapping[str, Any], noun: str) -> str:
    return f"{share['share']:.3f} [{share['low']:.3f}, {share['high']:.3f}] of {share['num_judged']:,} {noun}"


def _data_word(path: Any) -> str:
    """A path of the settings as a word for a command."""
    return str(redacted(path, "path", name_paths=True)) if isinstance(path, str) else "DATA"
