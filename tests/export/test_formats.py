"""The registry of export formats: adding one takes a file with two functions, and an entry."""

from inspect import signature
from pathlib import Path
from pkgutil import resolve_name

import pytest
from click.testing import Result
from safetensors.torch import save_file
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource, load_source
from ldm.export.formats.exporter import ExportedModel, ReadBack, Usage
from ldm.export.formats.formats import FORMATS, ExportFormat
from ldm.export.verify.compare import Verdict
from ldm.io.json_files import read_json
from ldm.models.devices import DTYPES
from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sd1

# A made-up format, as a file of its own would define it: the UNet's weights alone


def export_unet(source: ExportSource, folder: Path, options: ExportOptions, name: str) -> ReadBack:
    save_file(source.parts.denoiser.unet.state_dict(), folder / f"{name}.safetensors")
    return lambda: (Verdict("made-up 1.0", 0.25),)


def unet_usage(exported: ExportedModel) -> Usage:
    line = f'pipe = load("{exported.place}/{exported.name}.safetensors")'
    return Usage(
        (line,), ("from made_up import load",), pipeline_class=None, library="made-up", package="made-up"
    )


UNET_ONLY = ExportFormat(
    "the UNet alone",
    f"{__name__}:export_unet",
    f"{__name__}:unet_usage",
    tags=("unet-only",),
    packages=("pytest",),
)


def test_a_new_format_is_an_entry_and_two_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is exported, verified, recorded and described like the others."""
    monkeypatch.setitem(FORMATS, "unet-only", UNET_ONLY)
    save_parts(make_sd1(tmp_path / "tokenizer"), tmp_path / "model")
    dest = tmp_path / "out"
    options = ExportOptions(format="unet-only", num_samples=0, repo_id="ann/unet")
    report = export(load_source(tmp_path / "model"), dest, options)
    assert [str(verdict.reader) for verdict in report.verdicts] == ["made-up 1.0"]
    assert sorted(path.name for path in dest.iterdir()) == ["README.md", "export.json", "out.safetensors"]
    record = read_json(dest / "export.json")
    assert (record["format"], list(record["files"])) == ("unet-only", ["out.safetensors"])
    card = (dest / "README.md").read_text()
    assert "- unet-only\n" in card and "in the format `unet-only`" in card
    assert "With made-up, after `pip install made-up`:" in card
    assert 'from made_up import load\n\npipe = load("ann/unet/out.safetensors")\nimage = pipe(' in card
    assert f"pytest {pytest.__version__}" in card and "ldm generate" not in card


def test_a_new_format_is_accepted_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "unet-only", UNET_ONLY)
    save_parts(make_sd1(tmp_path / "tokenizer"), tmp_path / "model")
    done = ldm_export(tmp_path / "model", tmp_path / "out", "--format", "unet-only", "--num-samples", "0")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.output
    refused = ldm_export(tmp_path / "model", tmp_path / "new", "--format", "unet-ony")
    assert "did you mean 'unet-only'?" in refused.stderr


def ldm_export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.mark.parametrize("name", FORMATS)
def test_every_entry_names_functions_with_the_right_signature(name: str) -> None:
    export_function, usage = (resolve_name(path) for path in (FORMATS[name].export, FORMATS[name].usage))
    assert signature(export_function) == signature(export_unet)
    assert signature(usage) == signature(unet_usage)


def test_the_help_names_every_format_and_number_format() -> None:
    """Formats come from the registry; number formats are written out, because their table imports torch."""
    text = " ".join(ldm_export("--help").stdout.split())
    for name, entry in FORMATS.items():
        assert f"{name}: {entry.summary}" in text
    assert all(dtype in text for dtype in DTYPES)
    text = CliRunner().invoke(app, ["import", "--help"]).stdout
    assert all(dtype in text for dtype in DTYPES)
