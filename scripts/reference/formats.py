"""The page of export formats, samplers and presets, from the registries."""

from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS
from ldm.export.formats.formats import FORMATS
from ldm.models.devices import DTYPES
from ldm.models.generation_settings import PRESETS

from .markdown import code, page, table


def formats_page() -> str:
    formats = table(("format", "for"), ((code(name), entry.summary) for name, entry in FORMATS.items()))
    dtypes = "Number formats of weights: " + ", ".join(map(code, DTYPES)) + "."
    presets = table(
        ("preset", "settings"),
        (
            (code(name), code(", ".join(f"{key}={value}" for key, value in given.items())))
            for name, given in PRESETS.items()
        ),
    )
    return page(
        "Formats, samplers and presets",
        "## Export formats\n\nFor `ldm export --format`.",
        formats,
        dtypes,
        "## Samplers\n\nFor `--scheduler`, `scheduler=` and `defaults.scheduler`. Each is a diffusers scheduler. "
        f"`{OWN_SCHEDULER}` stands for the class and all settings of the model's own scheduler config.",
        samplers(),
        "## Presets\n\nFor `ldm generate --preset`.",
        presets,
    )


def samplers() -> str:
    """The table of samplers."""
    rows = [
        (
            code(name),
            entry.title,
            code(entry.class_name),
            *(code(entry.on_path[path]) if path in entry.on_path else "" for path in ("flow", "edm")),
            "yes" if entry.stochastic else "",
            "" if entry.reads_sample else "no",
            entry.requires or "",
        )
        for name, entry in SCHEDULERS.items()
    ]
    return table(
        (
            "name",
            "title",
            "diffusers class",
            "path flow",
            "path edm",
            "adds noise",
            "prediction type `sample`",
            "requires",
        ),
        rows,
    )
