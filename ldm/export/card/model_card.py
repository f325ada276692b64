"""The card of an exported model, README.md: front matter for the Hub, then all that is known of the model."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from ldm.diffusion.guidance import EVERYWHERE
from ldm.export.card.data_section import data_section
from ldm.export.card.layout import Card, measurement_table
from ldm.export.card.licences import licence_keys
from ldm.export.card.markdown import code, escaped, table
from ldm.export.card.risks import intended_use, risks
from ldm.export.card.run_record import RunRecord, read_run
from ldm.export.card.samples import SamplePicture, samples_section, write_samples
from ldm.export.card.source_card import CARD, read_source_card
from ldm.export.card.subject import CardSubject, find_base, hub_datasets
from ldm.export.card.training import measurements_of, training_section, write_curves
from ldm.export.card.usage import use_section
from ldm.export.export_source import ExportSource
from ldm.io.files import write_bytes
from ldm.io.redaction import redacted, redacted_prose

DEFAULT_PROMPT = "a red apple"


def write_card(
    folder: Path,
    source: ExportSource,
    *,
    title: str,
    licence: str | None,
    repo_id: str | None,
    format: str,
    samples: Sequence[SamplePicture],
    name: str | None = None,
) -> Path:
    """Write `README.md` and the pictures that it shows, in `samples/`, into an export's folder.

    Nothing in it tells where on which machine the model was made: paths are shortened to names, and names of this user
    and this computer and what looks like a token are left out.

    Args:
        folder: of the export, its files written already.
        title: the heading; shown as it is.
        licence: of the weights, an SPDX name such as "mit", or an address; by default what the model's own card says.
        repo_id: USER/NAME on the Hub, for the examples.
        format: a key of `ldm.export.export_options.FORMATS`.
        samples: pictures that the model made; the first one's prompt is the example.
        name: what the folder is called in the end; default: the model's id.

    Returns:
        README.md's path.

    Raises:
        UserError: a file of the run is damaged, or the disk is full.
    """
    run = read_run(source.run, source.folder, source.weights_hash) if source.run else None
    subject = CardSubject(
        source=source,
        folder=folder,
        name=name or _public(source.model_id),
        repo_id=repo_id,
        format=format,
        prompt=_example(samples, run),
        base=find_base(source, run),
        run=run,
        source_card=read_source_card(source.folder) if run is None and source.adapter is None else None,
    )
    names = write_samples(folder, samples)
    curves = write_curves(folder, run) if run else ""
    card = Card(
        title=escaped(title),
        summary=_summary(subject),
        front_matter=_front_matter(subject, licence, samples, names),
        sections=_sections(subject, licence, samples_section(samples, names), curves),
    )
    write_bytes(folder / CARD, card.to_markdown().encode("utf-8", "replace"))
    return folder / CARD


def _public(name: str) -> str:
    return str(redacted(name, "path", name_paths=True))


def _example(samples: Sequence[SamplePicture], run: RunRecord | None) -> str:
    """A prompt that suits the model."""
    prompts = [sample.prompt for sample in samples] or (run.setting("preview.prompts") if run else None)
    return redacted_prose(str(prompts[0])) if prompts else DEFAULT_PROMPT


def _front_matter(
    subject: CardSubject, licence: str | None, samples: Sequence[SamplePicture], names: Sequence[str]
) -> dict[str, Any]:
    """The Hub's metadata; keys without a value are left out."""
    base, datasets = subject.base, hub_datasets(subject.run)
    found: dict[str, Any] = {
        **licence_keys(_licence(subject, licence)),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": base.hub_id if base else None,
        "base_model_relation": _relation(subject) if base and base.hub_id else None,
        "datasets": datasets,
        "tags": _tags(subject),
        "instance_prompt": subject.token or _prefix(subject.run),
        "widget": [
            {"text": redacted_prose(sample.prompt), "output": {"url": file}}
            for sample, file in zip(samples, names, strict=True)
        ],
    }
    return {key: value for key, value in found.items() if value}


def _licence(subject: CardSubject, licence: str | None) -> str | None:
    return licence or (subject.source_card.licence if subject.source_card else None)


def _relation(subject: CardSubject) -> str:
    return "adapter" if subject.is_lora_file or subject.keeps_lora_apart else "finetune"


def _tags(subject: CardSubject) -> list[str]:
    adapter = subject.source.adapter
    tags = ["text-to-image", "diffusers", "stable-diffusion", "open-ldm"]
    tags += ["lora"] if adapter is not None and adapter.kind == "lora" else []
    tags += ["textual-inversion"] if subject.token else []
    tags += ["template:diffusion-lora"] if subject.is_lora_file else []
    return tags + (["openvino"] if subject.format == "openvino" else [])


def _prefix(run: RunRecord | None) -> str | None:
    """What every caption of the training began with, where the settings put it there."""
    prefix = run.setting("captions.prefix") if run else None
    return redacted_prose(prefix).strip(" ,") if isinstance(prefix, str) else None


