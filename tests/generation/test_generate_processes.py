"""`ldm generate --num-processes N`: the same files as one process makes, and one line for an error."""

import json
from pathlib import Path

import pytest
import torch

from ldm.cli.generate_processes import Report, Watch, main, report_name
from ldm.errors import UserError
from ldm.generation import work
from ldm.generation.job import GenerationJob, Share, read_job, run_rank
from ldm.generation.model_options import ModelOptions
from ldm.generation.output import Target
from ldm.generation.reproduce import Original
from ldm.models.adapters.fuse import UsedLora
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Prompt, list_images, plan_batches
from ldm.pipeline.engine_choice import Work
from ldm.pipeline.record import ImageRecord, read_settings
from tests.support.tiny_generate import files, generate, job_of, save_model

ROOT = Path(__file__).parents[2]
LONG = "a red apple on a table " * 9 + "beside a zebra"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


# The files


def test_two_processes_write_the_files_of_one(model: Path, tmp_path: Path) -> None:
    for num_processes in (1, 2):
        job_of(model, "a", "b", "c", LONG, "d", output=f"by-{num_processes}", batch_size=2).write(tmp_path)
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
def test_the_shares_are_all_of_the_work_and_nothing_twice(num_processes: int) -> None:
    prompts = [Prompt(str(i), GenerationSettings(num_inference_steps=1 + i % 3)) for i in range(31)]
    batches = plan_batches(list_images(prompts), 4)
    shares = [Share(rank, num_processes).of(batches) for rank in range(num_processes)]
    numbers = [image.number for share in shares for batch in share for image in batch]
    assert sorted(numbers) == list(range(1, 32))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_makes_and_resumes_its_own_share(model: Path, tmp_path: Path) -> None:
    """A process checks the files of its own share only: the others may write theirs at any time."""
    job_of(model, "a", "b", "c", resume=True).write(tmp_path)
    assert main(tmp_path, 1, 2) == 0
    assert list(files("outputs")) == ["0002-b-s0.png"]
    Path("outputs/0001-a-s0.png").write_text("half of it")
    assert main(tmp_path, 1, 2) == 0
    assert main(tmp_path, 0, 2) == 2
    assert sorted(files("outputs")) == ["0001-a-s0.png", "0002-b-s0.png"]


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    interval = GenerationSettings(seed=2**63 - 1, guidance_scale=0.1, guidance_interval=(5, 0.3))
    prompts = [
        Prompt("ein Öl\u2028\n\x01bild", interval),
        Prompt("", GenerationSettings(negative_prompt="🦓", karras=False, height=8)),
    ]
    lora = UsedLora(name="l", sha256="c", weight=0.1)
    record = ImageRecord(prompt="x", seed=3, settings=interval, weights_hash="ab", loras=(lora,))
    options = ModelOptions("m", ("l:0.3",), "auto", None, "bfloat16", True, 3)
    target = Target(Path("ö u"), grid=True, resume=True)
    job = GenerationJob(tuple(list_images(prompts)), target, options, Original(Path("x.png"), record))
    job.write(tmp_path)
    assert read_job(tmp_path) == job
    given = [image.settings.given() for image in read_job(tmp_path).images]
    assert given[1] == {"negative_prompt": "🦓", "karras": False, "height": 8}, "the rest is left open"


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
    job = job_of(model, "a", "b", engine="auto")
    list(run_rank(job, Share(0, 2, tmp_path)))
    assert (tmp_path / "engine").read_text() == "torch"  # four steps are not worth a conversion
    (path,) = run_rank(job_of(model, "a", "b", engine="openvino"), Share(1, 2, tmp_path))
    assert read_settings(path)["engine"] == "torch"


def test_a_third_process_reads_the_decision_that_two_have_read(model: Path, tmp_path: Path) -> None:
    job = job_of(model, "a", "b", "c", engine="auto")
    made = [path for rank in range(3) for path in run_rank(job, Share(rank, 3, tmp_path))]
    assert [read_settings(path)["engine"] for path in made] == ["torch"] * 3
    assert (tmp_path / "engine").read_text() == "torch"


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_the_engine_is_decided_by_the_work_of_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    """The work of one process would make `auto` depend on how many there are."""
    asked: list[Work] = []
    monkeypatch.setattr(work, "choose_engine", lambda name, denoiser, given: asked.append(given))
    prompts = [
        Prompt(
            str(steps),
            GenerationSettings(num_inference_steps=steps, guidance_scale=1.0, deep_features_every=every),
        )
        for steps, every in ((2, 1), (3, 1), (4, 2))
    ]
    options = ModelOptions(str(model), engine="auto", batch_size=1)
    job = GenerationJob(tuple(list_images(prompts)), Target(Path("outputs")), options)
    alone = Share(0, num_processes, tmp_path if num_processes > 1 else None)
    list(run_rank(job, alone))
    assert [(each.num_rows, each.reuses_features) for each in asked] == [(2 + 3 + 2, True)]


# Progress


class Bar:
    """Records what a progress bar is told."""

    def __init__(self) -> None:
        self.said, self.shown = [""], [(0, 0)]

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, done: int, total: int) -> None:
        self.shown.append((done, total))


def test_one_bar_counts_the_steps_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    watch = Watch(tmp_path, 2, bar)  # type: ignore[arg-type]
    streams = [(tmp_path / report_name(rank)).open("ab") for rank in range(2)]
    first, second = map(Report, streams)
    watch.read()
    for report in (first, second):
        report.say("loading")
        report.warn("too long")
        report.warn("too long")
    first.show(0, 10)
    watch.read()
    assert bar.shown == [(0, 0)]  # the total is not known yet
    assert bar.said[-1] == "loading"
    second.show(3, 5)
    first.show(4, 10)
    second.count()
    first.count()
    first.count()
    for part in (b'{"done": 9, "to', b'tal": 10}\n'):
        watch.read()
        assert bar.shown[-1] == (7, 15)
        streams[0].write(part)
        streams[0].flush()
    watch.read()
    for stream in streams:
        stream.close()
    assert bar.shown[-1] == (12, 15)
    assert watch.num_written == 3
    assert capsys.readouterr().err == "warning: too long\n"
