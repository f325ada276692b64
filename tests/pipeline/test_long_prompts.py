"""Prompts longer than the context: chunks, what is cut off, and images independent of their neighbours' length."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import LdmWarning, UserError
from ldm.models.clip import ClipTextEncoder, split_chunks
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.folder import read_defaults
from ldm.models.loading.model import load_parts
from ldm.models.setting_limits import MAX_PROMPT_CHUNKS
from ldm.pipeline.pipeline import Generation, Pipeline
from ldm.types import Step
from tests.support.tiny_models import CONTEXT_LENGTH, make_sd1, make_sd2, make_tokenizer

ROOM = CONTEXT_LENGTH - 2
SHORT = "a red apple"
LONG = " ".join(["a red apple on a table"] * 3)  # two chunks
LONGEST = " ".join(["the large blue square above a small green circle"] * 12)
FAST = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    parts = make_sd1(tmp_path_factory.mktemp("tokenizer"))
    parts.defaults = GenerationSettings(height=16, width=16, num_inference_steps=2, max_prompt_chunks=3)
    return Pipeline(parts)


@pytest.fixture(scope="module")
def encoder(pipeline: Pipeline) -> ClipTextEncoder:
    return pipeline.text_encoder


def words_of(lengths: list[int]) -> list[int]:
    return [word for word, length in enumerate(lengths) for _ in range(length)]


def test_chunks_end_between_words_where_they_can() -> None:
    assert split_chunks([], 4) == []
    assert split_chunks(words_of([1] * 9), 4) == [4, 8, 9]
    assert split_chunks(words_of([3, 2, 2, 1]), 4) == [3, 7, 8]
    assert split_chunks(words_of([2, 9, 1]), 4) == [
        4,
        8,
        12,
    ]  # a word longer than a chunk is split and wastes no room
    assert split_chunks(words_of([4, 4]), 4) == [4, 8]
    assert split_chunks([None] * 5, 2) == [2, 4, 5]


@FAST
@given(st.lists(st.integers(1, 7), max_size=20), st.integers(1, 5))
@example([1, 5, 5], 5)
def test_chunks_hold_every_token_once_and_no_word_is_split_that_fits(lengths: list[int], room: int) -> None:
    words = words_of(lengths)
    ends = split_chunks(words, room)
    begins = [0, *ends][: len(ends)]
    assert [token for b, e in zip(begins, ends, strict=True) for token in range(b, e)] == list(
        range(len(words))
    )
    for begin, end in zip(begins, ends, strict=True):
        assert 0 < end - begin <= room
        if end < len(words) and words[end] == words[end - 1]:
            assert lengths[words[end]] > room
        elif end < len(words):  # the next word, or the piece of it that fits, did not fit
            following = min(lengths[words[end]], room + 1)
            assert end - begin == room or (following <= room and end - begin + following > room)


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
def test_one_chunk_has_the_ids_of_the_tokenizer_itself(
    encoder: ClipTextEncoder, tmp_path: Path, pad_token: str
) -> None:
    tokenizer = make_tokenizer(tmp_path, pad_token)
    prompts = ["", SHORT, LONG, "A  RED, apple's <|endoftext|> 猫 🙂", "x" * 99, " ".join(["a"] * ROOM)]
    own = tokenizer(prompts, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH)
    made = ClipTextEncoder(tokenizer, encoder.model).tokenize(prompts)
    assert made.tolist() == own["input_ids"]


def test_a_long_prompt_is_its_parts_one_after_another(encoder: ClipTextEncoder) -> None:
    parts = [" ".join(["square"] * n) for n in (3, 3, 2)]  # four tokens a word: the fourth would be split
    assert encoder.count_tokens(parts[0]) < CONTEXT_LENGTH < encoder.count_tokens(parts[0] + " square")
    for count in (3, 4):
        whole = encoder([" ".join(parts), SHORT], count)
        alone = encoder([*parts, ""])
        expected = torch.cat(list(alone.prompt_embeds[:count]))
        assert whole.prompt_embeds.shape == (2, count * CONTEXT_LENGTH, encoder.text_width)
        torch.testing.assert_close(whole.prompt_embeds[0], expected)
        assert whole.pooled is not None and alone.pooled is not None
        torch.testing.assert_close(whole.pooled[0], alone.pooled[0])
    short = torch.cat([encoder([text]).prompt_embeds[0] for text in (SHORT, "", "", "")])
    torch.testing.assert_close(whole.prompt_embeds[1], short)


def test_as_many_chunks_as_needed_three_at_most(encoder: ClipTextEncoder) -> None:
    assert encoder.chunks_needed("") == encoder.chunks_needed(" ".join(["a"] * ROOM)) == 1
    assert encoder.chunks_needed(" ".join(["a"] * (ROOM + 1))) == 2
    assert encoder.chunks_needed(" ".join(["a"] * 3 * ROOM)) == 3
    assert encoder.chunks_needed(LONGEST) == MAX_PROMPT_CHUNKS == 3


def test_only_words_after_the_last_chunk_are_left_out(encoder: ClipTextEncoder) -> None:
    prompt = " ".join(["a"] * (2 * ROOM) + ["RED", " Apple"])
    assert encoder.truncated_words(prompt, 2) == "RED  Apple"
    assert encoder.truncated_words(prompt, 1).startswith("a a")
    assert encoder.truncated_words(prompt, 3) == ""
    # The last chunk is filled completely: part of a word says more than nothing, and one chunk is as in diffusers.
    cut = " ".join(["square"] * 6)
    assert encoder.truncated_words(cut, 2) == ""
    assert encoder.truncated_words(cut, 1) == encoder.truncated_words(cut) == "uare square square"


def generate(pipeline: Pipeline, prompts: list[str], **more: Any) -> Generation:
    return pipeline.generate(prompts, **{"seed": 3, "scheduler": "ddim", **more})


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.tobytes() == second.tobytes()


@pytest.mark.filterwarnings("ignore:the prompt is too long:ldm.errors.LdmWarning")
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_an_image_does_not_depend_on_the_length_of_its_neighbours(
    pipeline: Pipeline, guidance_scale: float
) -> None:
    prompts = [LONG, SHORT, LONGEST]
    together = generate(pipeline, prompts, guidance_scale=guidance_scale)
    for index, prompt in enumerate(prompts):
        alone = generate(pipeline, [prompt], guidance_scale=guidance_scale)
        assert torch.equal(together.latents[index], alone.latents[0])
        assert same(together.images[index], alone.images[0])
        assert together.settings[index] == alone.settings[0]
    assert [pipeline.text_encoder.chunks_needed(prompt) for prompt in prompts] == [2, 1, 3]
    assert not same(together.images[0], together.images[2])


def test_images_latents_and_steps_stay_with_their_rows(pipeline: Pipeline) -> None:
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[int, int, int]] = []

    def on_step(done: int, total: int, step: Step, latents: torch.Tensor) -> None:
        seen.append((done, total, len(latents)))

    together = generate(pipeline, [LONG, SHORT], num_images=2, latents=noise, batch_size=1, on_step=on_step)
    for index, prompt in ((0, LONG), (1, LONG), (2, SHORT), (3, SHORT)):
        alone = generate(pipeline, [prompt], latents=noise[index : index + 1])
        assert torch.equal(together.latents[index], alone.latents[0])
    assert seen == [(done, 8, 1) for done in range(1, 9)]
    mixed = generate(pipeline, [LONG, SHORT, LONG], latents=noise[:3])
    assert torch.equal(mixed.latents[1], generate(pipeline, [SHORT], latents=noise[1:2]).latents[0])
    assert [s["prompt"] for s in mixed.settings] == [LONG, SHORT, LONG]


def test_chunks_are_added_only_where_a_prompt_needs_them(pipeline: Pipeline) -> None:
    one = generate(pipeline, [SHORT], max_prompt_chunks=1)
    assert torch.equal(generate(pipeline, [SHORT]).latents, one.latents)
    with pytest.warns(LdmWarning, match="left out"):
        cut = generate(pipeline, [LONG], max_prompt_chunks=1)
    assert not torch.equal(generate(pipeline, [LONG]).latents, cut.latents)
    made = generate(pipeline, [SHORT], negative_prompt=LONG)
    with pytest.warns(LdmWarning, match="left out"):
        cut = generate(pipeline, [SHORT], negative_prompt=LONG, max_prompt_chunks=1)
    assert not torch.equal(made.latents, cut.latents)
    with pytest.warns(LdmWarning, match="negative prompt is not used"):
        unguided = generate(pipeline, [SHORT], negative_prompt=LONG, guidance_scale=1.0)
    assert torch.equal(unguided.latents, generate(pipeline, [SHORT], guidance_scale=1.0).latents)


def test_only_words_after_the_last_chunk_give_a_warning(pipeline: Pipeline) -> None:
    prompt = " ".join(["a"] * (2 * ROOM) + ["Red"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmWarning)
        generate(pipeline, [prompt])
    with pytest.warns(LdmWarning, match="too long for this model, left out: 'Red'"):
        generate(pipeline, [prompt], max_prompt_chunks=2)


def test_the_record_says_how_many_chunks_a_prompt_could_have(pipeline: Pipeline) -> None:
    assert generate(pipeline, [SHORT]).settings[0]["max_prompt_chunks"] == 3
    assert generate(pipeline, [SHORT], max_prompt_chunks=2).settings[0]["max_prompt_chunks"] == 2


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_out_of_range_is_refused(pipeline: Pipeline, count: int) -> None:
    with pytest.raises(
        UserError, match=f"max_prompt_chunks is {count}: it must be a whole number from 1 to 3"
    ):
        generate(pipeline, [SHORT], max_prompt_chunks=count)


def test_a_stock_folder_has_three_chunks_and_one_of_ours_what_it_says(tmp_path: Path) -> None:
    assert read_defaults(tmp_path, 16, 16).max_prompt_chunks == 3
    (tmp_path / "ldm.json").write_text(json.dumps({"defaults": {"height": 16}}))
    assert read_defaults(tmp_path, 16, 16).max_prompt_chunks == 1
    embedded = Path(__file__).parents[2] / "ldm" / "assets" / "emoji"
    assert read_defaults(embedded, 64, 64).max_prompt_chunks == 1


def test_the_count_is_saved_with_the_model(tmp_path: Path) -> None:
    parts = make_sd2(tmp_path / "tokenizer")
    parts.defaults = GenerationSettings(height=16, width=16, max_prompt_chunks=2)
    Pipeline(parts).save(tmp_path / "m")
    assert load_parts(tmp_path / "m").defaults.max_prompt_chunks == 2
