"""The shapes recipe on a small scale: its configurations with few steps, scored by the judge."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.demos.shapes_drawing import write_shapes
from ldm.demos.shapes_score import score_shapes
from ldm.export.export_source import load_source
from ldm.pipeline.pipeline import load_pipeline
from tests.support.tiny_card import card_of, section
from train import autoencoder, denoiser, text_encoder

CONFIGS = Path(__file__).parents[2] / "configs" / "shapes"
SMALL = [
    "data.holdout_fraction=0",
    "log_every=1",
    "optim.num_warmup_steps=2",
    "device=cpu",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 64 drawings and the three runs of the recipe."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "data", num_images=64, size_px=32)
    parts = [f"parts.autoencoder={folder}/autoencoder", f"parts.text_encoder={folder}/text_encoder"]
    for program, num_steps, batch_size, more in (
        (autoencoder, 20, 8, []),
        (text_encoder, 4, 8, ["optim.learning_rate=1e-4"]),
        (denoiser, 26, 16, [*parts, "preview.num_inference_steps=2"]),
    ):
        name = program.__name__.rpartition(".")[2]
        run = [f"run_dir={folder}/{name}", f"data.path={folder}/data", f"num_steps={num_steps}"]
        few = [f"global_batch_size={batch_size}", *SMALL, *more]
        assert program.main([str(CONFIGS / f"{name}.yaml"), *run, *few]) == 0
    return folder


@pytest.mark.parametrize("name", ["autoencoder", "denoiser"])
def test_each_program_learns(folder: Path, name: str) -> None:
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])  # single steps vary with the noise levels drawn


def test_the_judge_scores_what_the_model_draws(folder: Path) -> None:
    model, few = load_pipeline(folder / "denoiser"), {"num_inference_steps": 4}
    report = score_shapes(model, folder / "score", num_scenes=4, settings=few)
    for kind in ("seen", "held_out"):
        assert report[kind]["all"]["num_judged"] == 4
        assert 0 <= report[kind]["colour"]["share"] <= 1
        assert (folder / "score" / f"{kind}.png").is_file()
    assert json.loads((folder / "score/report.json").read_text()) == report


@pytest.mark.slow
def test_the_card_has_what_was_measured_beside_the_run(folder: Path, tmp_path: Path) -> None:
    """As `scripts/make_shapes_model.sh` ends, which names these folders."""
    model, few = str(folder / "denoiser"), ["--num-inference-steps", "1", "--data", str(folder / "data")]
    for name, command in (("evaluation", ["evaluate"]), ("copies", ["audit", "memorisation"])):
        call = [*command, model, *few, "--num-images", "10", "--output", str(folder / name)]
        done = CliRunner().invoke(app, call, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    measured = section(card_of(load_source(folder / "denoiser"), tmp_path / "out"), "Measured")
    assert "| kid, features autoencoder; lower is better; measured as " in measured
    assert "on 10 images against 64 real ones |" in measured
    assert "| copies of training images; " in measured and "of 10 images |" in measured
