"""Prompt files, the pictures they ask for, their names, and the batches they are made in."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import UserError
from ldm.generation.batches import plan_batches
from ldm.generation.pictures import Picture, Target, list_pictures, slug
from ldm.generation.prompts import PictureSettings, Prompt, read_prompts
from ldm.pipeline.settings import LARGEST_SEED


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red apple\r\n\n  # a note\n  ein Apfel \t\n a\u2028b\x85c # 1\n\n".encode())
    assert [prompt.prompt for prompt in read_prompts(path)] == [
        "a red apple",
        "ein Apfel",
        "a\u2028b\x85c # 1",
    ]
    assert read_prompts(path)[0].given() == {"prompt": "a red apple"}


def test_a_jsonl_file_has_settings_a_line(tmp_path: Path) -> None:
    settings = {
        "prompt": "# not a note",
        "negative_prompt": "",
        "seed": LARGEST_SEED,
        "num_images": 2,
        "num_inference_steps": 3,
        "guidance_scale": 4,
        "guidance_rescale": 0.5,
        "guidance_interval": (0.2, 0.8),
        "deep_features_every": 2,
        "scheduler": "euler",
        "karras": False,
        "max_prompt_chunks": 2,
        "height": 16,
        "width": 24,
    }
    path = write_jsonl(tmp_path / "prompts.JSONL", settings, {"prompt": "", "seed": None})
    path.write_text(path.read_text().replace("\n", "\n\n") + "\n")
    first, second = read_prompts(path)
    assert first.given() == settings
    assert second.given() == {"prompt": ""}
    assert set(settings) == set(Prompt.model_fields)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", "guidence_scale": 3}', ["unknown setting 'guidence_scale'", "'guidance_scale'"]),
        ('{"seed": 3}', ["'prompt' is missing"]),
        ('{"prompt": "a", "seed": -1}', ["seed = -1"]),
        ('{"prompt": "a", "seed": 9223372036854775808}', ["seed = 9223372036854775808"]),
        ('{"prompt": "a", "seed": "many"}', ["seed = 'many'"]),
        ('{"prompt": "a", "num_images": 0}', ["num_images = 0"]),
        ('{"prompt": "a", "guidance_scale": NaN}', ["guidance_scale = nan"]),
        ('{"prompt": "a", "guidance_rescale": 2}', ["guidance_rescale = 2"]),
        ('{"prompt": "a", "height": 0}', ["height = 0"]),
        ('{"prompt": "a", "scheduler": "eular"}', ["'eular'", "did you mean 'euler'"]),
        ('{"prompt": 7}', ["prompt = 7"]),
        ('{"prompt": "\\ud800"}', ["prompt = '\\ud800'", "no character"]),
        ('{"prompt": "a", "negative_prompt": "\\ud800"}', ["negative_prompt", "no character"]),
        ('["a"]', ["not a JSON object"]),
        ("a red apple", ["not JSON"]),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "good"}\n\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_prompts(path)
    for word in [f"{path}, line 3", *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_old_line_ends_end_lines(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"a red apple\ra rocket\r\na tree\n")
    prompts = read_prompts(tmp_path / "prompts.txt")
    assert [prompt.prompt for prompt in prompts] == ["a red apple", "a rocket", "a tree"]


def test_a_minus_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("ein Fuß\n\nzwei".encode())))
    assert [prompt.prompt for prompt in read_prompts(Path("-"))] == ["ein Fuß", "zwei"]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_bytes_that_are_no_utf8_are_refused_by_their_place(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"a\nb\xe9c\n")
    with pytest.raises(UserError, match=rf"{name}, line 2: not UTF-8 at byte 3"):
        read_prompts(path)


@pytest.mark.parametrize("content", ["", "\n\n", "# only a note\n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "prompts.txt").write_text(content)
    with pytest.raises(UserError, match=r"prompts\.txt has no prompts"):
        read_prompts(tmp_path / "prompts.txt")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(UserError, match=path.name):
            read_prompts(path)


def test_a_line_wins_over_what_is_given_for_all() -> None:
    base = PictureSettings(seed=1, scheduler="ddim", negative_prompt="blue", karras=True)
    prompt = Prompt(prompt="a", scheduler="euler", negative_prompt="", karras=False).over(base)
    assert prompt == Prompt(prompt="a", seed=1, scheduler="euler", negative_prompt="", karras=False)


def test_each_picture_has_its_own_seed_and_number() -> None:
    prompts = [Prompt(prompt="a", seed=7, num_images=2), Prompt(prompt="b"), Prompt(prompt="a", seed=7)]
    names = [picture.name for picture in list_pictures(prompts)]
    assert names == ["0001-a-s7.png", "0002-a-s8.png", "0003-b-s0.png", "0004-a-s7.png"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red  apple!", "a-red-apple"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\x|y?*", "c-x-y"),
        ("", "no-words"),
        ("¿?", "no-words"),
        ("x" * 50, "x" * 40),
        ("y" * 39 + " z", "y" * 39),
        ("Größe 5", "größe-5"),
        ("Ein Cafe\u0301", "ein-café"),
        ("सेब", "सेब"),
        ("赤いリンゴ", "赤いリンゴ"),
    ],
)
def test_a_prompt_becomes_part_of_a_file_name(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_the_longest_name_fits_a_file_system() -> None:
    (picture,) = list_pictures([Prompt(prompt="𠀀" * 60, seed=LARGEST_SEED)])
    assert len(picture.name.encode()) <= 230  # of 255, as `write_bytes` puts .tmp- and a tail around it


def test_outputs_are_checked_without_making_anything(tmp_path: Path) -> None:
    pictures = list_pictures([Prompt(prompt="a", num_images=3)])
    folder = tmp_path / "new" / "folder"
    Target(folder).check(pictures)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "0002-a-s1.png").touch()
    (folder / "0003-a-s2.png").touch()
    with pytest.raises(UserError, match=r"0002-a-s1\.png exists already \(and 1 more\): add --overwrite"):
        Target(folder).check(pictures)
    Target(folder, overwrite=True).check(pictures)
    Target(folder, grid=True).check(pictures[:1])
    (folder / "grid.png").mkdir()
    with pytest.raises(UserError, match=r"grid\.png exists"):
        Target(folder, grid=True, overwrite=True).check(pictures)


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_an_unwritable_output_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=place.split("/")[0]):
        Target(tmp_path / place).check([])


def seeds_of(pictures: list[Picture]) -> list[tuple[str, int]]:
    return [(picture.prompt.prompt, picture.seed) for picture in pictures]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 7, 100])
def test_batches_hold_every_picture_once_with_its_settings_and_seed(batch_size: int) -> None:
    prompts = [Prompt(prompt=f"p{i}", seed=i % 2, num_images=3) for i in range(5)]
    prompts += [Prompt(prompt=f"q{i}", scheduler=("euler", "ddim")[i % 2], karras=False) for i in range(5)]
    prompts.append(Prompt(prompt="r", num_images=9))
    pictures = list_pictures(prompts)
    batches = plan_batches(pictures, batch_size)
    numbers = [picture.number for batch in batches for picture in batch.pictures]
    assert sorted(numbers) == [picture.number for picture in pictures]
    for batch in batches:
        assert 1 <= len(batch.pictures) <= batch_size
        assert list(zip(batch.prompts, batch.seeds, strict=True)) == seeds_of(list(batch.pictures))
        for picture in batch.pictures:
            own = picture.prompt.given()
            assert batch.settings == {key: own[key] for key in own if key in ("scheduler", "karras")}


def test_prompts_with_the_same_settings_share_batches() -> None:
    prompts = [Prompt(prompt=str(i), scheduler=("euler", "ddim")[i % 2]) for i in range(8)]
    assert [len(batch.pictures) for batch in plan_batches(list_pictures(prompts), 4)] == [4, 4]


def test_prompts_with_other_seeds_and_numbers_of_images_share_batches_too() -> None:
    prompts = [Prompt(prompt=str(i), seed=i * 10, num_images=i + 1) for i in range(3)]
    batches = plan_batches(list_pictures(prompts), 4)
    assert [batch.seeds for batch in batches] == [[0, 10, 11, 20], [21, 22]]
    assert [batch.prompts for batch in batches] == [["0", "1", "1", "2"], ["2", "2"]]
