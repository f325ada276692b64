"""The model card: its metadata, its text, and what must not be in it."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

from ldm.diffusion.schedulers import few_step_config
from ldm.errors import UserError
from ldm.export.card.data_facts import hub_datasets
from ldm.export.card.facts import find_base
from ldm.export.card.front_matter import licence_keys
from ldm.export.card.run_record import RunRecord, read_run
from ldm.export.card.training_facts import held_out_loss, measurements_of, training_facts
from ldm.export.export_source import ExportSource, load_source
from ldm.export.formats.exporter import BaseModel
from tests.support.tiny_card import FINGERPRINT, card_of, make_run, sample_image, section, whole_model

TOKEN = "hf_" + "aB3" * 11


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA's run; tests that change it copy it first."""
    torch.manual_seed(0)
    return make_run(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def source(made: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    """The same, but without metrics: curves take time to draw."""
    run = Path(shutil.copytree(made, tmp_path_factory.mktemp("quiet") / "squares"))
    (run / "metrics.jsonl").unlink()
    return load_source(run)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_the_front_matter_is_what_the_hub_reads(source: ExportSource, tmp_path: Path) -> None:
    samples = [sample_image(), sample_image("a blue --- square: #1")]
    card = ModelCard(card_of(source, tmp_path / "out", format="lora-diffusers", samples=samples))
    assert card.data.to_dict() == {
        "license": "mit",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [
            "text-to-image", "diffusers", "stable-diffusion", "open-ldm", "lora", "template:diffusion-lora",
        ],
        "instance_prompt": "a sks drawing",
        "widget": [
            {"text": "a red apple", "output": {"url": "samples/01.png"}},
            {"text": "a blue --- square: #1", "output": {"url": "samples/02.png"}},
        ],
    }  # fmt: skip
    assert card.text.lstrip().startswith("# Squares\n")
    for widget in card.data.widget:
        assert size_of(tmp_path / "out" / widget["output"]["url"]) == (16, 16)


def test_a_base_of_the_hub_is_named_with_its_relation(
    source: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_base(source, None) == BaseModel("base-model")
    monkeypatch.setattr("ldm.export.card.facts.hub_id_of", lambda given: "alice/squares-base")
    for format, relation in (("lora-kohya", "adapter"), ("diffusers", "finetune")):
        text = card_of(source, tmp_path / "out", format=format)
        data = ModelCard(text).data
        assert (data.base_model, data.base_model_relation) == ("alice/squares-base", relation)


def test_only_what_came_from_the_hub_is_called_its_model(
    source: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--alice--base"
    for file, text in {"refs/main": "abc", "refs/v1": "abc", "snapshots/abc/model_index.json": "{}"}.items():
        (cached / file).parent.mkdir(parents=True, exist_ok=True)
        (cached / file).write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def base(name: str) -> BaseModel | None:
        assert source.adapter is not None
        return find_base(replace(source, adapter=replace(source.adapter, base=name)), None)

    assert base("alice/base") == base("alice/base@v1") == BaseModel("alice/base", "alice/base")
    assert base("models/other") == BaseModel("other")
    (tmp_path / "alice" / "base").mkdir(parents=True)
    assert base("alice/base") == BaseModel("base")
    assert base("emoji") == BaseModel("emoji")


def test_the_sections_tell_what_made_the_model(made: Path, tmp_path: Path) -> None:
    source = load_source(made)
    card = card_of(source, tmp_path / "out", format="lora-diffusers")
    training, data = section(card, "Training"), section(card, "Data")
    assert "a LoRA of rank 2, alpha 4, layers: to\\_k, fc1, text encoder included" in training
    assert "60 of 4 images; the weights are from step 40, with the lowest held-out loss |" in training
    assert "| time | 0 h 04 min |" in training and "num_warmup_steps: 2" in training
    assert "| data | `my squares` |" in data
    assert "| images | 7 used, 0 refused, of 7 found |" in data
    assert "| captions | 14, 14 different |" in data
    assert "| size of the images, px | 16 x 16: 7 |" in data
    assert "| licences of the images | none named: 7 |" in data
    assert "| 0.125 at step 40, standard error 0.02 | `ldm train config.yaml` |" in section(card, "Measured")
    hashes = section(card, "Hashes")
    assert source.adapter is not None
    for value in (source.weights_hash, source.adapter.base_weights_hash, FINGERPRINT):
        assert f"`{value}`" in hashes
    assert f"diffusers {version('diffusers')}" in section(card, "Software")
    assert "trained on only 7 images" in section(card, "Limits and risks")
    assert size_of(tmp_path / "out" / "samples" / "curves.png")[0] > 600


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ((0.0, 1.0), "guidance 7.5 |"),
        ((0.0, 0.5), "from 0 to 0.5 of the steps (a stock pipeline guides all steps) |"),
        ((5.0, 0.3), "while the noise is 5 to 0.3 times the signal (a stock pipeline guides all steps) |"),
    ],
)
def test_where_guidance_is_used_is_told(tmp_path: Path, interval: tuple[float, float], told: str) -> None:
    source = whole_model(tmp_path)
    defaults = source.parts.defaults.model_copy(update={"guidance_interval": interval})
    source = replace(source, parts=replace(source.parts, defaults=defaults))
    assert told in section(card_of(source, tmp_path / "out"), "Model")


def test_memorisation_is_told_of_these_weights_alone(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "runs" / "squares"))
    (run / "metrics.jsonl").unlink()
    found = load_source(run)
    share = {"share": 0.75, "low": 0.5, "high": 0.9, "num_right": 6, "num_judged": 8}
    report = {"weights_hash": "0" * 64, "recall": {"num_training_images": 7, "top_1": share}}
    (tmp_path / "runs" / "evaluation").mkdir()
    (tmp_path / "runs" / "evaluation" / "report.json").write_text(json.dumps(report))
    limits = section(card_of(found, tmp_path / "other"), "Limits and risks")
    assert "was not measured" in limits and "75" not in limits
    report["weights_hash"] = found.weights_hash
    (tmp_path / "runs" / "evaluation" / "report.json").write_text(json.dumps(report))
    card = card_of(found, tmp_path / "same")
    assert "Memorisation was measured: for 75.0% of 8 training captions" in section(card, "Limits and risks")
    assert r"0.750 \[0.500, 0.900\] of 8 captions" in section(card, "Measured")


def reports_of(weights_hash: str) -> dict[str, dict[str, Any]]:
    """What `ldm evaluate` and `ldm audit memorisation` write, in part."""
    plan = {"weights_hash": weights_hash, "model": "runs/squares", "seed": 3}
    kid = {
        "name": "kid", "value": 0.0125, "low": -0.001, "high": 0.0261, "better": "lower", "num_images": 2000,
        "num_reference": 526, "protocol": {"extractor": {"name": "/home/quokka/dino"}}, "protocol_hash": "0123abcd",
    }  # fmt: skip
    unknown = {**kid, "name": "fid", "value": None, "low": None, "high": None}
    copies = {
        "plan": plan, "num_copies": 3, "num_images": 200, "share": 0.015, "low": 0.003, "high": 0.043,
        "planted_found": 0.9, "false_alarms": 0.01,
    }  # fmt: skip
    return {"evaluation.json": {"plan": plan, "measurements": [kid, unknown]}, "audit.json": copies}


def write_reports(folder: Path, weights_hash: str) -> Path:
    folder.mkdir(parents=True)
    for name, report in reports_of(weights_hash).items():
        (folder / name).write_text(json.dumps(report))
    return folder


def test_evaluations_beside_the_run_are_on_the_card_with_how_they_were_measured(
    made: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "runs" / "squares"))
    (run / "metrics.jsonl").unlink()
    source = load_source(run)
    write_reports(tmp_path / "runs" / "others", "0" * 64)
    assert "kid" not in card_of(source, tmp_path / "none")
    write_reports(run / "evaluation", source.weights_hash)
    card = card_of(source, tmp_path / "out")
    rows = section(card, "Measured")
    assert "| kid, features dino; lower is better; measured as 0123abcd |" in rows
    assert r"| 0.0125 \[-0.001, 0.0261\] on 2,000 images against 526 real ones |" in rows
    assert "`ldm evaluate MODEL --data DATA --num-images 2000`" in rows
    assert "fid" not in rows and "quokka" not in card  # without a value; and only the last part of a path
    assert r"| 0.015 \[0.003, 0.043\] of 200 images |" in rows and "90% of planted copies are found" in rows
    assert "3 of 200 generated images are one; the count finds 90%" in section(card, "Limits and risks")


