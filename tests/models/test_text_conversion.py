"""An open_clip model from its shape, and the equality of its text tower and the CLIPTextModel made from it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip.model
import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel

from ldm.config import validate
from ldm.errors import UserError
from ldm.models.clip_conversion import ClipShape, make_open_clip, to_transformers

VOCAB_SIZE = 530
START, END = VOCAB_SIZE - 2, VOCAB_SIZE - 1
SHAPE = ClipShape(
    embed_dim=12,
    patch_size_px=8,
    vision_width=24,
    vision_layers=1,
    vision_heads=3,
    text_width=32,
    text_layers=3,
    text_heads=4,
    context_length=9,
)


def randomized(model: open_clip.model.CLIP) -> open_clip.model.CLIP:
    """Make every weight random, norms and biases too, so that a test notices when two are confused."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_model() -> open_clip.model.CLIP:
    return randomized(make_open_clip(SHAPE, vocab_size=VOCAB_SIZE, image_size_px=(16, 24)))


def make_other_model(*, quick_gelu: bool = False, ls_init_value: float | None = None) -> open_clip.model.CLIP:
    """Another model that open_clip can make."""
    vision = open_clip.model.CLIPVisionCfg(layers=1, width=24, head_width=8, patch_size=8, image_size=16)
    text = open_clip.model.CLIPTextCfg(9, VOCAB_SIZE, width=48, heads=2, layers=2)
    text.ls_init_value = ls_init_value
    return randomized(open_clip.model.CLIP(12, vision, text, quick_gelu=quick_gelu))


def token_ids(pad: int = END) -> Tensor:
    """Captions with no, some and as many tokens as fit, padded after their end token."""
    rows = [[START, END], [START, 7, 300, 529 - 16, END], [START, *range(100, 107), END], [START, 5, 5, END]]
    return torch.tensor([row + [pad] * (9 - len(row)) for row in rows])


def tower_output(model: open_clip.model.CLIP, ids: Tensor) -> Tensor:
    """The tower's output for every token, after its last norm: [B, L, D]."""
    hidden = model.token_embedding(ids) + model.positional_embedding
    output: Tensor = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask))
    return output


@pytest.mark.parametrize("make", [make_model, partial(make_other_model, quick_gelu=True)])
@torch.no_grad()
def test_outputs_equal_those_of_the_tower(make: Callable[[], open_clip.model.CLIP]) -> None:
    model = make()
    ids = token_ids()
    outputs = to_transformers(model)(input_ids=ids)
    torch.testing.assert_close(outputs.last_hidden_state, tower_output(model, ids), atol=1e-5, rtol=0)
    projected = outputs.pooler_output @ model.text_projection
    torch.testing.assert_close(projected, model.encode_text(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pooled_output_is_that_of_the_first_end_token() -> None:
    outputs = to_transformers(make_model())(input_ids=token_ids())
    ends = [1, 4, 8, 3]
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[range(4), ends])


@torch.no_grad()
def test_padding_is_not_seen_before_the_end_token() -> None:
    text_model = to_transformers(make_model())
    ours, theirs = text_model(input_ids=token_ids(END)), text_model(input_ids=token_ids(0))
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output)
    for row, end in enumerate([1, 4, 8, 3]):
        real = slice(0, end + 1)
        torch.testing.assert_close(ours.last_hidden_state[row, real], theirs.last_hidden_state[row, real])


@torch.no_grad()
def test_outputs_stay_equal_after_saving_and_loading(tmp_path: Path) -> None:
    text_model = to_transformers(make_model())
    text_model.save_pretrained(tmp_path)
    loaded = CLIPTextModel.from_pretrained(tmp_path).eval()
    before, after = text_model(input_ids=token_ids()), loaded(input_ids=token_ids())
    assert torch.equal(before.last_hidden_state, after.last_hidden_state)
    assert torch.equal(before.pooler_output, after.pooler_output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@torch.no_grad()
def test_weights_are_copied() -> None:
    model = make_model()
    text_model = to_transformers(model)
    before = text_model(input_ids=token_ids()).pooler_output
    model.token_embedding.weight.zero_()
    assert torch.equal(text_model(input_ids=token_ids()).pooler_output, before)
    assert not text_model.training


def test_config_names_the_special_tokens() -> None:
    config = to_transformers(make_model()).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (START, END, END)
    assert config.max_position_embeddings == 9


def test_a_tower_with_layer_scales_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resblocks\.0\.ls_1\.gamma"):
        to_transformers(make_other_model(ls_init_value=0.1))


def test_model_has_the_shape_of_its_settings() -> None:
    model = make_open_clip(SHAPE, vocab_size=VOCAB_SIZE, image_size_px=(16, 24))
    assert model.encode_image(torch.zeros(2, 3, 16, 24)).shape == (2, 12)
    assert model.encode_text(token_ids()).shape == (4, 12)
    assert len(model.visual.transformer.resblocks) == 1
    assert model.visual.transformer.resblocks[0].attn.num_heads == 3
    assert model.visual.transformer.resblocks[0].attn.embed_dim == 24
    assert model.visual.positional_embedding.shape == (7, 24)
    assert len(model.transformer.resblocks) == 3
    assert model.transformer.resblocks[0].attn.num_heads == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vision_heads": 5}, "vision_heads = 5 must divide vision_width = 24"),
        ({"text_width": 30}, "text_heads = 4 must divide text_width = 30"),
    ],
)
def test_heads_that_do_not_divide_the_width_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(ClipShape, SHAPE.model_dump() | wrong)


@pytest.mark.parametrize("size", [(16, 20), (20, 16)])
def test_patches_that_do_not_tile_the_image_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"divisor of the image size, {size[0]} x {size[1]}"):
        make_open_clip(SHAPE, vocab_size=VOCAB_SIZE, image_size_px=size)
