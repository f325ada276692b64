"""What `Pipeline.generate` returns and takes: its repr, notebooks, names of files, negatives, wrong types, warnings."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ldm
import ldm.pipeline
from ldm.errors import LdmWarning, UserError
from ldm.io import progress
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import ImageRecord
from ldm.pipeline.settings import Generation, check_call, read_prompts
from ldm.pipeline.step_bar import bar_for_steps
from ldm.pipeline.unusual import warn_of_lora, warn_of_prompts, warn_of_settings


def made(*prompts: str, seed: int | None = 7) -> Generation:
    images = [Image.new("RGB", (8, 8), "red") for _ in prompts]
    return Generation(
        images, torch.zeros(len(prompts), 4, 1, 1), [ImageRecord(prompt=p, seed=seed) for p in prompts]
    )


def test_the_public_names_are_listed() -> None:
    assert set(ldm.__all__) <= set(dir(ldm)) and "Any" not in dir(ldm)
    assert set(ldm.pipeline.__all__) <= set(dir(ldm.pipeline))


def test_a_short_repr() -> None:
    assert repr(made("a red apple")) == "<Generation: 1 image of 8 x 8, 'a red apple' seed 7>"
    assert repr(made("a", "b")) == "<Generation: 2 images of 8 x 8, 'a' seed 7, ...>"
    assert repr(made("word " * 5000, seed=None)).count("word") < 20


def test_a_notebook_shows_the_images() -> None:
    text = made("<script>", *"ab" * 40)._repr_html_()
    assert text.count("data:image/png;base64,") == 64 and "and 17 more" in text
    assert "&lt;script&gt;" in text and "<script>" not in text


def test_files_are_named_as_the_command_names_them(tmp_path: Path) -> None:
    names = [path.name for path in made("A red apple!", "").save(tmp_path)]
    assert names == ["0001-a-red-apple-s7.png", "0002-no-words-s7.png"]
    assert [path.name for path in made("x", seed=None).save(tmp_path)] == ["0001-x.png"]


def test_negative_prompts() -> None:
    base = GenerationSettings(negative_prompt="blur")
    for negative, expected in ((None, ["blur", "blur"]), ("x", ["x", "x"]), (["x", "y"], ["x", "y"])):
        found = read_prompts(["a", "b"], negative, base)
        assert [prompt.settings.negative_prompt for prompt in found] == expected
    with pytest.raises(
        UserError, match="1 negative prompts for 2 prompts: give one for all, or one for each"
    ):
        read_prompts(["a", "b"], ["x"], base)


WRONG: list[tuple[Any, Any, str]] = [
    (3, None, "prompts is 3: give a text"),
    (None, None, "prompts is None"),
    (b"a", None, "prompts is b'a'"),
    ({"a": 1}, None, "prompts is {'a': 1}"),
    (["a", 3], None, "one of prompts is 3: give texts only"),
    ("a", 3, "negative_prompt is 3"),
    ("a", [None], "one of negative_prompt is None"),
    ("a\0", None, r"the prompt contains the character U\+0000"),
]


@pytest.mark.parametrize(("prompts", "negative", "message"), WRONG)
def test_wrong_prompts_in_one_line(prompts: Any, negative: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_prompts(prompts, negative, GenerationSettings())
    assert "\n" not in str(error.value)


CALLS: list[tuple[dict[str, Any], str]] = [
    ({"seeds": 3}, "seeds is 3: give a list of whole numbers"),
    ({"seeds": ["a"]}, "seeds is "),
    ({"seeds": "12"}, "seeds is '12'"),
    ({"batch_size": "8"}, "batch_size is '8'"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"latents": [[1.0]]}, "latents is "),
    ({"latents": torch.zeros(4, 2, 2)}, "latents is Tensor: give a tensor"),
    ({"on_step": 1}, "on_step is 1: give a function"),
]


@pytest.mark.parametrize(("wrong", "message"), CALLS)
def test_wrong_arguments_in_one_line(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"seeds": None, "batch_size": 8, "latents": None, "on_step": None}
    check_call(**right)
    check_call(**(right | {"seeds": range(3), "latents": torch.zeros(1, 4, 2, 2)}))
    with pytest.raises(UserError, match=message):
        check_call(**(right | wrong))


def test_a_bar_where_somebody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "progress" in inspect.signature(Pipeline.generate).parameters
    mine: Any = lambda *step: None  # noqa: E731
    with bar_for_steps(None, mine) as report:
        assert report is mine
    with bar_for_steps(None, None) as report:
        assert report is None  # no terminal here
    monkeypatch.setattr("ldm.pipeline.step_bar.is_watched", lambda: True)
    with bar_for_steps(None, None) as report:
        assert report is not None
    seen: list[int] = []
    with bar_for_steps(True, lambda done, *rest: seen.append(done)) as report:
        assert report is not None
        report(1, 2, None, None)  # type: ignore[arg-type]
    assert seen == [1] and not progress.is_watched()


UNUSUAL: dict[str, Any] = {
    r"<lora:film:0\.8> in a prompt .* --lora FILE:WEIGHT": lambda own: warn_of_prompts(
        ["a <lora:film:0.8> b"]
    ),
    r"\(red:1\.5\) in a prompt is read as words": lambda own: warn_of_prompts(["a (red:1.5) apple"]),
    r"the LoRA a has weight 30: 1 is as trained": lambda own: warn_of_lora("a", 30),
    r"guidance_scale 100 is far above this model's own 7\.5": lambda own: warn_of_settings(
        GenerationSettings(guidance_scale=100.0).over(own), own
    ),
    r"64 x 64 pixels are far from this model's own 512 x 512": lambda own: warn_of_settings(
        GenerationSettings(height=64, width=64).over(own), own
    ),
}


@pytest.mark.parametrize("message", UNUSUAL)
def test_what_is_hardly_meant_is_warned_of(message: str) -> None:
    with pytest.warns(LdmWarning, match=message):
        UNUSUAL[message](GenerationSettings())


def test_what_is_usual_is_not() -> None:
    own = GenerationSettings()
    warn_of_prompts(["an apple (red), 16:9", "ratio 3:2 (see note)", "a smiley :)"])
    warn_of_lora("a", -2)
    warn_of_settings(GenerationSettings(guidance_scale=12.0, height=768, width=1024).over(own), own)
