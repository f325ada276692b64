"""`ldm data check` with its options and on every kind of local source, and `ldm data prune`."""

import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.data.cache.keys import entry_key
from ldm.data.cache.moments import CacheItem, MomentsCache
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_models import ZERO_SNR_SCHEDULER, make_sd2
from tests.support.tiny_runs import write_squares


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ldm_data(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# ldm data check


def test_the_report_is_written_beside_not_into_the_data(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    (folder / "red.png").write_bytes((folder / "red.png").read_bytes()[:45])
    Image.new("RGB", (16, 16), "blue").save(folder / "again.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "again.png", "text": "blue", "license": "CC0"}')
    before = state_of(folder)
    result = ldm_data("check", folder, "--report", tmp_path / "report")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: 1 of 8 images cannot be used: fix or remove them"
    assert "exact duplicates: 1 group, such as again.png, blue.png" in result.stdout
    assert f"report: {tmp_path / 'report' / 'data_report.html'}" in result.stdout
    report = json.loads((tmp_path / "report" / "data_report.json").read_text())
    assert (report["num_found"], report["num_used"], report["num_refused"]) == (8, 7, 1)
    assert [fate["sample_id"] for fate in report["samples"] if not fate["used"]] == ["red.png"]
    assert report["licences"] == {"fields": {"license": {"CC0": 1}}, "num_without": 6}
    printed = ldm_data("check", folder, "--json")
    assert json.loads(printed.stdout) == report and printed.exit_code == 2
    assert "data:image/jpeg;base64," in (tmp_path / "report" / "data_report.html").read_text()
    long = ldm_data("check", folder, "--report", tmp_path / ("report" * 60))
    assert long.exit_code == 2 and "too long for a file name: shorten it" in long.stderr
    inside = ldm_data("check", folder, "--report", folder / "report")
    assert (inside.exit_code, inside.stdout) == (2, "")
    assert "is inside the data: choose a folder elsewhere" in inside.stderr
    assert state_of(folder) == before


def test_images_smaller_than_the_size_are_refused(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    Image.new("RGB", (64, 24), "red").save(folder / "red.png")
    result = ldm_data("check", folder, "--height", 20)
    assert (result.exit_code, result.stderr.count("error: ")) == (2, 7)
    assert f"error: {folder / 'blue.png'}: 16 x 16 pixels, smaller than 20 x 20" in result.stderr
    assert "buckets: 20 x 20 (1)" in result.stdout
    assert (
        "buckets: 16 x 24 (7)" in ldm_data("check", folder, "--height=24", "--width=16", "--upscale").stdout
    )
    assert "buckets: 16 x 16 (7)" in ldm_data("check", folder, "--width", 16).stdout


def test_buckets_keep_the_shape(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in (("wide", (512, 256)), ("square", (260, 256))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    result = ldm_data("check", folder, "--height", 256, "--buckets")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "buckets: 256 x 256 (1), 320 x 192 (1)" in result.stdout
    wrong = ldm_data("check", folder, "--buckets")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: --buckets without a size: give --height or --width")


def test_captions_are_counted_as_the_model_does(tmp_path: Path) -> None:
    Pipeline(make_sd2(tmp_path, ZERO_SNR_SCHEDULER)).save(tmp_path / "model")
    folder = write_squares(tmp_path / "data")
    Image.new("RGB", (16, 16), "red").save(folder / "long.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": "long.png", "text": "a red apple " * 40}))
    result = ldm_data("check", folder, "--model", tmp_path / "model", "--report", tmp_path / "report")
    assert result.exit_code == 0
    config = json.loads((tmp_path / "model" / "text_encoder" / "config.json").read_text())
    assert f"; the text encoder's context is {config['max_position_embeddings']}" in result.stdout
    assert "captions longer than the context: 1 (long.png)" in result.stdout
    small = (
        "check",
        folder,
        "--buckets",
        "--height",
        16,
    )  # too small for multiples of 64, but not for this model's multiple
    assert ldm_data(*small).exit_code == 2
    assert "buckets: 16 x 16 (8)" in ldm_data(*small, "--model", tmp_path / "model").stdout
    captions = json.loads((tmp_path / "report" / "data_report.json").read_text())["captions"]
    assert (captions["unit"], captions["context_length"]) == ("tokens", config["max_position_embeddings"])
    assert captions["truncated"][0]["num_tokens"] == captions["lengths"][-1][0] > 80


def test_parquet_and_tars_are_checked_too(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    rows = [{"picture": (folder / f"{color}.png").read_bytes(), "label": color} for color in ("red", "blue")]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "two.parquet")
    columns = ("--caption-column", "label", "--image-column", "picture")
    result = ldm_data("check", tmp_path / "two.parquet", *columns)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "two.parquet: 2 usable images, 2 captions (2 different)" in result.stdout
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(folder / "red.png", "0.png")
        (tmp_path / "0.txt").write_text("red")
        tar.add(tmp_path / "0.txt", "0.txt")
    assert "one.tar: 1 usable image, 1 caption" in ldm_data("check", tmp_path / "one.tar").stdout
    wrong = ldm_data("check", tmp_path / "one.tar", "--kind", "zip")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: ldm data check: kind = 'zip'")


def test_known_images_are_reread_only_with_rehash(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_squares(tmp_path / "data")
    path = folder / "red.png"
    assert ldm_data("check", folder).exit_code == 0
    assert any(cache.rglob("*"))
    status_of = os.lstat(path)
    path.write_bytes(bytes(path.stat().st_size))
    stat = os.lstat  # a change without a trace, as on a disk whose clock is wrong
    monkeypatch.setattr(
        "ldm.data.sample.os.lstat", lambda p, **o: status_of if Path(p) == path else stat(p, **o)
    )
    assert ldm_data("check", folder).exit_code == 0
    result = ldm_data("check", folder, "--rehash")
    assert result.exit_code == 2
    assert str(path) in result.stderr


def test_skipped_files_are_counted(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    for name in ("a.mp4", "b.mp4", "c.txt", "Makefile", ".hidden.mp4"):
        (folder / name).write_text("x")
    said = ldm_data("check", folder)
    assert said.exit_code == 0
    assert "note: files skipped: 2 .mp4, 1 without a suffix, 1 .txt\n" in said.stdout
    assert "files skipped" not in ldm_data("check", write_squares(tmp_path / "clean")).stdout


def test_output_is_one_line_per_fact_with_control_characters_escaped(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    name = "a\x1b[31m\nred\u202e.png"
    (folder / name).write_bytes((folder / "red.png").read_bytes())
    rows = [{"file_name": name, "text": "one\n\x1b]0;two\x07" + "long " * 999}]
    for number in range(25):
        (folder / f"bad-{number}\n\x1b.png").write_bytes(b"bad")
        rows.append({"file_name": f"bad-{number}\n\x1b.png", "text": "x"})
    with (folder / "metadata.jsonl").open("a") as file:
        file.writelines("\n" + json.dumps(row) for row in rows)
    said = ldm_data("check", folder, "--report", tmp_path / "report")
    assert said.exit_code == 2
    assert not any(letter in said.stdout + said.stderr for letter in "\x1b\x07\u202e")
    assert "letters: one\\n\\x1b]0;two\\x07long long" in said.stdout
    assert "exact duplicates: 1 group, such as a\\x1b[31m\\nred\\u202e.png, red.png\n" in said.stdout
    assert max(map(len, said.stdout.splitlines())) < 300
    errors = said.stderr.splitlines()
    assert len(errors) == 22 and errors[0].startswith(f"error: {folder}/bad-0 \\x1b.png: not an image")
    assert errors[-2] == "error: 5 more cannot be used; --report FOLDER lists them all"
    fates = json.loads((tmp_path / "report/data_report.json").read_text())["samples"]
    assert sum(not fate["used"] for fate in fates) == 25


def test_errors_escape_control_characters_in_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a\x1b[31m.png").write_text("")
    said = ldm_data("check", tmp_path / "data").stderr
    assert "a\\x1b[31m.png: image without a caption" in said and "\x1b" not in said


def test_a_size_that_a_run_of_the_model_refuses(tmp_path: Path) -> None:
    Pipeline(make_sd2(tmp_path, ZERO_SNR_SCHEDULER)).save(tmp_path / "model")
    folder = write_squares(tmp_path / "data")
    said = ldm_data("check", folder, "--model", tmp_path / "model", "--width", 15, "--height", 16)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("error: --width 15: choose a multiple of ")
    assert ldm_data("check", folder, "--width", 15).exit_code == 0  # allowed, because no model was named


def test_a_check_works_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "file/cache"))
    said = ldm_data("check", write_squares(tmp_path / "data"))
    assert said.exit_code == 0 and "7 usable images" in said.stdout
    assert said.stderr.startswith("warning: ") and len(said.stderr.splitlines()) == 1
    assert "set LDM_CACHE_DIR to a writable folder" in said.stderr


# ldm data prune


def fill(folder: Path, autoencoder_hash: str, num_entries: int) -> list[Path]:
    """Fill a cache with some moments; returns its shards."""
    items = [
        CacheItem(entry_key(f"{index:064x}", "t", autoencoder_hash), lambda: torch.zeros(3, 16, 16))
        for index in range(num_entries)
    ]
    MomentsCache(folder, autoencoder_hash).fill(items, lambda pixels: pixels.new_zeros(len(pixels), 8, 2, 2))
    return sorted((folder / "moments" / autoencoder_hash).glob("*.safetensors"))


def test_prune_lists_and_removes_files(cache: Path) -> None:
    (old,), (new,) = fill(cache, "a" * 64, 3), fill(cache, "b" * 64, 3)
    days_ago = old.stat().st_mtime - 40 * 86_400
    os.utime(old, (days_ago, days_ago))
    dry = ldm_data("prune", "--older-than-days", 30, "--dry-run")
    assert dry.exit_code == 0
    assert dry.stdout.splitlines()[0] == f"{old}: {old.stat().st_size / 1e6:.1f} MB, unused for 40 days"
    assert dry.stdout.splitlines()[1].startswith(f"{cache}: 1 file, 0.000 GB would be removed, ")
    assert old.exists() and new.exists()
    facts = json.loads(ldm_data("prune", "--older-than-days", 30, "--dry-run", "--json").stdout)
    assert (facts["cache"], facts["dry_run"], facts["removed_bytes"]) == (
        str(cache),
        True,
        old.stat().st_size,
    )
    assert [Path(file["path"]) for file in facts["removed"]] == [old] and old.exists()
    done = ldm_data("prune", "--older-than-days", 30)
    assert done.stdout.splitlines()[0] == dry.stdout.splitlines()[0]
    assert "GB removed, " in done.stdout
    assert not old.exists() and new.exists()


def test_prune_down_to_a_size_in_another_folder(tmp_path: Path, cache: Path) -> None:
    (kept,), (gone,) = fill(cache, "a" * 64, 1), fill(tmp_path / "other", "a" * 64, 1)
    assert "0 files" in ldm_data("prune", "--folder", tmp_path / "other", "--max-gb", 1).stdout
    result = ldm_data("prune", "--folder", tmp_path / "other", "--max-gb", gone.stat().st_size / 2e9)
    assert f"{tmp_path / 'other'}: 1 file," in result.stdout
    assert kept.exists() and not gone.exists()
    wrong = ldm_data("prune", "--max-gb", -1)
    assert wrong.exit_code == 2
    assert len(wrong.stderr.splitlines()) == 1
