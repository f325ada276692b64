"""Our files read by other programs: every format of every kind of model, and the settings in images.

`LDM_WRITE_TABLE=1 pytest -m slow tests/export/test_compatibility.py` writes the results to docs/compatibility.md.
"""

import os
import shutil
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.verify.compare import TOLERANCE
from ldm.models.adapters.folder import Adapter, find_base, save_adapter
from ldm.models.adapters.lora import LoraSettings
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.loading.source import EMBEDDED
from ldm.pipeline.pipeline import load_pipeline
from tests.support.tiny_loras import trained
from tests.support.tiny_single_file import make_narrow_sd1, make_narrow_sd2

TABLE = Path(__file__).parents[2] / "docs" / "compatibility.md"
MODELS = {
    "sd1": "SD1-type, epsilon, random weights",
    "sd2": "SD2-type, v, random weights",
    "emoji": "the embedded model, v",
}
WHOLE = [
    ("diffusers", "float32"),
    ("diffusers", "float16"),
    ("single-file", "float32"),
    ("openvino", "float32"),
]
ADAPTED = [
    ("diffusers", "float32"),
    ("lora-diffusers", "float32"),
    ("lora-peft", "float32"),
    ("lora-kohya", "float32"),
]
CASES = [
    (model, *case, False)
    for model in MODELS
    for case in WHOLE
    if (model, case[0]) != ("emoji", "single-file")
]
CASES += [(model, *case, True) for model in MODELS for case in ADAPTED]
LORA = LoraSettings(rank=4, alpha=6, target_modules="all", text_encoder=True)
"""Alpha differs from the rank; convolutions and the text encoder are changed."""

Row = tuple[str, str, str]


@pytest.fixture(scope="module")
def measured() -> dict[Row, tuple[str, float]]:
    """The reader and the largest difference, by model, addition and format."""
    return {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models, and a LoRA for each with the suffix `-lora`."""
    root = tmp_path_factory.mktemp("models")
    save_parts(make_narrow_sd1(), root / "sd1")
    save_parts(make_narrow_sd2(), root / "sd2")
    found = {"sd1": root / "sd1", "sd2": root / "sd2", "emoji": EMBEDDED["emoji"]}
    for name, folder in list(found.items()):
        base, weights = find_base(folder), trained(load_parts(folder), LORA)
        parts = load_parts(folder)
        adapter = Adapter(
            "lora", str(folder), base.weights_hash, parts.scheduler_config, LORA.model_dump(mode="json")
        )
        save_adapter(root / f"{name}-lora", adapter, weights, parts.defaults)
        found[f"{name}-lora"] = root / f"{name}-lora"
    return found


@pytest.mark.slow
@pytest.mark.openvino
@pytest.mark.parametrize(("model", "format", "dtype", "adapted"), CASES)
def test_the_reader_draws_what_we_draw(
    folders: dict[str, Path],
    measured: dict[Row, tuple[str, float]],
    tmp_path: Path,
    model: str,
    format: str,
    dtype: str,
    adapted: bool,
) -> None:
    if format == "openvino" and find_spec("openvino") is None:
        pytest.skip("openvino is not installed")  # an import here would be reported
    source = load_source(folders[model + ("-lora" if adapted else "")])
    report = export(source, tmp_path / "out", ExportOptions(format=format, dtype=dtype, num_samples=0))
    (verdict,) = report.verdicts
    assert verdict.largest_difference <= TOLERANCE
    assert verdict.lora_effect is None or verdict.lora_effect > TOLERANCE
    what = f"{format}, {dtype}" + (", LoRA fused" if adapted and format == "diffusers" else "")
    measured[MODELS[model], "with a LoRA" if adapted else "", what] = (
        verdict.reader,
        verdict.largest_difference,
    )


@pytest.mark.slow
@pytest.mark.openvino
@pytest.mark.parametrize("model", ["sd1", "sd2"])
def test_transformers_reads_the_tokenizer_and_the_text_encoder(
    folders: dict[str, Path], measured: dict[Row, tuple[str, float]], tmp_path: Path, model: str
) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    prompt, parts = "a red apple, 3 pears & a café", load_parts(folders[model])
    shutil.copytree(folders[model] / "tokenizer", tmp_path / "words")
    (tmp_path / "words/tokenizer.json").unlink()  # as readers before transformers 5 need it
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "words")
    ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(ids, parts.text_encoder.tokenize([prompt]))
    with torch.no_grad():
        theirs = CLIPTextModel.from_pretrained(folders[model] / "text_encoder")(ids).last_hidden_state
    ours = parts.text_encoder([prompt]).prompt_embeds
    difference = float((ours - theirs).abs().max())
    assert difference <= 1e-5
    measured[MODELS[model], "", "text encoder and words"] = (
        f"transformers {version('transformers')}",
        difference,
    )


@pytest.mark.slow
@pytest.mark.openvino
def test_sd_parsers_reads_the_settings_in_an_image(
    measured: dict[Row, tuple[str, float]], tmp_path: Path
) -> None:
    parsers = pytest.importorskip("sd_parsers")
    from ldm.pipeline.record import write_png

    made = load_pipeline("emoji").generate(
        'a red apple: "ripe", big', seed=7, negative_prompt="blue", num_images=2
    )
    write_png(tmp_path / "apple.png", made.images[1], made.settings[1])
    (sampler,) = parsers.ParserManager().parse(tmp_path / "apple.png").samplers
    assert [prompt.value for prompt in sampler.prompts] == ['a red apple: "ripe", big']
    assert [prompt.value for prompt in sampler.negative_prompts] == ["blue"]
    assert sampler.parameters["seed"] == "8"
    reader = f"sd-parsers {version('sd-parsers')}"
    measured[MODELS["emoji"], "", "settings in a PNG"] = reader, 0.0


@pytest.mark.slow
@pytest.mark.openvino
def test_the_table_is_written(measured: dict[Row, tuple[str, float]]) -> None:
    if os.environ.get("LDM_WRITE_TABLE"):
        TABLE.write_text(table(measured), encoding="utf-8")
    assert len(measured) >= len(CASES)


def test_the_table_has_every_case() -> None:
    text = TABLE.read_text(encoding="utf-8")
    for model, format, dtype, adapted in CASES:
        row = f"| {MODELS[model]} | {'with a LoRA' if adapted else ''} | {format}, {dtype}"
        assert row in text, row
    assert asdict(ExportOptions())["format"] in text


def table(measured: dict[Row, tuple[str, float]]) -> str:
    """docs/compatibility.md."""
    rows = [
        f"| {model} | {added} | {what} | {reader} | {difference:.2g} |"
        for (model, added, what), (reader, difference) in measured.items()
    ]
    head = [
        "# Compatibility with other libraries",
        "",
        "Written by `LDM_WRITE_TABLE=1 pytest -m slow tests/export/test_compatibility.py`. Each model is exported.",
        "A fresh process without any OpenLDM code in its computation loads it with the named reader, generates an",
        "image from fixed noise (4 steps, guidance 3) and encodes one. The difference is the largest one between",
        "any of its values and ours, in 255ths; for the text encoder it is that of its output.",
        "",
        "| model | | format | reader | largest difference |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])
