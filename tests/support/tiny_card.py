"""A tiny LoRA run with all the files of a real run, for the tests of the model card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ldm.data.image_index import ImageIndex
from ldm.data.report.report import make_report, write_report
from ldm.data.sources.reading import SourceSettings, read_source
from ldm.data.survey import survey
from ldm.export.card.model_card import write_card
from ldm.export.card.samples import SampleImage
from ldm.export.export_source import ExportSource
from ldm.models.adapters.folder import Adapter, find_base, save_adapter
from ldm.models.adapters.lora import LoraSettings, add_lora, lora_weights
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_loras import disturb, networks_of
from tests.support.tiny_models import make_sd1, make_sd2
from tests.support.tiny_runs import write_squares

LORA = LoraSettings(rank=2, alpha=4, target_modules=("to_k", "fc1"), text_encoder=True)
FINGERPRINT = "5a" * 32


def settings_of(folder: Path, base: str) -> dict[str, Any]:
    """Part of a run's config.yaml."""
    return {
        "program": "denoiser",
        "run_dir": str(folder / "runs" / "squares"),
        "base": base,
        "trainable": "lora",
        "lora": LORA.model_dump(mode="json"),
        "num_steps": 60,
        "global_batch_size": 4,
        "seed": 5,
        "data": {"path": str(folder / "my squares"), "height": 16, "width": 16, "holdout_fraction": 0.25},
        "optim": {"learning_rate": 1e-3, "lr_schedule": "cosine", "num_warmup_steps": 2, "ema_decay": 0.9},
        "validation": {"every": 20, "keep_best": True},
        "captions": {"dropout": 0.1, "prefix": "a sks drawing, "},
        "preview": {"prompts": ["a red apple"]},
    }


def write_lora(folder: Path, base: Path) -> None:
    """An adapter's folder, like a run's `pipeline/`."""
    parts = load_parts(base)
    add_lora(networks_of(parts), LORA, seed=0)
    disturb(networks_of(parts))
    found = find_base(base)
    settings = LORA.model_dump(mode="json")
    adapter = Adapter("lora", found.given, found.weights_hash, parts.scheduler_config, settings)
    save_adapter(folder, adapter, lora_weights(networks_of(parts)), parts.defaults)


def write_record(run: Path, settings: dict[str, Any]) -> None:
    """The other files of a run: settings, metrics, data report, and the best step."""
    (run / "best/step-000040").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    rows: list[dict[str, Any]] = [
        {"step": 20 * number, "loss": 0.5 / number, "learning_rate": 1e-3, "elapsed_sec": 90.0 * number}
        for number in range(1, 4)
    ]
    rows[1] |= {"validation_loss": 0.125, "validation_loss_stderr": 0.02}
    rows[2] |= {"validation_loss": 0.25, "validation_loss_stderr": 0.02}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "best/step-000040/best.json").write_text('{"step": 40, "validation_loss": 0.125}')
    reading = read_source(SourceSettings(path=settings["data"]["path"]))
    report = make_report(reading, survey(reading.samples, ImageIndex(run)))
    write_report(report, run, reading.samples)
    found = {**asdict(report), "fingerprint": FINGERPRINT}
    (run / "data_report.json").write_text(json.dumps(found))


def make_run(folder: Path) -> Path:
    """A LoRA run in `folder/runs/squares`, trained on `folder/my squares` with the model in `folder/base-model`."""
    save_parts(make_sd2(folder), folder / "base-model")
    write_squares(folder / "my squares")
    run = folder / "runs" / "squares"
    write_record(run, settings_of(folder, str(folder / "base-model")))
    write_lora(run / "pipeline", folder / "base-model")
    return run


def whole_model(folder: Path) -> ExportSource:
    """A stock model without a training run."""
    parts = make_sd1(folder)
    save_parts(parts, folder / "plain")
    return ExportSource("plain", folder / "plain", parts, weights_hash(folder / "plain"))


def sample_image(prompt: str = "a red apple", color: str = "red") -> SampleImage:
    return SampleImage(prompt, Image.new("RGB", (16, 16), color))


def card_of(source: ExportSource, folder: Path, **changes: Any) -> str:
    """Write a card into a new folder; returns the text of README.md."""
    folder.mkdir(exist_ok=True)
    asked = {
        "title": "Squares",
        "licence": "MIT",
        "repo_id": None,
        "format": "diffusers",
        "samples": [sample_image()],
    }
    return write_card(folder, source, **(asked | {"name": folder.name} | changes)).read_text(encoding="utf-8")


def section(card: str, heading: str) -> str:
    """The text below a heading."""
    return card.partition(f"\n## {heading}\n\n")[2].partition("\n## ")[0].strip()
