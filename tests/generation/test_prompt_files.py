"""Prompt files, the images they ask for, their file names, and the batches they are made in."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import UserError
from ldm.generation.output import Target, file_name
from ldm.generation.prompts import read_prompts
from ldm.models.generation_settings import GenerationSettings
from ldm.models.setting_limits import LARGEST_SEED
from ldm.pipeline.batches import ImageRequest, Prompt, list_images, plan_batches
from ldm.pipeline.file_names import slug


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
    assert read_prompts(path)[0] == Prompt("a red apple")


def test_a_jsonl_file_has_settings_a_line(tmp_path: Path) -> None:
    settings = {
        "negative_prompt": "",
        "seed": LARGEST_SEED,
        "num_images": 2,
        "num_inference_steps": 3,
        "guidance_scale": 4,
        "guidance_rescale": 0.5,
        "guidance_interval": (0.2, 0.8),
        "deep_features_every": 2,
        "watermark": True,
        "scheduler": "euler",
        "karras": False,
        "timesteps": "900,500,100",
        "churn": 20,
        "max_prompt_chunks": 2,
        "prompt_weights": "comfy",
        "to_seed": 4,
        "to_prompt": "b",
        "num_frames": 3,
        "frame": 0.5,
        "guidance": "apg",
        "apg_eta": 0.5,
        "apg_momentum": -0.25,
        "apg_norm_threshold": 15,
        "pag_scale": 2,
        "height": 16,
        "width": 24,
    }
    line = {"prompt": "# not a note", **settings}
    path = write_jsonl(tmp_path / "prompts.JSONL", line, {"prompt": "", "seed": None})
    path.write_text(path.read_text().replace("\n", "\n\n") + "\n")
    first, second = read_prompts(path)
    assert (first.prompt, first.settings.given()) == ("# not a note", settings)
    assert second == Prompt("")
    of_images = {"strength", "image_guidance_scale", "mask_feather", "match_colors"}
    of_images |= {"expand", "expand_fill", "expand_overlap"}
    of_images |= {"upscale", "noise_level", "restore", "tile_size", "tile_overlap"}
    of_images |= {"control_interval", "guess_mode", "canny_thresholds"}
    of_sdxl = {
        f"{part}{name}" for part in ("", "negative_") for name in ("crop", "original_size", "target_size")
    }
    of_sdxl |= {
        "aesthetic_score",
        "negative_aesthetic_score",
        "prompt_2",
        "negative_prompt_2",
        "denoising_end",
    }
    assert {*settings, "preset", *of_images, *of_sdxl} == set(GenerationSettings.model_fields)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", "guidence_scale": 3}', ["unknown setting 'guidence_scale'", "'guidance_scale'"]),
        ('{"seed": 3}', ["prompt is missing"]),
        ('{"prompt": "a", "seed": -1}', ["seed is -1"]),
        ('{"prompt": "a", "seed": 9223372036854775808}', ["seed is 9223372036854775808"]),
        ('{"prompt": "a", "seed": "many"}', ["seed is 'many'", "a whole number"]),
        ('{"prompt": "a", "num_images": 0}', ["num_images is 0"]),
        ('{"prompt": "a", "guidance_scale": NaN}', ["guidance_scale is nan"]),
        ('{"prompt": "a", "guidance_rescale": 2}', ["guidance_rescale is 2"]),
        ('{"prompt": "a", "height": 0}', ["height is 0"]),
        ('{"prompt": "a", "scheduler": "eular"}', ["'eular'", "did you mean 'euler'"]),
        ('{"prompt": 7}', ["prompt is 7"]),
        ('{"prompt": "\\ud800"}', ["the prompt is not valid Unicode"]),
        ('{"prompt": "a", "negative_prompt": "\\ud800"}', ["not valid Unicode"]),
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
def test_bytes_that_are_not_utf8_are_refused_with_their_place(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"a\nb\xe9c\n")
    with pytest.raises(UserError, match=rf"{name}, line 2: not UTF-8 at byte 3"):
        read_prompts(path)


@pytest.mark.parametrize("content", ["", "\n\n", "# only a note\n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "prompts.txt").write_text(content)
    with pytest.raises(UserError, match=r"prompts\.txt has no prompts"):
        read_prompts(tmp_path / "prompts.txt")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(UserError, match=path.name):
            read_prompts(path)


def test_a_line_wins_over_settings_for_all() -> None:
    base = GenerationSettings(seed=1, scheduler="ddim", negative_prompt="blue", karras=True)
    own = {"scheduler": "euler", "negative_prompt": "", "karras": False}
    prompt = Prompt("a", GenerationSettings(**own)).over(base)
    assert prompt == Prompt("a", GenerationSettings(seed=1, **own))


def test_each_image_has_its_own_seed_and_number() -> None:
    seven = GenerationSettings(seed=7)
    prompts = [Prompt("a", GenerationSettings(seed=7, num_images=2)), Prompt("b"), Prompt("a", seven)]
    names = list(map(file_name, list_images(prompts)))
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
    image = ImageRequest(1, "𠀀" * 60, LARGEST_SEED, GenerationSettings())
    assert len(file_name(image).encode()) <= 230  # of 255: `write_bytes` adds .tmp- and a suffix


def test_outputs_are_checked_without_creating_anything(tmp_path: Path) -> None:
    images = list_images([Prompt("a", GenerationSettings(num_images=3))])
    folder = tmp_path / "new" / "folder"
    Target(folder).check(images)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "0002-a-s1.png").touch()
    (folder / "0003-a-s2.png").touch()
    with pytest.raises(UserError, match=r"0002-a-s1\.png exists already \(and 1 more\): add --overwrite"):
        Target(folder).check(images)
    Target(folder, overwrite=True).check(images)
    Target(folder, grid=True).check(images[:1])
    (folder / "grid.png").mkdir()
    with pytest.raises(UserError, match=r"grid\.png exists"):
        Target(folder, grid=True, overwrite=True).check(images)


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_an_unwritable_output_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=place.split("/")[0]):
        Target(tmp_path / place).check([])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 7, 100])
def test_batches_contain_every_image_once_with_its_settings(batch_size: int) -> None:
    prompts = [Prompt(f"p{i}", GenerationSettings(seed=i % 2, num_images=3)) for i in range(5)]
    prompts += [
        Prompt(f"q{i}", GenerationSettings(scheduler=("euler", "ddim")[i % 2], karras=False))
        for i in range(5)
    ]
    prompts.append(Prompt("r", GenerationSettings(num_images=9)))
    images = list_images(prompts)
    batches = plan_batches(images, batch_size)
    assert sorted((image for batch in batches for image in batch), key=lambda image: image.number) == images
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({image.settings for image in batch}) == 1
        assert set(batch[0].settings.given()) <= {"scheduler", "karras"}, "without seeds and numbers"


def test_prompts_with_the_same_settings_share_batches() -> None:
    prompts = [Prompt(str(i), GenerationSettings(scheduler=("euler", "ddim")[i % 2])) for i in range(8)]
    assert [len(batch) for batch in plan_batches(list_images(prompts), 4)] == [4, 4]


def test_a_setting_left_open_is_not_taken_for_one_set_to_its_default() -> None:
    """The model may have another default."""
    steps = GenerationSettings().num_inference_steps
    prompts = [Prompt("a"), Prompt("b", GenerationSettings(num_inference_steps=steps))]
    assert len(plan_batches(list_images(prompts), 4)) == 2


def test_prompts_with_other_seeds_and_numbers_of_images_share_batches_too() -> None:
    prompts = [Prompt(str(i), GenerationSettings(seed=i * 10, num_images=i + 1)) for i in range(3)]
    batches = plan_batches(list_images(prompts), 4)
    assert [[image.seed for image in batch] for batch in batches] == [[0, 10, 11, 20], [21, 22]]
    assert [[image.prompt for image in batch] for batch in batches] == [["0", "1", "1", "2"], ["2", "2"]]


def test_images_with_prompts_of_different_lengths_share_no_batch() -> None:
    def batches(lengths: list[int]) -> list[list[int]]:
        images = list_images([Prompt("x" * length) for length in lengths]) if lengths else []
        planned = plan_batches(images, 2, form=lambda image: len(image.prompt))
        return [[image.number - 1 for image in batch] for batch in planned]

    assert batches([1] * 5) == [[0, 1], [2, 3], [4]]
    assert batches([1, 3, 1, 1, 3, 2]) == [[0, 2], [3], [1, 4], [5]]
    assert batches([]) == []
