"""Prompt weights: how the weight of a word, see `ldm.models.prompt_grammar`, changes the prompt's embeddings.

Axis letters: B prompts, n chunks, L tokens per chunk, D text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ldm.models.clip import ClipTextEncoder, split_chunks
from ldm.models.prompt_grammar import weighted_texts
from ldm.models.setting_limits import MAX_PROMPT_CHUNKS
from ldm.types import Conditioning

WeightRule = Literal["a1111", "comfy"]
"""`scale_keeping_mean` or `move_from_empty`."""


def embed_weighted(
    encoder: ClipTextEncoder,
    prompts: Sequence[str],
    num_chunks: int,
    rule: WeightRule,
    second: str = "",
) -> Conditioning:
    """The embeddings of prompts in the grammar, one row each; the pooled vector has no weights.

    A prompt all of whose weights are 1 has the same embeddings as its plain text, bit for bit.

    Args:
        second: in place of the prompts for a second text encoder, if it is not empty.
    """
    texts = encoder.texts(prompts, second)
    pairs = zip(encoder.encoders, texts, strict=True)
    return encoder.joined(texts, [_embed_weighted(each, own, num_chunks, rule) for each, own in pairs])


def _embed_weighted(
    encoder: ClipTextEncoder, prompts: Sequence[str], num_chunks: int, rule: WeightRule
) -> Conditioning:
    rows = [_rows(encoder, prompt, num_chunks) for prompt in prompts]
    plain = encoder.embed(torch.tensor([ids for ids, _ in rows], dtype=torch.long))
    shape = (len(rows), num_chunks, encoder.context_length)
    z = plain.prompt_embeds.view(*shape, -1)
    weights = torch.tensor([row for _, row in rows], dtype=torch.float32).view(shape).to(z.device)
    if rule == "a1111":
        weighted = scale_keeping_mean(z, weights)
    else:
        weighted = move_from_empty(z, weights, encoder.embed(encoder.tokenize([""])).prompt_embeds)
    return replace(plain, prompt_embeds=weighted.view_as(plain.prompt_embeds))


def scale_keeping_mean(z: Tensor, weights: Tensor) -> Tensor:
    """A1111's rule: z w, rescaled so that the mean of each chunk of each prompt stays what it was.

    A1111 takes the mean over all prompts of the batch together, so that an embedding depends on the other prompts; here
    it is what A1111 computes for the prompt alone.

    Args:
        z: [B, n, L, D].
        weights: [B, n, L].
    """
    scaled = z * weights[..., None].to(z.dtype)
    before, after = (each.float().mean(dim=(2, 3), keepdim=True) for each in (z, scaled))
    factor = torch.where(after == 0, torch.ones_like(after), before / after)
    is_plain = (weights == 1).all(dim=2)[..., None, None]
    return torch.where(is_plain, z, scaled * factor.to(z.dtype))


def move_from_empty(z: Tensor, weights: Tensor, empty: Tensor) -> Tensor:
    """ComfyUI's rule: z_empty + w (z - z_empty), where z_empty is the embedding of the empty prompt at that token.

    Args:
        z: [B, n, L, D].
        weights: [B, n, L].
        empty: [1, L, D].
    """
    w = weights[..., None].to(z.dtype)
    return torch.where(w == 1, z, (z - empty) * w + empty)


@dataclass(frozen=True)
class TokenizedPrompt:
    """The tokens of a prompt in the grammar, divided into chunks.

    Attributes:
        ids: without start, end and padding.
        weights: of each token: that of its first character.
        words: the text from each token's start to the end of the prompt's part.
        ends: where each chunk ends.
        limits: for each chunk, where its part of the prompt between BREAK ends.
    """

    ids: list[int]
    weights: list[float]
    words: list[str]
    ends: list[int]
    limits: list[int]

    def limited(self, num_chunks: int, room: int) -> list[int]:
        """The ends of the first `num_chunks` chunks; the last is filled completely if its part goes on."""
        if len(self.ends) <= num_chunks:
            return self.ends
        start = self.ends[num_chunks - 2] if num_chunks > 1 else 0
        return [*self.ends[: num_chunks - 1], min(start + room, self.limits[num_chunks - 1])]


def tokenize_prompt(encoder: ClipTextEncoder, prompt: str) -> TokenizedPrompt:
    """The tokens of a prompt in the grammar; an empty part between BREAK is an empty chunk."""
    found = TokenizedPrompt([], [], [], [], [])
    for part in weighted_texts(prompt):
        encoded, first = encoder.encode_text(part.text), len(found.ids)
        starts = [start for start, _ in encoded["offset_mapping"]]
        found.ids.extend(encoded["input_ids"])
        found.weights.extend(part.weights[start] if start < len(part.weights) else 1.0 for start in starts)
        found.words.extend(part.text[start:] for start in starts)
        ends = split_chunks(encoded.word_ids(), encoder.room) or [0]
        found.ends.extend(first + end for end in ends)
        found.limits.extend([len(found.ids)] * len(ends))
    return found


def chunks_needed(encoder: ClipTextEncoder, prompt: str) -> int:
    """How many chunks the whole prompt needs, 1 to `MAX_PROMPT_CHUNKS`; a longer one is cut off in the last."""
    return min(len(tokenize_prompt(encoder, prompt).ends), MAX_PROMPT_CHUNKS)


def truncated_words(encoder: ClipTextEncoder, prompt: str, num_chunks: int = 1) -> str:
    """The end of the prompt that does not fit into `num_chunks`, without weights; empty if everything fits."""
    tokens = tokenize_prompt(encoder, prompt)
    end = tokens.limited(num_chunks, encoder.room)[-1]
    starts = sorted({place for place in (end, *tokens.limits) if end <= place < len(tokens.ids)})
    return " ".join(tokens.words[start].strip() for start in starts)


def _rows(encoder: ClipTextEncoder, prompt: str, num_chunks: int) -> tuple[list[int], list[float]]:
    """Token ids and weights [n L], each chunk with start and end and padded; their weight is 1."""
    tokens = tokenize_prompt(encoder, prompt)
    ends = tokens.limited(num_chunks, encoder.room)
    ends = [*ends, *[ends[-1]] * (num_chunks - len(ends))]
    ids: list[int] = []
    weights: list[float] = []
    for start, end in pairwise([0, *ends]):
        ids += encoder.complete_chunk(tokens.ids[start:end])
        own = [1.0, *tokens.weights[start:end]]
        weights += own + [1.0] * (encoder.context_length - len(own))
    return ids, weights
