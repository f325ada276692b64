"""`ldm compare RUN...`: candidates, images shared by all, the page, resuming, refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.cli.compare import parse_numbers
from ldm.cli.tournament import Varied, find_candidates
from ldm.errors import UserError
from ldm.evaluation import tournament_job
from ldm.evaluation.evaluation_job import Measurer
from ldm.evaluation.intervals import Estimate
from ldm.evaluation.svg_plot import axis, line_plot
from ldm.models.loading.model import load_parts, save_parts
from tests.support.tiny_generate import save_model
from tests.support.tiny_images import photo

SMALL = ["--height", "16", "--width", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that differ in a weight, and 20 photos."""
    root = tmp_path_factory.mktemp("tournament")
    parts = load_parts(save_model(root))
    with torch.no_grad():
        parts.denoiser.unet.conv_out.bias += 0.5
    save_parts(parts, root / "two")
    (root / "data").mkdir()
    for number in range(20):
        photo(seed=number).save(root / f"data/{number:02d}.png")
        (root / f"data/{number:02d}.txt").write_text(f"image {number}")
    return root


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)


def arguments(folder: Path, output: Path, *more: object) -> list[object]:
    data = ["--data", folder / "data", "--output", output, "--quiet", "--json"]
    steps = ["--num-inference-steps", "1,2"]
    return [folder / "one", folder / "two", *data, *steps, *SMALL, "--budget", 128, *more]


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    done = compare(*arguments(folder, folder / "out"))
    assert done.exit_code == 0, done.output
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_the_verdict_the_ranking_and_the_page(folder: Path, found: dict[str, Any]) -> None:
    assert found == json.loads((folder / "out/tournament.json").read_text())
    labels = {row["label"] for row in found["ranking"]}
    assert labels == {"one, steps 1", "one, steps 2", "two, steps 1", "two, steps 2"}
    assert found["num_images"] == sum(row["num_images"] for row in found["ranking"]) <= 128
    assert (found["winner"] is None) == (len(found["possible"]) != 1)
    values = [row["value"] for row in found["ranking"] if row["worse_than"] is None]
    assert values == sorted(values)  # KID: the lowest is the best
    page = (folder / "out/tournament.html").read_text()
    assert all(label in page for label in labels) and "<svg" in page and "data:image/jpeg" in page
    assert (folder / "out/curves.svg").read_text().startswith("<svg")


def test_a_second_call_makes_nothing_again_and_says_the_same(
    folder: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    chunk = Measurer.chunk
    monkeypatch.setattr(Measurer, "chunk", lambda self, one: made.append(one) or chunk(self, one))
    one = next((folder / "out/candidates").rglob("generated-00000.safetensors"))
    one.unlink()
    assert json.loads(compare(*arguments(folder, folder / "out")).stdout) == found
    assert [each.number for each in made] == [0]


def test_all_candidates_make_the_same_images_of_equal_models(folder: Path, tmp_path: Path) -> None:
    """A copy of a model is neither better nor worse: each of its scores is the same."""
    save_parts(load_parts(folder / "one"), tmp_path / "copy")
    command = [folder / "one", tmp_path / "copy", "--data", folder / "data", "--output", tmp_path / "out"]
    done = compare(*command, *SMALL, "--num-inference-steps", 1, "--budget", 64, "--json", "--quiet")
    facts = json.loads(done.stdout)
    assert facts["winner"] is None and len(facts["possible"]) == 2
    assert facts["ranking"][0]["value"] == facts["ranking"][1]["value"]


def test_the_checkpoints_of_a_run_are_candidates(tmp_path: Path) -> None:
    for step in (20, 100):
        checkpoint = tmp_path / f"run/checkpoints/step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text("{}")
    varied = Varied(weights=("average", "0.1"), guidance_scale=(1.0, 4.0))
    found = list(find_candidates([tmp_path / "run"], varied))
    assert len({each.label for each in found}) == len(found) == 8
    assert (
        found[0].label == "run, step 20, guidance 1" and found[-1].label == "run, step 100, 0.1, guidance 4"
    )
    last = list(find_candidates([tmp_path / "run"], Varied("last")))
    assert [each.step for each in last] == [100]
    one = list(find_candidates([tmp_path / "run/checkpoints/step-000020"], Varied()))
    assert [each.label for each in one] == ["run, step 20"]
    with pytest.raises(UserError, match="has no checkpoint"):
        list(find_candidates([tmp_path / "model"], varied))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --data PATH, --prompts FILE"),
        (["--data", "{data}"], "one candidate"),
        (["--data", "{data}", "--num-inference-steps", "1,2", "--budget", 40], "give 48 or more"),
        (["--data", "{data}", "--num-inference-steps", "1,2", "--budget", 10**9], "is above"),
        (["--data", "{data}", "--num-inference-steps", "1,1"], "give different whole numbers"),
        (["--data", "{data}", "--num-inference-steps", "1.5"], "give different whole numbers"),
        (["--data", "{data}", "--guidance-scale", "a"], "give different numbers"),
        (["--data", "{data}", "--metric", "fid"], "choose from kid, clip, judge"),
        (["--data", "{data}", "--checkpoints", "best"], "choose from all, last"),
        (["--data", "{data}", "--guidance-scale", "1,2", "--metric", "judge"], "the judge cannot read"),
        (["--data", "{data}", "--guidance-scale", "1,2", "--metric", "clip"], "give --clip"),
        (["--data", "{data}", "--weights", "average,trained"], "has no checkpoint"),
        (["--prompts", "{data}/00.txt", "--guidance-scale", "1,2", "--metric", "kid"], "give --data"),
        (["--data", "{data}", "--guidance-scale", "1,2", "--output", "{data}/out"], "inside the data"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [str(each).format(data=folder / "data") for each in more]
    if options == []:
        options = ["--guidance-scale", "1,2"]
    done = compare(folder / "one", *options)
    assert done.exit_code == 2 and message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not list(tmp_path.iterdir())


def test_evaluations_and_runs_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    done = compare(tmp_path, folder / "one")
    assert done.exit_code == 2 and "one/evaluation.json does not exist" in done.stderr


def test_candidates_whose_features_differ_are_not_compared(folder: Path, tmp_path: Path) -> None:
    parts = load_parts(folder / "one")
    with torch.no_grad():
        parts.autoencoder.vae.quant_conv.bias += 0.1
    save_parts(parts, tmp_path / "other")
    done = compare(
        folder / "one", tmp_path / "other", "--data", folder / "data", "--output", tmp_path / "out", *SMALL,
        "--num-inference-steps", 1,
    )  # fmt: skip
    assert done.exit_code == 2 and "different autoencoders" in done.stderr


def test_numbers_are_read_and_drawn() -> None:
    assert parse_numbers("--x", "1,2.5", least=0) == (1.0, 2.5) and parse_numbers("--x", None, least=0) == ()
    assert axis([0, 90], 0, 1).ticks == [0, 20, 40, 60, 80]
    assert axis([5, 5], 0, 1)(5) == pytest.approx(0.5)
    one = {1.0: Estimate(2.0, 1.0, 3.0), 2.0: Estimate(1.0, 0.5, 1.5)}
    plot = line_plot({"a<b": one, "c": one}, "steps", "kid")
    assert plot.count("<circle") == 6 and "a&lt;b" in plot
    at = [float(each) for each in re.findall(r'cx="([0-9.]+)" cy="[0-9.]+" r="3"', plot)]
    assert [at[2] - at[0], at[3] - at[1]] == pytest.approx([4, 4])  # or the intervals would hide each other
    assert tournament_job.STEP == tournament_job.CHUNK