def test_an_evaluation_that_is_named_must_be_of_this_model(tmp_path: Path) -> None:
    source = whole_model(tmp_path)
    folder = write_reports(tmp_path / "evaluation", source.weights_hash)
    card = card_of(source, tmp_path / "out", evaluations=[folder / "audit.json", folder])
    assert section(card, "Measured").count("measured as") == 2  # the same report counts once
    other = write_reports(tmp_path / "other", "0" * 64)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.json").write_text('{"measurements": [{"name": 3}], "num_copies": "many"}')
    for path, said in (
        (other, "is of another model"),
        (tmp_path / "empty", "has no evaluation.json or audit.json"),
        (tmp_path / "odd.json", "is not a report of ldm evaluate"),
    ):
        with pytest.raises(UserError, match=said):
            card_of(source, tmp_path / "out", evaluations=[path])


def test_nothing_private_is_in_it(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "tower-7.example.org")
    monkeypatch.setenv("HOME", "/home/quokka")
    monkeypatch.setenv("MY_TOKEN", "correct horse battery")
    run = Path(shutil.copytree(made, tmp_path / "runs" / "squares"))
    config = (run / "config.yaml").read_text()
    planted = [
        "note: see /home/quokka/notes.txt on tower-7, by Quokka",
        f"wandb: '{TOKEN}'",
        "extra: correct horse battery",
        "windows: 'C:\\Users\\quokka\\data set'",
        "home: /home/someone",
        "address: https://quokka:hunter2@example.org/x",
    ]
    (run / "config.yaml").write_text(config + "\n".join(planted) + "\n")
    samples = [sample_image("a red apple for quokka, see /home/quokka/apple.png"), sample_image()]
    folder = tmp_path / "out"
    card_of(load_source(run), folder, format="lora-kohya", samples=samples)
    private = [
        "quokka", "tower-7", TOKEN, "correct horse", "hunter2", "someone", "/home", "\\users", str(tmp_path), "/tmp",
    ]  # fmt: skip
    for path in folder.rglob("*"):
        content = path.read_bytes().decode("latin-1").lower() if path.is_file() else ""
        assert [word for word in private if word.lower() in content] == [], path
    assert "run_dir: squares" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("step", "weights", "measured"), [(60, "average", True), (60, "trained", False), (50, "average", False)]
)
def test_a_checkpoints_card_tells_of_its_own_step(
    step: int, weights: str, measured: bool, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "pipeline", tmp_path / "model")
    provenance = {"provenance": {"step": step, "weights": weights}}
    (tmp_path / "model" / "ldm.json").write_text(json.dumps(provenance))
    run = read_run(made, tmp_path / "model", "")
    assert (run.step, run.weights) == (step, weights)
    measurements = [
        (one.what, one.value) for one in [*held_out_loss(run), *measurements_of(run.reports, run)]
    ]
    assert measurements == [("loss on held-out images", "0.25 at step 60, standard error 0.02")] * measured
    assert not training_facts(run).is_best
    card = card_of(replace(load_source(made), run=made, folder=tmp_path / "model"), tmp_path / "out")
    assert f"are from step {step}{' (trained)' * (weights == 'trained')} |" in section(card, "Training")


