"""Two text encoders that read the same prompt, as in Stable Diffusion XL.

Axis letters: B prompts, n chunks, L tokens per chunk, D text width, P pooled text width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ldm.models.clip import ClipTextEncoder
from ldm.types import Conditioning


class ClipTextEncoderPair(ClipTextEncoder):
    """Two encoders whose embeddings are joined along D; the pooled vector is the second's.

    Both have the same context and split long prompts alike. `second` of a call is what the second encoder reads in
    place of the prompts.

    Attributes:
        second: the second encoder.
    """

    def __init__(self, tokenizer: Any, model: Any, second: ClipTextEncoder, **options: Any) -> None:
        """With the options of `ClipTextEncoder` for the first encoder."""
        super().__init__(tokenizer, model, **options)
        self.second = second

    def components(self) -> dict[str, Any]:
        """The networks and tokenizers of both."""
        return {**super().components(), **self.second.components()}

    @property
    def encoders(self) -> tuple[ClipTextEncoder, ...]:
        """The first encoder, which is this one without the second, and the second."""
        return self, self.second

    def unread_modules(self) -> list[nn.Module]:
        """The layers of the first encoder after the hidden state that is used: its pooled vector is not."""
        if self.hidden_layer is None:
            return []
        inner = getattr(self.model, "text_model", self.model)  # transformers before 5
        return [*inner.encoder.layers[self.hidden_layer + 1 :], inner.final_layer_norm]

    @property
    def context_length(self) -> int:
        """L of both, the smaller one if they differ."""
        return min(super().context_length, self.second.context_length)

    @property
    def text_width(self) -> int:
        """D, the widths of both together."""
        return super().text_width + self.second.text_width

    def texts(self, prompts: Sequence[str], second: str = "") -> list[Sequence[str]]:
        """The prompts for the first encoder, and the same or `second` for the second."""
        return [prompts, [second] * len(prompts) if second else prompts]

    def joined(self, texts: Sequence[Sequence[str]], parts: Sequence[Conditioning]) -> Conditioning:
        """The embeddings of both along D, with zeros for an empty text of either."""
        pairs = zip(self.encoders, texts, parts, strict=True)
        first, last = (encoder.without_empty(own, part) for encoder, own, part in pairs)
        embeds = torch.cat([first.prompt_embeds, last.prompt_embeds], dim=-1)
        return replace(last, prompt_embeds=embeds)

    def chunks_needed(self, prompt: str) -> int:
        """The most chunks that either encoder needs."""
        return max(super().chunks_needed(prompt), self.second.chunks_needed(prompt))
