"""The front matter of a model card: the metadata that the Hub reads."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from ldm.export.card.run_record import RunRecord
from ldm.export.card.task_words import TaskWords, words_for
from ldm.export.formats.exporter import ExportedModel
from ldm.export.formats.formats import FORMATS
from ldm.io.redaction import public_text

_LICENCES = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 "
    "lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail "
    "openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib"
)
HUB_LICENCES = frozenset(_LICENCES.split())
"""The values that the Hub accepts for `license`: SPDX names in lower case, and a few of its own."""


def front_matter(
    exported: ExportedModel,
    *,
    licence: str | None,
    datasets: Sequence[str],
    run: RunRecord | None,
    widget: Iterable[tuple[str, str]],
) -> str:
    """The metadata as YAML.

    Args:
        licence: of the weights.
        datasets: Hub ids.
        widget: prompts and the files of their images.
    """
    base = exported.base.hub_id if exported.base else None
    return metadata_yaml(
        **licence_keys(licence),
        library_name="diffusers",
        pipeline_tag=_words(exported).pipeline_tag,
        base_model=base,
        datasets=list(datasets) or None,
        tags=_tags(exported),
        base_model_relation=_relation(exported) if base else None,
        instance_prompt=exported.token or _caption_prefix(run),
        widget=[{"text": public_text(prompt), "output": {"url": file}} for prompt, file in widget] or None,
    )


def metadata_yaml(**fields: Any) -> str:
    """The Hub's metadata for a model as YAML; the fields are those of `huggingface_hub.ModelCardData`."""
    return ModelCardData(**fields).to_yaml()


def licence_keys(licence: str | None) -> dict[str, Any]:
    """`license`; if it is not on the Hub's list also `license_name` and, for an address, `license_link`."""
    if licence is None or not licence.strip():
        return {"license": "unknown"}
    identifier = licence.strip().lower()
    if identifier in HUB_LICENCES:
        return {"license": identifier}
    is_link = re.fullmatch(r"https?://\S+", licence.strip()) is not None
    name = re.sub(r"[^a-z0-9.]+", "-", re.sub(r"^https?://", "", identifier)).strip("-.")
    link = {"license_link": licence.strip()} if is_link else {}
    return {"license": "other", "license_name": name or "other"} | link


def _words(exported: ExportedModel) -> TaskWords:
    return words_for(exported.source.parts.task)


def _relation(exported: ExportedModel) -> str:
    return "adapter" if exported.is_lora or exported.has_separate_lora else "finetune"


def _tags(exported: ExportedModel) -> list[str]:
    adapter = exported.source.adapter
    words = _words(exported)
    tags = [words.pipeline_tag, "diffusers", "stable-diffusion", "open-ldm", *words.tags]
    tags += ["lora"] if adapter is not None and adapter.kind == "lora" else []
    tags += ["textual-inversion"] if exported.token else []
    return tags + list(FORMATS[exported.format].tags)


def _caption_prefix(run: RunRecord | None) -> str | None:
    """The text that the settings put before every caption of the training."""
    prefix = run.setting("captions.prefix") if run else None
    return public_text(prefix).strip(" ,") or None if isinstance(prefix, str) else None
