"""The model card of an export: README.md, with the images that it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.evaluation.curves import draw_curves, panels_of
from ldm.export.card.data_facts import data_facts, data_names, hub_datasets
from ldm.export.card.evaluations import copies_of, read_evaluations
from ldm.export.card.facts import (
    find_base,
    hashes_of,
    model_facts,
    public_name,
    scheduler_change,
    software_of,
)
from ldm.export.card.front_matter import front_matter
from ldm.export.card.markdown import render
from ldm.export.card.run_record import RunRecord, read_run
from ldm.export.card.samples import CURVES, GRID, INPUT_NOTE, SampleImage, write_samples
from ldm.export.card.source_card import SourceCard, read_source_card
from ldm.export.card.task_words import words_for
from ldm.export.card.training_facts import held_out_loss, measurements_of, memorisation_of, training_facts
from ldm.export.card.usage import command_example, python_example
from ldm.export.export_source import ExportSource
from ldm.export.formats.exporter import ExportedModel, usage_of
from ldm.export.model_files import CARD
from ldm.io.files import write_bytes
from ldm.io.redaction import private_names, public_text
from ldm.models.loading.source import EMBEDDED

TEMPLATE = Path(__file__).with_name("card.md.jinja")
FEW_IMAGES = 2000
"""The card warns of a data set with fewer images."""

TRAINED = {
    "embedding": "a new token",
    "unet": "the denoiser",
    "text_encoder": "the text encoder",
    "unet+text_encoder": "the denoiser and the text encoder",
}
"""The values of the setting `trainable`, in words."""


def write_card(
    folder: Path,
    source: ExportSource,
    *,
    title: str,
    licence: str | None,
    repo_id: str | None,
    format: str,
    samples: Sequence[SampleImage],
    name: str | None = None,
    evaluations: Sequence[Path] = (),
) -> Path:
    """Write `README.md`, and the images that it shows into `samples/`.

    Nothing in it tells where the model was made: paths are shortened to names; the names of this user and this
    computer, and anything that looks like a token, are removed.

    Args:
        folder: of the export, with its files already written.
        title: the heading; shown literally.
        licence: of the weights, an SPDX name such as "mit", or an address; default: the one on the model's own card.
        repo_id: USER/NAME on the Hub, for the examples.
        format: a key of `ldm.export.formats.formats.FORMATS`.
        samples: images that the model made; the first one's prompt is used in the examples.
        name: the name of the final folder; default: the model's id.
        evaluations: reports of this model, see `read_evaluations`; those near its run are found without.

    Returns:
        The path of README.md.

    Raises:
        UserError: a file of the run is damaged, an evaluation is of another model, or the disk is full.
    """
    private = private_names(repo_id)
    title, licence = public_text(title, private), licence and public_text(licence, private)
    run = _run_of(source)
    named = read_evaluations(evaluations, source.weights_hash, _parts_of(source))
    near = run.reports if run else ()
    reports = [*near, *(report for report in named if report not in near)]
    base = find_base(source, run)
    exported = ExportedModel(source, folder, name or public_name(source.model_id), format, repo_id, base)
    own_card = read_source_card(source.folder) if run is None and source.adapter is None else None
    licence = licence or (own_card.licence if own_card else None)
    names = write_samples(folder, samples)
    text = render(
        TEMPLATE,
        title=title,
        licence=licence,
        front_matter=front_matter(
            exported,
            licence=licence,
            datasets=hub_datasets(run),
            run=run,
            widget=[(sample.prompt, file) for sample, file in zip(samples, names, strict=True)],
        ),
        samples=[_Sample(public_text(s.prompt), file) for s, file in zip(samples, names, strict=True)],
        grid=GRID,
        input_note=INPUT_NOTE,
        words=words_for(source.parts.task),
        **_model_facts(exported, _example_prompt(samples, run, source.parts.task), own_card),
        hashes=hashes_of(source, run),
        **_run_facts(run, folder),
        measurements=[*held_out_loss(run), *measurements_of(reports, run)],
        copies=next(filter(None, map(copies_of, reports)), None),
    )
    write_bytes(folder / CARD, text.encode("utf-8", "replace"))
    return folder / CARD


def check_evaluations(source: ExportSource, evaluations: Sequence[Path]) -> None:
    """Refuse reports that the card of a model cannot have; errors as `read_evaluations`."""
    read_evaluations(evaluations, source.weights_hash, _parts_of(source))


def _run_of(source: ExportSource) -> RunRecord | None:
    """What is known of the run that made the model."""
    if source.run is None:
        return None
    return read_run(source.run, source.folder, source.weights_hash, _parts_of(source))


def _parts_of(source: ExportSource) -> Mapping[str, str] | None:
    """What an evaluation of the model records of its parts, if known."""
    return source.identity.image_parts if source.identity else None


@dataclass(frozen=True)
class _Sample:
    """A sample as the template shows it."""

    prompt: str
    file: str


def _example_prompt(samples: Sequence[SampleImage], run: RunRecord | None, task: str) -> str:
    """A prompt that suits the model."""
    prompts = [sample.prompt for sample in samples] or (run.setting("preview.prompts") if run else None)
    return public_text(str(prompts[0])) if prompts else words_for(task).prompts[0]


def _model_facts(exported: ExportedModel, prompt: str, own_card: SourceCard | None) -> dict[str, Any]:
    """What the template says about the model and its use."""
    source, base = exported.source, exported.base
    usage = usage_of(exported)
    return {
        "exported": exported,
        "model": model_facts(exported),
        "model_name": public_name(source.model_id),
        "adapter_kind": source.adapter.kind if source.adapter else None,
        "base_is_embedded": base is not None and base.name in EMBEDDED,
        "usage": usage,
        "python": python_example(
            exported, usage, scheduler_change(source.parts, is_lora=exported.is_lora), prompt
        ),
        "command": command_example(exported, usage, prompt),
        "software": software_of(exported),
        "source_card": own_card.quoted() if own_card else None,
    }


def _run_facts(run: RunRecord | None, folder: Path) -> dict[str, Any]:
    """What the template says about the run that made the model."""
    return {
        "training": training_facts(run) if run else None,
        "trained": TRAINED,
        "data": data_facts(run) if run else None,
        "data_names": data_names(run) if run else [],
        "holdout_fraction": run.setting("data.holdout_fraction") if run else None,
        "curves": _draw_curves(folder, run) if run else None,
        "memorisation": memorisation_of(run),
        "few_images": FEW_IMAGES,
    }


def _draw_curves(folder: Path, run: RunRecord) -> str | None:
    """Draw a run's curves into the export; returns the file's name, or None if nothing was logged."""
    if not panels_of({run.name: run.rows}):
        return None
    draw_curves({public_name(run.name): run.rows}, folder / CURVES)
    return CURVES