def test_a_run_of_which_little_is_known_has_a_card(tmp_path: Path) -> None:
    found = whole_model(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("program: denoiser\ndata: {path: data/cats}\n")
    card = card_of(replace(found, run=tmp_path / "old"), tmp_path / "out", samples=[])
    assert "The run wrote no data report." in section(card, "Data") and "`cats`" in section(card, "Data")
    assert "\n## Curves\n" not in card and "\n## Samples\n" not in card and "\n## Measured\n" not in card
    assert "from scratch" in section(card, "Training")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["README.md"]


def test_a_streams_report_is_told(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "squares"))
    (run / "metrics.jsonl").unlink()
    counts = {"num_shards": 9, "num_shards_seen": 4, "num_found": 2000, "num_used": 1990, "num_refused": 10}
    (run / "data_report.json").write_text(json.dumps({**counts, "buckets": {"16 x 16": 1990}, "shards": []}))
    data = section(card_of(load_source(run), tmp_path / "out"), "Data")
    assert "| images | 1,990 used, 10 refused, of 2,000 found |" in data
    assert "| shards | 4 seen of 9 |" in data


@pytest.mark.parametrize(
    ("licence", "keys"),
    [
        ("MIT", {"license": "mit"}),
        (" Apache-2.0 ", {"license": "apache-2.0"}),
        (None, {"license": "unknown"}),
        ("My own, v2", {"license": "other", "license_name": "my-own-v2"}),
        (
            "https://example.org/Terms.html",
            {
                "license": "other",
                "license_name": "example.org-terms.html",
                "license_link": "https://example.org/Terms.html",
            },
        ),
    ],
)
def test_a_licence_is_given_as_the_hub_has_it(licence: str | None, keys: dict[str, str]) -> None:
    assert licence_keys(licence) == keys


def test_without_a_licence_the_card_says_so(source: ExportSource, tmp_path: Path) -> None:
    card = card_of(source, tmp_path / "out", licence=None)
    assert section(card, "Licence").startswith("No licence was given.")


@pytest.mark.parametrize(
    "data",
    [
        {"path": "ann/photos", "kind": "datasets"},
        {
            "path": None,
            "sources": [{"path": "ann/photos", "kind": "datasets"}, {"path": "mine", "kind": "auto"}],
        },
    ],
)
def test_a_data_set_of_the_hub_is_named_wherever_the_settings_have_it(data: dict[str, Any]) -> None:
    run = RunRecord("run", {"data": data}, [], None, None, "average", [])
    assert hub_datasets(run) == ["ann/photos"]
    assert hub_datasets(None) == []


def test_the_card_of_a_lora_for_few_steps_names_the_sampler_and_the_settings(
    source: ExportSource, tmp_path: Path
) -> None:
    parts = replace(
        source.parts,
        scheduler_config=few_step_config(source.parts.scheduler_config, 50),
        defaults=source.parts.defaults.model_copy(
            update={"scheduler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}
        ),
    )
    card = card_of(replace(source, parts=parts), tmp_path / "card", format="lora-diffusers")
    assert "from diffusers import LCMScheduler, StableDiffusionPipeline" in card
    assert "pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)" in card
    assert "num_inference_steps=4, guidance_scale=1.0" in card
    assert "--scheduler lcm --num-inference-steps 4 --guidance-scale 1" in card
    assert "LCMScheduler" not in card_of(source, tmp_path / "usual", format="lora-diffusers")
