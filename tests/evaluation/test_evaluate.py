"""`ldm evaluate`: the same numbers for any number of processes, resuming, hashes, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.cli.evaluate import plan_job
from ldm.evaluation import evaluation_job as job_module
from ldm.evaluation.evaluate import measure
from ldm.evaluation.evaluation_job import EvaluationJob, Measurer, read_features, read_job, run_rank
from ldm.evaluation.intervals import Estimate
from ldm.evaluation.measurement import Measurement, columns
from tests.support.tiny_generate import save_model
from tests.support.tiny_images import photo

FEW_STEPS = {"num_inference_steps": 1, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(20):
        photo(seed=number).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"image {number}")
    return folder


def job_in(folder: Path, model: Path, data: Path | None, **changes: Any) -> EvaluationJob:
    arguments: dict[str, Any] = {
        "data": None if data is None else str(data),
        "columns": {},
        "prompt_file": None,
        "num_images": 24,
        "seed": 0,
        "settings": FEW_STEPS,
        "output": folder,
        "quiet": True,
        "options": {"features": "autoencoder"},
    }
    return plan_job(str(model), **{**arguments, **changes})


def made(job: EvaluationJob, num_processes: int = 1) -> list[dict[str, Any]]:
    """The measurements after each process has made its share, in this process."""
    for rank in range(num_processes):
        run_rank(job, rank, num_processes)
    return [each.to_dict() for each in measure(job, read_features(job))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> EvaluationJob:
    job = job_in(tmp_path_factory.mktemp("alone"), model, data)
    made(job)
    return job


def test_the_numbers_do_not_depend_on_the_number_of_processes(
    alone: EvaluationJob, tmp_path: Path, model: Path, data: Path
) -> None:
    """To the last digit: chunks are made alike and read in order."""
    apart = job_in(tmp_path, model, data)
    assert json.dumps(made(apart, 3)) == json.dumps(made(alone))
    names = [each["name"] for each in made(alone)]
    assert names == [
        "kid", "cmmd", "second_moment", "fid", "precision", "recall", "density", "coverage", "pair_ssim",
    ]  # fmt: skip


def test_a_stopped_evaluation_continues_with_the_missing_chunks(
    alone: EvaluationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [each.to_dict() for each in measure(alone, read_features(alone))]
    missing = alone.chunks[-1]
    alone.path(missing).unlink()
    asked = []
    chunk = Measurer.chunk
    monkeypatch.setattr(Measurer, "chunk", lambda self, one: asked.append(one) or chunk(self, one))
    assert made(alone) == before
    assert asked == [missing]


def test_features_of_another_evaluation_are_not_mixed_in(
    alone: EvaluationJob, model: Path, data: Path
) -> None:
    other = job_in(alone.folder, model, data, seed=5)
    with pytest.raises(job_module.UserError, match="another model, data set or settings"):
        run_rank(other)


def test_a_job_is_read_by_other_processes_as_it_was_written(alone: EvaluationJob, tmp_path: Path) -> None:
    alone.write(tmp_path)
    assert read_job(tmp_path) == alone


def test_images_of_the_reference_itself_have_no_distance(alone: EvaluationJob, tmp_path: Path) -> None:
    """With the reference's own features as generated ones, the estimates are not above 0, and all overlap."""
    kept = read_features(alone)
    same = type(kept)(kept.plan, {**kept.generated, "features": kept.reference["features"]}, kept.reference)
    found = {each.name: each.estimate for each in measure(alone, same)}
    assert found["kid"].value <= 0 and found["cmmd"].value <= 0 and found["second_moment"].value <= 0
    assert found["precision"].value == found["recall"].value == found["coverage"].value == 1


def measurement(**changes: Any) -> Measurement:
    given: dict[str, Any] = {
        "name": "kid", "estimate": Estimate(1.0, 0.5, 1.5), "better": "lower", "num_images": 10, "num_reference": 20,
        "interval": "score", "protocol": {"extractor": "a", "size": [8, 8]},
    }  # fmt: skip
    return Measurement(**{**given, **changes})


def test_numbers_with_different_hashes_are_never_in_one_column() -> None:
    first, better = measurement(), measurement(estimate=Estimate(0.1, 0.0, 0.2))
    assert first.protocol_hash == better.protocol_hash  # the hash is of how it was measured
    others = [
        measurement(num_images=11), measurement(num_reference=21), measurement(name="fid"),
        measurement(protocol={"extractor": "b", "size": [8, 8]}),
    ]  # fmt: skip
    assert len({each.protocol_hash for each in (first, *others)}) == 5
    table = columns([[each.to_dict()] for each in (first, better, *others)])
    assert len(table) == 5
    shared = [column for column in table if sum(cell is not None for cell in column.cells) > 1]
    assert [column.cells[:2] for column in shared] == [(first.to_dict(), better.to_dict())]


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def test_the_command_prints_json_and_writes_a_page(model: Path, data: Path, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in FEW_STEPS.items()]
    done = evaluate(
        model, "--data", data, "-n", 12, *options, "--output", tmp_path / "out", "--json", "--quiet"
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts == json.loads((tmp_path / "out/evaluation.json").read_text())
    page = (tmp_path / "out/evaluation.html").read_text()
    for each in facts["measurements"]:
        assert each["protocol_hash"] in page
        assert each["value"] is None or each["low"] is None or each["low"] <= each["value"] <= each["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate on"),
        (["--prompts", "missing.txt"], "missing.txt does not exist"),
        (["--data", "missing"], "missing"),
        (["--data", "{data}", "--output", "{data}/out"], "inside the data"),
        (["--prompts", "{prompts}"], "settings or images of its own"),
        (["--data", "{data}", "--features", "inception", "--num-inference-steps", "1"], "pip install"),
        (["--data", "{data}", "--features", "nowhere"], "no config.json"),
        (["--data", "{data}", "--seed", str(2**63 - 1)], "the last image's seed"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "seed": 3}\n')
    places = {"data": data, "prompts": "prompts.jsonl"}
    done = evaluate(model, *(each.format(**places) for each in arguments))
    assert done.exit_code == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


def test_clip_scores_of_a_pair_in_the_transformers_layout(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPConfig, CLIPModel

    from tests.support.tiny_models import make_tokenizer

    torch.manual_seed(0)
    tokenizer = make_tokenizer(tmp_path / "pair")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip
    vision = {**sizes, "image_size": 24, "patch_size": 8}
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    network.save_pretrained(tmp_path / "pair")
    (tmp_path / "prompts.txt").write_text("a red apple\na blue square\n")
    job = job_in(
        tmp_path / "out",
        model,
        None,
        prompt_file=tmp_path / "prompts.txt",
        num_images=12,
        options={"features": "autoencoder", "clip": str(tmp_path / "pair")},
    )
    found = {each["name"]: each for each in made(job)}
    assert set(found) == {"pair_ssim", "clip_score"}
    kept = read_features(job).generated
    with torch.no_grad():
        encoded = tokenizer([job.prompts[0]], padding="max_length", max_length=16, return_tensors="pt")
        theirs = network.get_text_features(**encoded)
    theirs = getattr(theirs, "pooler_output", theirs)
    assert torch.allclose(kept["clip_texts"][0], theirs[0], atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(kept["clip_images"].double(), kept["clip_texts"].double())
    assert found["clip_score"]["value"] == pytest.approx(float(100 * cosine.clamp(min=0).mean()))
