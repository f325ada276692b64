"""Textual inversion (Gal et al. 2022): a new token whose vectors are trained while every other weight is frozen.

A token with n vectors takes n places in the prompt. It is written `<name>`, so that it is never part of a word. In a
model with two text encoders, it has n vectors in each.

A file of one text encoder is {token: [n, D]}; one of two is {"clip_l": [n, D], "clip_g": [n, D']}, without the token.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from ldm.config import Settings
from ldm.errors import UserError
from ldm.models.clip import ClipTextEncoder

TOKEN = re.compile(r"<[^\s<>|]+>")
VECTOR = re.compile(r"<\|(.+):\d+\|>")
FILE_KEYS = {"": "clip_l", "_2": "clip_g"}
"""The names of a token's vectors in a file of two text encoders, by `ClipTextEncoder.suffix`."""

Vectors = Tensor | Mapping[str, Tensor]
"""A token's vectors: [n, D] of one text encoder, or those of several by `FILE_KEYS`."""


class EmbeddingSettings(Settings):
    """The new token of a textual inversion."""

    token: str = Field(description="the word for the subject in captions and prompts, such as <my-cat>")
    initial_word: str = Field(min_length=1, description="a known word with a similar meaning, such as cat")
    num_vectors: int = Field(1, ge=1, description="places in the prompt that the token takes")

    @field_validator("token")
    @classmethod
    def _delimited(cls, value: str) -> str:
        if not TOKEN.fullmatch(value):
            name = re.sub(r"[^\w-]", "", value) or "name"
            raise ValueError(f"write it in angle brackets and without spaces: <{name}>")
        return value


class TokenEmbedding(nn.Module):
    """A frozen embedding [V, D] and the trained vectors [n, D] of the ids `first_id` to `first_id + n - 1`.

    Attributes:
        vectors: float32, the only trained weights.
    """

    def __init__(self, base: nn.Embedding, vectors: Tensor, first_id: int) -> None:
        super().__init__()
        self.base, self.first_id = base, first_id
        self.vectors = nn.Parameter(vectors.detach().float().clone())

    def forward(self, token_ids: Tensor) -> Tensor:
        """[B, L] -> [B, L, D]."""
        place = token_ids - self.first_id
        own = (place >= 0) & (place < len(self.vectors))
        rows = self.base(token_ids.masked_fill(own, 0))
        vectors = functional.embedding(place.clamp(0, len(self.vectors) - 1), self.vectors).to(rows.dtype)
        return torch.where(own[..., None], vectors, rows)

    def joined(self) -> nn.Embedding:
        """One plain embedding [max(V, first_id + n), D] with the same rows."""
        frozen, end = self.base.weight.detach(), self.first_id + len(self.vectors)
        rows = torch.cat([frozen[: self.first_id], self.vectors.detach().to(frozen), frozen[end:]])
        joined: nn.Embedding = nn.Embedding.from_pretrained(rows, freeze=True)  # type: ignore[no-untyped-call]
        return joined


def add_embedding(text_encoder: ClipTextEncoder, settings: EmbeddingSettings) -> None:
    """Add the new token to each text encoder; all its vectors start as the mean of the initial word's.

    Raises:
        UserError: a tokenizer knows the token, or the model has a new token already.
    """
    for encoder in text_encoder.encoders:
        word_ids = encoder.tokenizer(settings.initial_word, add_special_tokens=False)["input_ids"]
        if not word_ids:
            raise UserError(
                f"embedding.initial_word = {settings.initial_word!r} is empty", "name a known word"
            )
        rows = _matrix(encoder).weight.detach()[torch.tensor(word_ids)]
        _insert(encoder, settings.token, rows.float().mean(dim=0).repeat(settings.num_vectors, 1))


def embedding_vectors(text_encoder: ClipTextEncoder) -> list[nn.Parameter]:
    """The trained vectors [n, D] of the new token, for each text encoder."""
    layers = [encoder.model.get_input_embeddings() for encoder in text_encoder.encoders]
    assert all(isinstance(layer, TokenEmbedding) for layer in layers), "no token was added"
    return [layer.vectors for layer in layers]


def embedding_file(text_encoder: ClipTextEncoder, token: str) -> dict[str, Tensor]:
    """The contents of a file with the trained vectors."""
    pairs = zip(text_encoder.encoders, embedding_vectors(text_encoder), strict=True)
    found: dict[str, Tensor] = {FILE_KEYS[encoder.suffix]: vectors for encoder, vectors in pairs}
    return found if len(found) > 1 else {token: next(iter(found.values()))}


def tokens_in_file(tensors: Mapping[str, Tensor], token: str) -> dict[str, Vectors]:
    """The tokens in a file, each with its vectors.

    Args:
        token: what the vectors of two text encoders stand for, as the file does not say.

    Raises:
        UserError: that is needed, and no token.
    """
    if not is_of_two(tensors):
        return dict(tensors)
    if not TOKEN.fullmatch(token):
        raise UserError(f"the token of an embedding is {token!r}", "it must be such as <my-cat>")
    return {token: tensors}


