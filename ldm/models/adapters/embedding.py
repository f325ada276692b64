"""Textual inversion (Gal et al. 2022): a new token whose vectors are trained while every other weight is frozen.

A token with n vectors takes n places in the prompt. It is written `<name>`, so that it is never part of a word.
"""

import re
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
    """Add the new token to the text encoder; all its vectors start as the mean of the initial word's.

    Raises:
        UserError: the tokenizer knows the token, or the model has a new token already.
    """
    word_ids = text_encoder.tokenizer(settings.initial_word, add_special_tokens=False)["input_ids"]
    if not word_ids:
        raise UserError(f"embedding.initial_word = {settings.initial_word!r} is empty", "name a known word")
    rows = _matrix(text_encoder).weight.detach()[torch.tensor(word_ids)]
    _insert(text_encoder, settings.token, rows.float().mean(dim=0).repeat(settings.num_vectors, 1))


def embedding_vectors(text_encoder: ClipTextEncoder) -> nn.Parameter:
    """The trained vectors [n, D] of the new token."""
    layer = text_encoder.model.get_input_embeddings()
    assert isinstance(layer, TokenEmbedding), "no token was added to this text encoder"
    return layer.vectors


def apply_embedding(text_encoder: ClipTextEncoder, token: str, vectors: Tensor) -> None:
    """Add a trained token with vectors [n, D] (or [D]) to the text encoder, in a plain embedding matrix.

    Raises:
        UserError: the tokenizer knows the token, or the vectors have another width.
    """
    _insert(text_encoder, token, vectors[None] if vectors.ndim == 1 else vectors)
    joined = text_encoder.model.get_input_embeddings().joined()
    text_encoder.model.set_input_embeddings(joined)
    text_encoder.model.config.vocab_size = joined.num_embeddings


def expanded_tokens(tokenizer: Any) -> list[str]:
    """The tokens with several vectors that a tokenizer knows: its files cannot hold them."""
    found = (VECTOR.fullmatch(name) for name in tokenizer.get_added_vocab())
    return list(dict.fromkeys(f"<{match[1]}>" for match in found if match))


def _insert(text_encoder: ClipTextEncoder, token: str, vectors: Tensor) -> None:
    if len(text_encoder.encoders) > 1:
        raise UserError(
            "embeddings of models with two text encoders are not supported yet", "train or use a LoRA instead"
        )
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
