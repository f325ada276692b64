"""The cache of caption embeddings: each caption once, and the empty one for classifier-free guidance."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.cache.fill import Filled, Processes, encode_again, fill_store
from ldm.data.cache.keys import prompt_key
from ldm.data.cache.shards import MISSING_HINT, Parts, ShardStore
from ldm.errors import UserError
from ldm.io.messages import say_warning
from ldm.types import Conditioning

BATCH_SIZE = 32
"""Captions that are encoded together."""

EncodePrompts = Callable[[list[str]], Conditioning]


@dataclass(frozen=True)
class PromptItem:
    """A caption and its key."""

    key: str
    text: str


class PromptCache:
    """Captions -> Conditioning, encoded once per text encoder.

    Args:
        folder: the cache's folder, `cache_root()` unless the settings name another.
        text_encoder_hash: `combined_hash` of the network, its tokenizer, its context and the number of chunks.
        on_damage: called with one line for every damaged shard and entry; by default it prints to stderr.
    """

    def __init__(
        self, folder: Path, text_encoder_hash: str, on_damage: Callable[[str], None] = say_warning
    ) -> None:
        self.text_encoder_hash = text_encoder_hash
        self.store = ShardStore(folder, "prompts", text_encoder_hash, on_damage)

    def missing(self, texts: Iterable[str]) -> list[str]:
        """The captions without a valid entry, including the empty one; each once, sorted."""
        self.store.refresh()
        return [item.text for item in self._items(texts) if self.store.get(item.key) is None]

    def fill(
        self,
        texts: Iterable[str],
        encode_prompts: EncodePrompts,
        *,
        rank: int = 0,
        num_processes: int = 1,
        barrier: Callable[[], None] = lambda: None,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Filled:
        """Encode the missing captions, and the empty one. Every process passes the same `texts`.

        Args:
            encode_prompts: B texts -> Conditioning with B rows; called only if something is missing.
            on_progress: called with the number of captions of this process's share that are there.

        Raises:
            UserError: the disk is full or not writable, or an embedding is not finite.
        """
        return fill_store(
            self.store,
            self._items(texts),
            partial(_encode_batches, encode_prompts),
            batch_size=batch_size,
            processes=Processes(rank, num_processes, barrier),
            on_progress=on_progress,
        )

    def encode_again_from(
        self, texts: Collection[str], encode_prompts: EncodePrompts, *, batch_size: int = BATCH_SIZE
    ) -> None:
        """Let `read` encode what was lost since the cache was filled, in the same batches.

        Args:
            texts: what `fill` was given.
        """
        wanted, encode = partial(self._items, texts), partial(_encode_batches, encode_prompts)
        self.store.encode_again = partial(encode_again, wanted, encode, batch_size)

    def read(self, texts: Sequence[str]) -> Conditioning:
        """The embeddings of B captions, one row each: prompt_embeds [B, L, D], other fields as they were encoded.

        Raises:
            UserError: the entry of a caption is missing or damaged, and cannot be encoded here.
        """
        rows = [self._row(text) for text in texts]
        stacked: dict[str, Tensor] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return Conditioning(
            stacked["prompt_embeds"], stacked.get("pooled_prompt_embeds"), stacked.get("attention_mask")
        )

    def _row(self, text: str) -> Parts:
        key = prompt_key(text, self.text_encoder_hash)
        parts = self.store.read(key)
        if parts is None:
            raise UserError(f"the caption {text!r} is not in the cache {self.store.folder}", MISSING_HINT)
        return parts

    def _items(self, texts: Iterable[str]) -> list[PromptItem]:
        """Each caption once, and the empty one; sorted, so that batches do not depend on the sample order."""
        return [PromptItem(prompt_key(text, self.text_encoder_hash), text) for text in sorted({"", *texts})]


@torch.no_grad()
def _encode_batches(
    encode_prompts: EncodePrompts, batches: Iterable[Sequence[PromptItem]]
) -> Iterator[list[Parts]]:
    for batch in batches:
        yield _rows(encode_prompts([item.text for item in batch]), batch)


def _rows(embeds: Conditioning, batch: Sequence[PromptItem]) -> list[Parts]:
    assert len(embeds) == len(batch), "one row of embeddings per caption"
    embeds = embeds.map(lambda tensor: tensor.detach().cpu())
    fields: list[tuple[str, Tensor | None]] = [
        ("prompt_embeds", embeds.prompt_embeds),
        ("pooled_prompt_embeds", embeds.pooled),
        ("attention_mask", embeds.attention_mask),
    ]
    for row, item in enumerate(batch):
        if not torch.isfinite(embeds.prompt_embeds[row]).all():
            raise UserError(
                f"the text encoder returns an embedding that is not finite for {item.text!r}", "use float32"
            )
    return [{name: t[row] for name, t in fields if t is not None} for row in range(len(batch))]