def _summary(subject: CardSubject) -> str:
    """What it is, in two sentences."""
    base, parts = subject.base, subject.source.parts
    adapter, lora = subject.source.adapter, subject.source.lora
    kind = "A latent diffusion model that makes pictures from text"
    if adapter is not None:
        kind = "A LoRA" if adapter.kind == "lora" else f"A new word, {code(subject.token or '')},"
        kind += f" for {code(base.name)}" if base else ""
        kind += "" if subject.is_lora_file or subject.keeps_lora_apart else ", added to its weights"
    elif base is not None:
        kind += f", trained from {code(base.name)}"
    size = f"{parts.defaults.width} x {parts.defaults.height} px"
    count = sum(t.numel() for t in lora.tensors.values()) if lora and subject.is_lora_file else None
    weights = f", {_millions(count)} weights" if count is not None else ""
    return (
        f"{kind}, for pictures of {size}{weights}. Written by OpenLDM in the format {code(subject.format)}."
    )


def _sections(subject: CardSubject, licence: str | None, samples: str, curves: str) -> dict[str, str]:
    run, source_card = subject.run, subject.source_card
    return {
        "Samples": samples,
        "Use": use_section(subject),
        "Model": _model_section(subject),
        "Training": training_section(run) if run else "",
        "Data": data_section(run, hub_datasets(run)) if run else "",
        "Curves": curves,
        "Measured": measurement_table(measurements_of(run)) if run else "",
        "Hashes": _hashes(subject),
        "Software": _software(subject),
        "Licence": _licence_section(_licence(subject, licence)),
        "Intended use": intended_use(subject),
        "Limits and risks": risks(subject),
        f"What the card of {code(_public(subject.source.model_id))} says": source_card.quoted()
        if source_card
        else "",
    }


def _model_section(subject: CardSubject) -> str:
    """The networks and how they are sampled."""
    parts, defaults = subject.source.parts, subject.source.parts.defaults
    config = parts.scheduler_config
    zero = ", zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    sampled = f"{defaults.num_inference_steps} steps, guidance {defaults.guidance_scale:g}"
    if defaults.guidance_interval != EVERYWHERE:
        sampled += f" {_guided(*defaults.guidance_interval)} (a stock pipeline guides all steps)"
    latents, width = parts.autoencoder.num_channels, parts.text_encoder.text_width
    rows = [
        ("predicts", code(str(config.get("prediction_type", "epsilon"))) + zero),
        ("denoiser", f"{_weights(parts.denoiser)} weights"),
        ("autoencoder", f"{_weights(parts.autoencoder)} weights, {latents} latent channels"),
        ("text encoder", f"{_weights(parts.text_encoder)} weights, {width} numbers a token"),
        ("size", f"{defaults.height} x {defaults.width} px (height x width)"),
        ("best sampled with", f"{code(defaults.scheduler)}, {sampled}"),
    ]
    return table(("part", "value"), rows)


def _guided(start: float, end: float) -> str:
    """Where guidance is used: rising numbers are fractions of the steps, falling ones noise levels."""
    if start < end:
        return f"from {start:g} to {end:g} of the steps"
    return f"while the noise is {start:g} to {end:g} times the signal"


def _weights(network: nn.Module) -> str:
    return _millions(sum(parameter.numel() for parameter in network.parameters()))


def _millions(number: int) -> str:
    return f"{number / 1e6:.3g} M" if number >= 1e5 else f"{number:,}"


def _hashes(subject: CardSubject) -> str:
    source = subject.source
    report = subject.run.data_report if subject.run else None
    rows = [("the model that was exported", source.weights_hash)]
    if source.adapter is not None:
        name = f" {code(subject.base.name)}" if subject.base else ""
        rows.append((f"its base{name}", source.adapter.base_weights_hash))
    if report and report.get("fingerprint"):
        rows.append(("the data: images, captions, masks, mirroring", str(report["fingerprint"])))
    text = table(("of", "SHA-256"), [(what, code(value)) for what, value in rows])
    return f"{text}\n\nThose of the files here are in `export.json`; `ldm verify` compares them."


def _software(subject: CardSubject) -> str:
    names = ["open-ldm", "torch", "diffusers", "transformers", "safetensors"]
    names += ["peft"] if subject.source.adapter is not None else []
    names += ["openvino"] if subject.format == "openvino" else []
    rows = [("Python", platform.python_version()), *((name, _version(name)) for name in names)]
    return f"Exported with {', '.join(f'{name} {number}' for name, number in rows if number)}."


def _version(package: str) -> str:
    from ldm.version import __version__

    try:
        return __version__ if package == "open-ldm" else version(package)
    except PackageNotFoundError:
        return ""


def _licence_section(licence: str | None) -> str:
    if licence is None:
        return "None was given. Without one, nobody but its owner may use this model."
    return escaped(licence)