def is_of_two(names: Collection[str]) -> bool:
    """Whether a file with tensors of these names has the vectors of a token in two text encoders."""
    return bool(names) and set(names) <= set(FILE_KEYS.values())


def apply_embedding(text_encoder: ClipTextEncoder, token: str, vectors: Vectors) -> None:
    """Add a trained token with vectors [n, D] (or [D]) to each text encoder, in plain embedding matrices.

    Raises:
        UserError: a tokenizer knows the token, or the vectors have another width, are those of other text encoders, or
            are more for one than for another.
    """
    own = list(_vectors_of(text_encoder, token, vectors))
    if len({len(each) for each in own}) > 1:
        counts = " and ".join(str(len(each)) for each in own)
        raise UserError(f"the embedding of {token} has {counts} vectors", "use another file")
    for encoder, each in zip(text_encoder.encoders, own, strict=True):
        _insert(encoder, token, each)
        joined = encoder.model.get_input_embeddings().joined()
        encoder.model.set_input_embeddings(joined)
        encoder.model.config.vocab_size = joined.num_embeddings


def _vectors_of(text_encoder: ClipTextEncoder, token: str, vectors: Vectors) -> Iterator[Tensor]:
    """The vectors [n, D] of each text encoder. A refiner, which has the second one alone, reads its half.

    Raises:
        UserError: those of one are missing, or there are some for an encoder that the model lacks.
    """
    here = {FILE_KEYS[encoder.suffix] for encoder in text_encoder.encoders}
    second = FILE_KEYS["_2"]
    if not isinstance(vectors, Tensor) and second in vectors and second not in here:
        what = f"the embedding of {token} has {second}, and this model has no second text encoder"
        raise UserError(what, "use one made for this family of models")
    for encoder in text_encoder.encoders:
        key = FILE_KEYS[encoder.suffix]
        if isinstance(vectors, Tensor) and len(text_encoder.encoders) == 1:
            own = vectors
        elif isinstance(vectors, Tensor) or key not in vectors:
            raise UserError(f"the embedding of {token} has no {key}", "is it of another model?")
        else:
            own = vectors[key]
        yield own[None] if own.ndim == 1 else own


def expanded_tokens(tokenizer: Any) -> list[str]:
    """The tokens with several vectors that a tokenizer knows: its files cannot hold them."""
    found = (VECTOR.fullmatch(name) for name in tokenizer.get_added_vocab())
    return list(dict.fromkeys(f"<{match[1]}>" for match in found if match))


def _insert(text_encoder: ClipTextEncoder, token: str, vectors: Tensor) -> None:
    """Add a token to one text encoder; one of a pair is its own, without the other."""
    base = _matrix(text_encoder)
    if vectors.ndim != 2 or vectors.shape[1] != base.embedding_dim:
        raise UserError(
            f"the embedding of {token} has shape {list(vectors.shape)}",
            f"this model has vectors of {base.embedding_dim} numbers: is it of another model?",
        )
    first_id = add_token(text_encoder.tokenizer, token, len(vectors))
    layer = TokenEmbedding(base, vectors.to(base.weight.device), first_id)
    text_encoder.model.set_input_embeddings(layer)


def _matrix(text_encoder: ClipTextEncoder) -> nn.Embedding:
    layer = text_encoder.model.get_input_embeddings()
    assert isinstance(layer, nn.Embedding), "a token is being trained in this text encoder"
    return layer


def add_token(tokenizer: Any, token: str, num_vectors: int) -> int:
    """Add one word to a tokenizer that becomes `num_vectors` consecutive ids; returns the first.

    With several ids, the tokenizer's normalizer replaces the token by that many private tokens, so that ids, counts and
    offsets agree.

    Raises:
        UserError: it knows the token already.
    """
    written = tokenizer.backend_tokenizer.normalizer.normalize_str(token)
    clashes = {token, written, f"{written}</w>", f"{token}_1"} & tokenizer.get_vocab().keys()
    if clashes or VECTOR.search(written):
        raise UserError(f"the token {token!r} is in the vocabulary of this model", "choose another token")
    first_id = len(tokenizer)
    if num_vectors == 1:
        tokenizer.add_tokens([token])
    else:
        _add_expanded(tokenizer, written, [f"<|{written[1:-1]}:{i}|>" for i in range(num_vectors)])
    return first_id


def _add_expanded(tokenizer: Any, written: str, names: list[str]) -> None:
    from tokenizers import AddedToken
    from tokenizers.normalizers import Replace, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([backend.normalizer, Replace(written, "".join(names))])
    tokenizer.add_tokens([AddedToken(name, normalized=True) for name in names])
