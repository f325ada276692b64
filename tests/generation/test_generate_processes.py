"""`ldm generate --num-processes N`: the same files as one process makes, and one line when something goes wrong."""

import json
from pathlib import Path

import pytest
import torch

from ldm.cli import generate_processes
from ldm.cli.generate_processes import main
from ldm.errors import UserError
from ldm.generation import job as shares
from ldm.generation.batches import plan_batches
from ldm.generation.job import GenerationJob, Share, read_job, run_rank
from ldm.generation.model_options import ModelOptions
from ldm.generation.pictures import Target, list_pictures
from ldm.generation.prompts import Prompt
from ldm.generation.reproduce import Recipe, RecordedLora
from ldm.pipeline.engine_choice import Work
from ldm.pipeline.record import read_settings
from tests.support.tiny_generate import files, generate, order_of, save_model

ROOT = Path(__file__).parents[2]
LONG = "a red apple on a table " * 9 + "beside a zebra"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


# The files


def test_the_shares_of_two_are_the_files_of_one(model: Path, tmp_path: Path) -> None:
    for num_processes in (1, 2):
        order = order_of(model, "a", "b", "c", LONG, "d", output=f"by-{num_processes}", batch_size=2)
        order.write(tmp_path)
        assert [main(tmp_path, rank, num_processes) for rank in range(num_processes)] == [0] * num_processes
    assert len(files("by-1")) == 5
    assert files("by-1") == files("by-2")


@pytest.mark.slow
def test_two_processes_make_the_files_of_one_and_say_what_one_says(model: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": text} for text in ("a", "b", "c")]
    rows += [{"prompt": "d", "scheduler": "euler_a", "num_images": 3}, {"prompt": LONG, "seed": 5}]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = [
        "--prompts",
        "prompts.jsonl",
        "--model",
        model,
        "--batch-size",
        2,
        "--grid",
        "--preset",
        "fast",
    ]
    one, two = (generate(*options, "--num-processes", n, "--output", f"by-{n}") for n in (1, 2))
    assert (one.exit_code, two.exit_code) == (0, 0)
    assert two.stdout == one.stdout.replace("by-1", "by-2")
    assert len(one.stdout.splitlines()) == 8
    assert files("by-1") == files("by-2")
    assert two.stderr == one.stderr
    assert one.stderr.startswith("warning: ")
    assert one.stderr.endswith("beside a zebra'\n")


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5, 9])
def test_the_shares_are_all_of_the_work_and_none_of_it_twice(num_processes: int) -> None:
    prompts = [Prompt(prompt=str(i), num_inference_steps=1 + i % 3) for i in range(31)]
    batches = plan_batches(list_pictures(prompts), 4)
    shares = [Share(rank, num_processes).of(batches) for rank in range(num_processes)]
    numbers = [picture.number for share in shares for batch in share for picture in batch.pictures]
    assert sorted(numbers) == list(range(1, 32))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_makes_its_own_share_and_goes_on_with_it(model: Path, tmp_path: Path) -> None:
    """A process looks at the files of its own share alone: those of the others may come at any time."""
    order_of(model, "a", "b", "c", resume=True).write(tmp_path)
    assert main(tmp_path, 1, 2) == 0
    assert list(files("outputs")) == ["0002-b-s0.png"]
    Path("outputs/0001-a-s0.png").write_text("half of it")
    assert main(tmp_path, 1, 2) == 0
    assert main(tmp_path, 0, 2) == 2
    assert sorted(files("outputs")) == ["0001-a-s0.png", "0002-b-s0.png"]


def test_an_order_is_read_as_it_was_written(tmp_path: Path) -> None:
    prompts = [
        Prompt(
            prompt="ein Öl\u2028\n\x01bild", seed=2**63 - 1, guidance_scale=0.1, guidance_interval=(5, 0.3)
        ),
        Prompt(prompt="", negative_prompt="🦓", karras=False, height=8),
    ]
    recipe = Recipe(
        Path("x.png"),
        prompts[0],
        "emoji",
        "ab",
        None,
        loras=(RecordedLora(name="l", sha256="c", weight=0.1),),
    )
    means = ModelOptions("m", ("l:0.3",), "auto", None, "bfloat16", True, 3)
    order = GenerationJob(
        tuple(list_pictures(prompts)), Target(Path("ö u"), grid=True, resume=True), means, recipe
    )
    order.write(tmp_path)
    assert read_job(tmp_path) == order


# Devices and engines


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    last = Share(1, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert last.device(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [last.device(named) for named in (None, "cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    assert Share().device(None) is None
    with pytest.raises(UserError, match="3 processes on 2 CUDA devices"):
        Share(0, 3).device("cuda")


def test_the_first_process_decides_on_the_engine_of_all(model: Path, tmp_path: Path) -> None:
    order = order_of(model, "a", "b", engine="auto")
    list(run_rank(order, Share(0, 2, tmp_path)))
    assert (tmp_path / "engine").read_text() == "torch"  # a picture of four steps repays no conversion
    (path,) = run_rank(order_of(model, "a", "b", engine="openvino"), Share(1, 2, tmp_path))
    assert read_settings(path)["engine"] == "torch"


def test_a_third_process_reads_the_decision_that_two_have_read(model: Path, tmp_path: Path) -> None:
    order = order_of(model, "a", "b", "c", engine="auto")
    made = [path for rank in range(3) for path in run_rank(order, Share(rank, 3, tmp_path))]
    assert [read_settings(path)["engine"] for path in made] == ["torch"] * 3
    assert (tmp_path / "engine").read_text() == "torch"


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_the_engine_is_decided_by_the_work_of_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    """What falls to one process would make `auto` depend on how many there are."""
    asked: list[Work] = []
    monkeypatch.setattr(shares, "choose_engine", lambda name, denoiser, work: asked.append(work))
    prompts = [
        Prompt(prompt=str(steps), num_inference_steps=steps, guidance_scale=1.0, deep_features_every=every)
        for steps, every in ((2, 1), (3, 1), (4, 2))
    ]
    means = ModelOptions(str(model), engine="auto", batch_size=1)
    order = GenerationJob(tuple(list_pictures(prompts)), Target(Path("outputs")), means)
    alone = Share(0, num_processes, tmp_path if num_processes > 1 else None)
    list(run_rank(order, alone))
    assert [(work.num_rows, work.reuses_features) for work in asked] == [(2 + 3 + 2, True)]


# Progress


class Bar:
    """What a bar is told."""

    def __init__(self) -> None:
        self.said, self.shown = [""], [(0, 0)]

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, done: int, total: int) -> None:
        self.shown.append((done, total))


def test_one_bar_counts_the_steps_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    watch = generate_processes._Watch(tmp_path, 2, bar)  # type: ignore[arg-type]
    streams = [(tmp_path / f"report-{rank}.jsonl").open("ab") for rank in range(2)]
    first, second = map(generate_processes._Report, streams)
    watch.look()
    for report in (first, second):
        report.say("loading")
        report.warn("too long")
        report.warn("too long")
    first.show(0, 10)
    watch.look()
    assert bar.shown == [(0, 0)]  # the total is not known yet
    assert bar.said[-1] == "loading"
    second.show(3, 5)
    first.show(4, 10)
    second.count()
    first.count()
    first.count()
    for part in (b'{"done": 9, "to', b'tal": 10}\n'):
        watch.look()
        assert bar.shown[-1] == (7, 15)
        streams[0].write(part)
        streams[0].flush()
    watch.look()
    for stream in streams:
        stream.close()
    assert bar.shown[-1] == (12, 15)
    assert watch.num_written == 3
    assert capsys.readouterr().err == "warning: too long\n"
