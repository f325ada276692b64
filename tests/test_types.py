"""`Conditioning`: selecting, concatenating and mapping rows applies to every field."""

from dataclasses import fields

import pytest
import torch

from ldm.types import Conditioning


def full(*values: float) -> Conditioning:
    """One row per value, with every field set."""
    rows = torch.tensor(values)

    def shaped(*shape: int) -> torch.Tensor:
        return rows.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()

    return Conditioning(
        prompt_embeds=shaped(3, 2),
        pooled=shaped(2),
        attention_mask=shaped(3),
        time_ids=shaped(6),
        class_labels=rows.clone(),
        concat=shaped(5, 4, 4),
        hints=(shaped(3, 8, 8),),
        down_residuals=(shaped(2, 4, 4), shaped(3, 2, 2)),
        mid_residual=shaped(3, 2, 2),
        adapter_residuals=(shaped(2, 4, 4),),
        image_embeds=(shaped(1, 7),),
        guidance_scale=rows.clone(),
    )


def tensors(conditioning: Conditioning) -> list[torch.Tensor]:
    found = []
    for field in fields(conditioning):
        value = getattr(conditioning, field.name)
        found += list(value) if isinstance(value, tuple) else [value]
    return found


def test_rows_are_selected_in_every_field() -> None:
    chosen = full(1.0, 2.0, 3.0).select([2, 0, 0])
    assert len(chosen) == 3
    assert len(tensors(chosen)) == 13
    for found, expected in zip(tensors(chosen), tensors(full(3.0, 1.0, 1.0)), strict=True):
        assert torch.equal(found, expected)


def test_rows_are_joined_in_every_field() -> None:
    joined = Conditioning.cat([full(1.0), full(2.0, 3.0)])
    for found, expected in zip(tensors(joined), tensors(full(1.0, 2.0, 3.0)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [field.name for field in fields(Conditioning)][1:])
def test_a_field_missing_in_some_rows_is_an_error(name: str) -> None:
    whole = full(1.0)
    lacking = Conditioning(**{**vars(whole), name: () if isinstance(getattr(whole, name), tuple) else None})
    with pytest.raises(ValueError, match=f"{name} is missing in conditioning 1 of 2"):
        Conditioning.cat([whole, lacking])


def test_a_single_row_is_repeated() -> None:
    assert len(full(1.0).expand(3)) == 3
    several = full(1.0, 2.0)
    assert several.expand(2) is several
