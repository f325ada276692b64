"""The text encoder: a CLIP text model of transformers and its tokenizer, from prompts to `Conditioning`.

A prompt longer than the context is split into chunks. Each chunk is embedded separately, with its own start and end
token; the embeddings are joined along L, and the denoiser attends to all of them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.setting_limits import MAX_PROMPT_CHUNKS
from ldm.types import Conditioning


class ClipTextEncoder(nn.Module):
    """`text_encoder(B prompts, num_chunks=n) -> Conditioning`: prompt_embeds [B, n L, D], pooled [B, D].

    A prompt is padded to n chunks of L tokens; the rest is cut off, and `truncated_words` returns it. The pooled vector
    is the first chunk's. The same words in more chunks are a different condition, as the denoiser also attends to
    padding: the count is fixed for a training run, and in generation depends only on the image's own prompts.

    Attributes:
        tokenizer: the CLIPTokenizer.
        model: the CLIPTextModel or CLIPTextModelWithProjection, which is trained, saved and loaded.
        hidden_layer: the index of the hidden state that is used, without the final norm, such as -2 for the last layer
            but one. None is the output of the model.
        zeros_for_empty: the empty prompt has zeros for embeddings, in place of what the model makes of no words.
        suffix: of the names in the diffusers layout, such as `_2` for `text_encoder_2`.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        *,
        hidden_layer: int | None = None,
        zeros_for_empty: bool = False,
        suffix: str = "",
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model
        self.hidden_layer = hidden_layer
        self.zeros_for_empty = zeros_for_empty
        self.suffix = suffix

    def components(self) -> dict[str, Any]:
        """The networks and tokenizers inside, by their names in the diffusers layout."""
        return {f"text_encoder{self.suffix}": self.model, f"tokenizer{self.suffix}": self.tokenizer}

    @property
    def encoders(self) -> "tuple[ClipTextEncoder, ...]":
        """The text encoders that read a prompt each: this one alone, unless it joins several."""
        return (self,)

    @property
    def context_length(self) -> int:
        """L, the tokens per chunk, start and end included."""
        return min(int(self.tokenizer.model_max_length), int(self.model.config.max_position_embeddings))

    @property
    def text_width(self) -> int:
        """D, the width of the prompt embeddings."""
        return int(self.model.config.hidden_size)

    def forward(self, prompts: Sequence[str], num_chunks: int = 1, second: str = "") -> Conditioning:
        """The embeddings of B prompts; `second` is for models with a second text encoder."""
        texts = self.texts(prompts, second)
        pairs = zip(self.encoders, texts, strict=True)
        return self.joined(texts, [each.embed(each.tokenize(own, num_chunks)) for each, own in pairs])

    def unread_modules(self) -> list[nn.Module]:
        """Modules inside whose output nothing reads, so that training does not change them."""
        return []

    def texts(self, prompts: Sequence[str], second: str = "") -> list[Sequence[str]]:
        """What each of `encoders` reads: B texts for each."""
        return [prompts]

    def joined(self, texts: Sequence[Sequence[str]], parts: Sequence[Conditioning]) -> Conditioning:
        """The conditioning of what each of `encoders` made of its texts.

        Args:
            texts: of `texts`, to which weights may have been applied.
            parts: one for each encoder, B rows each.
        """
        (own,), (part,) = texts, parts
        return self.without_empty(own, part)

    def without_empty(self, texts: Sequence[str], part: Conditioning) -> Conditioning:
        """The embeddings with zeros for empty texts, if the model was trained with them."""
        if not self.zeros_for_empty or all(texts):
            return part
        is_empty = torch.tensor([not text for text in texts], device=part.prompt_embeds.device)
        return replace(
            part,
            prompt_embeds=part.prompt_embeds.masked_fill(is_empty[:, None, None], 0),
            pooled=None if part.pooled is None else part.pooled.masked_fill(is_empty[:, None], 0),
        )

    def tokenize(self, prompts: Sequence[str], num_chunks: int = 1) -> Tensor:
        """Token ids [B, num_chunks L] on the CPU, each chunk padded to the context; the rest is cut off."""
        encoded = self.tokenizer(list(prompts), add_special_tokens=False, verbose=False)
        rows = []
        for index, ids in enumerate(encoded["input_ids"]):
            ends = self._chunk_ends(encoded.word_ids(index), num_chunks)
            starts = [0, *ends][: len(ends)]
            chunks = [ids[start:end] for start, end in zip(starts, ends, strict=True)]
            rows.append([token for chunk in chunks for token in self.complete_chunk(chunk)])
        return torch.tensor(rows, dtype=torch.long)

    def embed(self, token_ids: Tensor) -> Conditioning:
        """The embeddings of token ids [B, n L]; padding is attended to as well, as in Stable Diffusion."""
        num_rows, length = token_ids.shape
        chunks = token_ids.reshape(-1, min(length, self.context_length))
        device = self.model.device
        if device.type == "cuda" and not chunks.is_cuda:
            chunks = chunks.pin_memory()  # the copy then does not wait for the device
        more = {} if self.hidden_layer is None else {"output_hidden_states": True}
        output = self.model(input_ids=chunks.to(device, non_blocking=True), return_dict=True, **more)
        hidden = (
            output.last_hidden_state if self.hidden_layer is None else output.hidden_states[self.hidden_layer]
        )
        vectors = output.text_embeds if "text_embeds" in output else output.pooler_output
        pooled = vectors.reshape(num_rows, -1, vectors.shape[-1])[:, 0]
        return Conditioning(hidden.reshape(num_rows, length, -1), pooled=pooled)

    def tokens_read(self, num_chunks: int) -> int:
        """How many tokens of a prompt fit into `num_chunks`, with start and end counted once, as in `count_tokens`."""
        return num_chunks * self.room + 2

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the whole prompt has in one chunk, start and end included."""
        return len(self.encode_text(prompt)["input_ids"]) + 2

    def chunks_needed(self, prompt: str) -> int:
        """How many chunks the whole prompt needs, 1 to `MAX_PROMPT_CHUNKS`; a longer one is cut off in the last."""
        ends = split_chunks(self.encode_text(prompt).word_ids(), self.room)
        return max(1, min(len(ends), MAX_PROMPT_CHUNKS))

    def truncated_words(self, prompt: str, num_chunks: int = 1) -> str:
        """The end of the prompt that does not fit into `num_chunks`, as it was written; empty if everything fits."""
        encoded = self.encode_text(prompt)
        end = self._chunk_ends(encoded.word_ids(), num_chunks)[-1]
        if end == len(encoded["input_ids"]):
            return ""
        start, _ = encoded["offset_mapping"][end]
        return prompt[start:].strip()

    @property
    def room(self) -> int:
        """Tokens of a prompt per chunk, L without start and end."""
        return self.context_length - 2

    def _chunk_ends(self, word_ids: Sequence[int | None], num_chunks: int) -> list[int]:
        """Where each of `num_chunks` chunks ends; the last one is filled completely if the prompt is longer."""
        ends = split_chunks(word_ids, self.room)
        if len(ends) > num_chunks:
            start = ends[num_chunks - 2] if num_chunks > 1 else 0
            return [*ends[: num_chunks - 1], start + self.room]
        return ends + [len(word_ids)] * (num_chunks - len(ends))

    def complete_chunk(self, ids: Sequence[int]) -> list[int]:
        """A chunk's tokens between start and end, padded to the context."""
        padding = [self.tokenizer.pad_token_id] * (self.room - len(ids))
        return [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id, *padding]

    def encode_text(self, prompt: str) -> Any:
        """The tokenizer's encoding of a prompt, without start and end: `input_ids`, `offset_mapping`, `word_ids()`."""
        return self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


def split_chunks(word_ids: Sequence[int | None], room: int) -> list[int]:
    """Where the chunks of a prompt end, counted in tokens; empty for an empty prompt.

    A word of several tokens is not split but moved to the next chunk, unless it is longer than a chunk.

    Args:
        word_ids: [num_tokens] the index of the word that each token belongs to.
        room: tokens per chunk.
    """
    num_tokens = len(word_ids)
    starts = [i for i in range(num_tokens) if i == 0 or word_ids[i] is None or word_ids[i] != word_ids[i - 1]]
    ends: list[int] = []
    begin = 0
    while begin < num_tokens:
        end = min(begin + room, num_tokens)
        following = bisect_left(starts, end)  # the first word that starts after the chunk
        word_end = starts[following] if following < len(starts) else num_tokens
        word_start = starts[following - 1]
        if word_end > end and word_start > begin and word_end - word_start <= room:
            end = word_start
        ends.append(end)
        begin = end
    return ends
