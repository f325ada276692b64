"""`ldm export --format diffusers`: the export is read back, and refused if it is another model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ldm.export.verify.compare
from ldm.cli.app import app
from ldm.errors import UserError
from ldm.export.artefact import ExportReport, export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.verify import readers
from ldm.export.verify.trial import largest_difference, trial_for, trial_outputs
from ldm.io.files import sha256_file, write_json
from ldm.io.json_files import read_json
from ldm.models.loading.model import load_parts, save_parts
from tests.support.slow_cases import rest_slow
from tests.support.small_mounts import bound
from tests.support.tiny_models import ZERO_SNR_SCHEDULER, make_sd1, make_sd2

QUIET = ExportOptions(num_samples=0)


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in this process, which has diffusers loaded already."""
    monkeypatch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models by name."""
    root = tmp_path_factory.mktemp("models")
    makers = {"sd1": make_sd1, "sd2": make_sd2, "zero": lambda f: make_sd2(f, ZERO_SNR_SCHEDULER)}
    for name, make in makers.items():
        save_parts(make(root / f"tokenizer-{name}"), root / name)
    return {name: root / name for name in makers}


def test_a_fresh_process_reads_the_export(models: dict[str, Path], tmp_path: Path) -> None:
    dest = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(models["sd2"]), str(dest), "--num-samples", "0"])
    assert (done.exit_code, done.stdout) == (0, f"{dest}\n"), done.output
    assert "read by diffusers" in done.stderr and "writing diffusers" in done.stderr
    report = read_json(dest / "export.json")
    assert report["verified"][0]["passed"] and report["verified"][0]["largest_difference"] <= 1
    assert report["source"]["model_id"] == "sd2"
    entry = report["files"]["unet/diffusion_pytorch_model.safetensors"]
    assert entry["sha256"] == sha256_file(dest / "unet/diffusion_pytorch_model.safetensors")
    assert str(tmp_path) not in (dest / "export.json").read_text()
    assert not (dest / "manifest.json").exists() and "manifest.json" not in report["files"]  # it is not sent


def test_the_options_of_the_command_are_those_of_the_export(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ExportOptions] = []

    def note(source: object, dest: Path, options: ExportOptions, say: object) -> ExportReport:
        asked.append(options)
        return ExportReport(dest, ())

    monkeypatch.setattr("ldm.export.artefact.export", note)
    for words in (
        "--keep-lora-apart",
        "--dtype float16 --variant",
        "--license mit --title T --max-shard-size 2GB --num-samples 1",
    ):
        done = CliRunner().invoke(app, ["export", str(models["sd1"]), str(tmp_path / "out"), *words.split()])
        assert done.exit_code == 0, done.output
    assert asked == [
        ExportOptions(fuse=False),
        ExportOptions(dtype="float16", variant=True),
        ExportOptions(licence="mit", title="T", max_shard_size="2GB", num_samples=1),
    ]


def test_a_report_of_another_model_is_refused_before_the_work_begins(
    models: dict[str, Path], tmp_path: Path
) -> None:
    plan = {"weights_hash": "0" * 64}
    copies = {"num_copies": 0, "num_images": 9, "share": 0, "low": 0, "high": 0.3}
    report = {"plan": plan, **copies, "planted_found": 1, "false_alarms": 0}
    write_json(tmp_path / "audit.json", report)
    call = ["export", str(models["sd1"]), str(tmp_path / "out"), "--evaluation", str(tmp_path / "audit.json")]
    done = CliRunner().invoke(app, call)
    (line,) = done.stderr.splitlines()  # it has not said that it writes anything
    assert done.exit_code == 2 and "audit.json is of another model" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json"]


@pytest.mark.parametrize("option", ["--keep-lora-apart", "--variant"])
def test_an_option_without_effect_is_refused(models: dict[str, Path], tmp_path: Path, option: str) -> None:
    done = CliRunner().invoke(app, ["export", str(models["sd1"]), str(tmp_path / "out"), option])
    assert done.exit_code == 2 and option in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", rest_slow(["sd1", "sd2", "zero"], "sd2"))
@pytest.mark.parametrize(("dtype", "variant"), [("float32", False), ("float16", True), ("bfloat16", False)])
@pytest.mark.usefixtures("read_here")
def test_stored_in_any_format_it_draws_what_the_rounded_weights_draw(
    models: dict[str, Path], tmp_path: Path, name: str, dtype: str, variant: bool
) -> None:
    options = replace(QUIET, dtype=dtype, variant=variant, max_shard_size="60KB")
    report = export(load_source(models[name]), tmp_path / "out", options)
    assert report.verdicts[0].largest_difference < 0.01
    middle = ".fp16" if variant else ""
    assert list((tmp_path / "out/unet").glob(f"diffusion_pytorch_model{middle}*-00001-of-*.safetensors"))
    original, stored = load_parts(models[name]), load_parts(tmp_path / "out")
    kind = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
    for one, other in zip(original.networks().values(), stored.networks().values(), strict=True):
        for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours.to(kind).float(), theirs)
    assert stored.scheduler_config == original.scheduler_config


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize(
    ("name", "key"),
    [("sd2", "prediction_type"), ("zero", "rescale_betas_zero_snr"), ("sd1", "beta_schedule")],
)
def test_an_export_that_loses_a_setting_fails_and_is_kept(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    import ldm.models.loading.model

    def forgetful(path: Path, value: object) -> None:
        known = isinstance(value, dict) and path.name == "scheduler_config.json"
        write_json(path, {k: v for k, v in value.items() if k != key} if known else value)  # type: ignore[attr-defined]

    monkeypatch.setattr(ldm.models.loading.model, "write_json", forgetful)
    with pytest.raises(UserError, match=r"largest difference .* it is kept in .*out\.failed"):
        export(load_source(models[name]), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
    verdict = read_json(tmp_path / "out.failed/export.json")["verified"][0]
    assert not verdict["passed"] and verdict["largest_difference"] > 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


@pytest.mark.usefixtures("read_here")
def test_an_existing_export_is_kept_unless_asked(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(load_source(models["sd1"]), tmp_path / "out", QUIET)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    overwrite = replace(QUIET, overwrite=True)
    with pytest.raises(UserError, match=r"out contains mine\.txt, which this program did not write"):
        export(load_source(models["sd1"]), tmp_path / "out", overwrite)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    for name in ("sd1", "sd2"):
        export(load_source(models[name]), tmp_path / "free", overwrite)
    assert read_json(tmp_path / "free/export.json")["source"]["model_id"] == "sd2"
    (tmp_path / "free/README.md").write_text("my own words")
    with pytest.raises(UserError, match=r"README\.md, which has changed"):
        export(load_source(models["sd1"]), tmp_path / "free", overwrite)
    assert (tmp_path / "free/README.md").read_text() == "my own words"


@pytest.mark.usefixtures("read_here")
def test_a_volume_is_exported_into_and_again(models: dict[str, Path], tmp_path: Path) -> None:
    with bound(tmp_path / "volume") as dest:
        for name in ("sd1", "sd2"):
            export(load_source(models[name]), dest, replace(QUIET, overwrite=name == "sd2"))
        assert read_json(dest / "export.json")["source"]["model_id"] == "sd2"
        assert not list(dest.glob(".*"))


@pytest.mark.usefixtures("read_here")
def test_a_failed_export_replaces_only_an_earlier_one(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(task: object, reader: object) -> None:
        raise UserError("the reader failed")

    monkeypatch.setattr(ldm.export.verify.compare, "_run", broken)
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed/mine.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match=r"it is kept in .*out\.failed-2$"):
            export(load_source(models["sd1"]), tmp_path / "out", QUIET)
    assert (tmp_path / "out.failed/mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed", "out.failed-2"]


def test_a_reader_that_fails_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diffusers cannot read the model \(FileNotFoundError") as caught:
        ldm.export.verify.compare._run(tmp_path / "no task.json", "diffusers")
    assert "\n" not in str(caught.value)


def test_results_that_are_missing_or_not_finite_never_pass() -> None:
    random = torch.Generator().manual_seed(0)
    good = {
        "pixels": torch.rand(1, 3, 4, 4, generator=random),
        "encoded": torch.randn(1, 4, 2, 2, generator=random),
    }
    assert largest_difference(good, good) == 0
    assert largest_difference(good, {**good, "pixels": good["pixels"] * float("nan")}) == float("inf")
    assert largest_difference(good, {**good, "pixels": good["pixels"][..., :2]}) == float("inf")
    assert largest_difference(good, {"pixels": good["pixels"]}) == float("inf")
    bad = ldm.export.verify.compare.Verdict("nobody 1", float("inf"))
    assert not bad.passed and json.loads(json.dumps(bad.to_dict()))["largest_difference"] is None


@pytest.mark.parametrize("name", ["unet", "decoder", "encoder", "text"])
def test_the_trial_depends_on_every_part_of_a_model(models: dict[str, Path], name: str) -> None:
    parts = load_parts(models["sd2"])
    vae = parts.autoencoder.vae
    part = {
        "unet": parts.denoiser,
        "decoder": vae.decoder,
        "encoder": vae.encoder,
        "text": parts.text_encoder,
    }
    trial = trial_for(parts)
    before = trial_outputs(parts, trial)
    with torch.no_grad():
        next(p for p in part[name].parameters() if p.ndim > 1).mul_(1.5)
    assert largest_difference(before, trial_outputs(parts, trial)) > 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"format": "difusers"}, "unknown format 'difusers': did you mean 'diffusers'?"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        *(
            ({"max_shard_size": size}, f"max_shard_size is '{size}'")
            for size in ("banana", "0GB", "2", "2gb")
        ),
    ],
)
def test_unknown_names_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        ExportOptions(**given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": True}, "float32 has no variant"),
        ({"fuse": False}, "sd1 has no LoRA to keep apart"),
        ({"format": "lora-kohya"}, "sd1 is not a LoRA"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(
    models: dict[str, Path], tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        export(load_source(models["sd1"]), tmp_path / "out", replace(QUIET, **options))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
