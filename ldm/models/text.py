"""The text encoder: a transformers `CLIPTextModel` and its tokenizer, from prompts to `PromptEmbeds`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.types import PromptEmbeds


class ClipTextEncoder(nn.Module):
    """`text_encoder(B prompts) -> PromptEmbeds`: prompt_embeds [B, L, D], pooled_prompt_embeds [B, D].

    A prompt is padded to L tokens; what does not fit is cut off, and `truncated_words` names it.

    Attributes:
        tokenizer: the CLIPTokenizer.
        model: the CLIPTextModel, what is trained, saved and loaded.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model

    @property
    def context_length(self) -> int:
        """L, the tokens of a prompt, start and end included."""
        return min(int(self.tokenizer.model_max_length), int(self.model.config.max_position_embeddings))

    @property
    def text_width(self) -> int:
        """D, the width of the prompt embeddings."""
        return int(self.model.config.hidden_size)

    def forward(self, prompts: Sequence[str]) -> PromptEmbeds:
        return self.embed(self.tokenize(prompts))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [B, L], padded and cut to the context, on the CPU."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.context_length
        )
        return torch.tensor(tokens["input_ids"], dtype=torch.long)

    def embed(self, token_ids: Tensor) -> PromptEmbeds:
        """The embeddings of token ids [B, L]; padding is attended to as well, as Stable Diffusion does."""
        answer = self.model(input_ids=token_ids.to(self.model.device))
        return PromptEmbeds(answer.last_hidden_state, pooled_prompt_embeds=answer.pooler_output)

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the whole prompt has, start and end included."""
        return len(self._encode(prompt)["input_ids"])

    def truncated_words(self, prompt: str) -> str:
        """The end of the prompt that does not fit the context, as it was written; empty when all fits."""
        encoded = self._encode(prompt)
        if len(encoded["input_ids"]) <= self.context_length:
            return ""
        first_left_out = self.context_length - 1  # the last place holds the end token
        start, _ = encoded["offset_mapping"][first_left_out]
        return prompt[start:].strip()

    def _encode(self, prompt: str) -> Any:
        return self.tokenizer(prompt, return_offsets_mapping=True, verbose=False)
