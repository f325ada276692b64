"""Prompt weights, prompts that change during sampling, and joined prompts: against closed forms and plain prompts."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.errors import LdmWarning
from ldm.models.adapters.embedding import apply_embedding
from ldm.models.clip import ClipTextEncoder
from ldm.models.prompt_weights import (
    WeightRule,
    chunks_needed,
    embed_weighted,
    scale_keeping_mean,
    truncated_words,
)
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import INPUTS_VERSION, read_record
from tests.support.tiny_images import pixels
from tests.support.tiny_models import CONTEXT_LENGTH, make_sd1

RULES: list[WeightRule] = ["a1111", "comfy"]
STEPS: dict[str, Any] = {"num_inference_steps": 4, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def encoder(pipeline: Pipeline) -> ClipTextEncoder:
    return pipeline.text_encoder


def z(encoder: ClipTextEncoder, *prompts: str, chunks: int = 1) -> torch.Tensor:
    return encoder(list(prompts), chunks).prompt_embeds


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("a red apple", "a red apple"),
        ("(a red:1) apple", "a red apple"),
        ("a (r:1)ed [(apple:1.1)] on", "a red apple on"),
        (r"a \(red\) apple", "a (red) apple"),
        ("", ""),
        (" ".join(["a red apple on a table"] * 9), " ".join(["a red apple on a table"] * 9)),
    ],
)
def test_weights_of_one_are_the_plain_prompt_bit_for_bit(
    encoder: ClipTextEncoder, rule: WeightRule, written: str, plain: str
) -> None:
    for chunks in (1, 2):
        found = embed_weighted(encoder, [written], chunks, rule)
        assert torch.equal(found.prompt_embeds, z(encoder, plain, chunks=chunks))
        assert torch.equal(found.pooled, encoder([plain], chunks).pooled)  # type: ignore[arg-type]
    assert chunks_needed(encoder, written) == encoder.chunks_needed(plain)
    assert truncated_words(encoder, written) == encoder.truncated_words(plain)


def test_each_rule_is_its_closed_form(encoder: ClipTextEncoder) -> None:
    plain, empty = z(encoder, "a red apple"), z(encoder, "")
    ids = encoder.tokenize(["a red apple"])[0].tolist()
    red = encoder.encode_text("red")["input_ids"]
    place = next(i for i in range(len(ids)) if ids[i : i + len(red)] == red)
    w = torch.ones(1, CONTEXT_LENGTH, 1)
    w[:, place : place + len(red)] = 1.5
    comfy = embed_weighted(encoder, ["a (red:1.5) apple"], 1, "comfy").prompt_embeds
    torch.testing.assert_close(comfy, empty + w * (plain - empty))
    a1111 = embed_weighted(encoder, ["a (red:1.5) apple"], 1, "a1111").prompt_embeds
    torch.testing.assert_close(a1111, plain * w * (plain.mean() / (plain * w).mean()))
    torch.testing.assert_close(a1111.mean(), plain.mean())


@pytest.mark.parametrize("rule", RULES)
def test_an_embedding_does_not_depend_on_the_other_prompts(
    encoder: ClipTextEncoder, rule: WeightRule
) -> None:
    prompts = ["a (red:1.6) apple", "(a large blue square:0.2)", "a table"]
    together = embed_weighted(encoder, prompts, 1, rule).prompt_embeds
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row, embed_weighted(encoder, [prompt], 1, rule).prompt_embeds[0])


def test_a_mean_of_zero_stays_finite() -> None:
    values = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1)
    assert scale_keeping_mean(values, torch.tensor([[[2.0, 2.0]]])).isfinite().all()


def test_break_fills_the_chunk(encoder: ClipTextEncoder) -> None:
    found = embed_weighted(encoder, ["a red apple BREAK (a table:1)"], 2, "comfy").prompt_embeds
    expected = torch.cat([z(encoder, "a red apple"), z(encoder, "a table")], dim=1)
    torch.testing.assert_close(found, expected)
    assert chunks_needed(encoder, "a BREAK b") == 2
    assert chunks_needed(encoder, "a BREAK BREAK b") == 3
    assert truncated_words(encoder, "a red apple BREAK (a table:2) BREAK b", 1) == "a table b"
    assert truncated_words(encoder, "a red apple BREAK a table", 2) == ""


def test_a_token_of_several_vectors_is_weighted_as_a_whole(tmp_path: Path) -> None:
    parts = make_sd1(tmp_path)
    apply_embedding(parts.text_encoder, "<cat>", torch.randn(3, 32))
    plain, empty = z(parts.text_encoder, "a <cat> apple"), z(parts.text_encoder, "")
    found = embed_weighted(parts.text_encoder, ["a (<cat>:2) apple"], 1, "comfy").prompt_embeds
    changed = (found != plain).any(dim=2)[0].nonzero().flatten().tolist()
    assert len(changed) == 3 and changed == list(range(changed[0], changed[0] + 3))
    torch.testing.assert_close(found[:, changed], (2 * plain - empty)[:, changed])


def made(pipeline: Pipeline, prompt: Any, **settings: Any) -> list[Any]:
    images = pipeline.generate(prompt, **{**STEPS, **settings}).images
    return [pixels(image) for image in images]


def test_plain_prompts_do_not_change_and_brackets_are_text_by_default(pipeline: Pipeline) -> None:
    prompts = ["a (red) [on] AND"]
    (default,), (none,) = made(pipeline, prompts), made(pipeline, prompts, prompt_weights="none")
    assert (default == none).all()
    assert "prompt_weights" not in pipeline.generate(prompts, **STEPS).settings[0]
    (plain,), (weighted,) = (
        made(pipeline, "a red apple"),
        made(pipeline, "a red apple", prompt_weights="a1111"),
    )
    assert (plain == weighted).all()


def test_weights_change_the_image_in_prompt_and_negative_prompt(pipeline: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmWarning)  # a weight that is read as one needs no warning
        (plain,) = made(pipeline, "a (red:1.8) apple", prompt_weights="comfy")
    (other,) = made(pipeline, "a red apple", prompt_weights="comfy")
    (negative,) = made(pipeline, "a red apple", negative_prompt="(apple:3)", prompt_weights="comfy")
    (lighter,) = made(pipeline, "a red apple", negative_prompt="apple", prompt_weights="comfy")
    assert (plain != other).any() and (negative != lighter).any()
    with pytest.warns(LdmWarning, match="--prompt-weights a1111"):
        made(pipeline, "a red apple", negative_prompt="(apple:3)")


def test_a_prompt_that_changes(pipeline: Pipeline) -> None:
    (first,) = made(pipeline, "a red apple")
    (second,) = made(pipeline, "a blue square")
    changes = {
        at: made(pipeline, f"[a red apple:a blue square:{at}]", prompt_weights="comfy")[0] for at in (0, 2, 4)
    }
    assert (changes[4] == first).all() and (changes[0] == second).all()
    assert (changes[2] != first).any() and (changes[2] != second).any()


def test_joined_prompts(pipeline: Pipeline) -> None:
    (plain,) = made(pipeline, "a red apple", guidance_scale=3.0)
    (halves,) = made(
        pipeline, "a red apple:0.25 AND a red apple:0.75", guidance_scale=3.0, prompt_weights="comfy"
    )
    assert abs(plain - halves).max() <= 1
    (joined,) = made(pipeline, "a red apple AND a table:0.7", guidance_scale=1.0, prompt_weights="comfy")
    assert (plain != joined).any()


def test_prompts_of_different_forms_give_what_each_alone_gives(pipeline: Pipeline) -> None:
    prompts = ["a (red:1.5) apple", "a AND table:0.7", "[a|table]", "a AND blue square:0.7"]
    options: dict[str, Any] = {"prompt_weights": "a1111", "num_inference_steps": 2}
    together = made(pipeline, prompts, **options)
    alone = [made(pipeline, prompt, **options)[0] for prompt in prompts]
    assert max(abs(a - b).max() for a, b in zip(together, alone, strict=True)) <= 1


def test_the_rule_is_recorded(pipeline: Pipeline, tmp_path: Path) -> None:
    (path,) = pipeline.generate("a (red:1.5) apple", prompt_weights="comfy", **STEPS).save(tmp_path)
    record = read_record(path)
    assert (record.settings.prompt_weights, record.record_version) == ("comfy", INPUTS_VERSION)
    assert b"Prompt weights: comfy" in path.read_bytes()
