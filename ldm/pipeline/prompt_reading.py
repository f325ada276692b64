"""How prompts are read: as plain text, or in the grammar of `ldm.models.prompt_grammar`.

Axis letters: B prompts, n chunks, L tokens per chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ldm.models.clip import ClipTextEncoder
from ldm.models.generation_settings import GenerationSettings
from ldm.models.prompt_grammar import composed_prompts, prompt_at_step
from ldm.models.prompt_weights import WeightRule, chunks_needed, embed_weighted, truncated_words
from ldm.types import Conditioning


@dataclass(frozen=True)
class PromptTexts:
    """The texts that a batch is given at a step.

    Attributes:
        composed: the prompts that AND joins, one tuple of B texts for each; without AND there is one.
        negative: of all B images.
        second: what a second text encoder reads in place of each of `composed`, if it is not empty.
        negative_second: the same for the negative prompt.
    """

    composed: tuple[tuple[str, ...], ...]
    negative: str
    second: str = ""
    negative_second: str = ""


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts for some settings.

    Attributes:
        rule: how weights are applied; None reads prompts as plain text.
        num_steps: of the whole sampling, for prompts that change during it.
    """

    encoder: ClipTextEncoder
    rule: WeightRule | None
    num_steps: int

    def weights(self, prompt: str) -> tuple[float, ...]:
        """The weights of the prompts that AND joins; (1,) without AND."""
        return tuple(part.weight for part in composed_prompts(prompt)) if self.rule else (1.0,)

    def at_step(self, prompts: Sequence[str], settings: GenerationSettings, index: int) -> PromptTexts:
        """What prompts, joined from equally many each, and those in the settings are at a step."""
        others = settings.negative_prompt, settings.prompt_2, settings.negative_prompt_2
        if self.rule is None:
            return PromptTexts((tuple(prompts),), *others)
        parts = [[self._at_step(part.text, index) for part in composed_prompts(prompt)] for prompt in prompts]
        return PromptTexts(tuple(zip(*parts, strict=True)), *(self._at_step(each, index) for each in others))

    def embed(self, texts: Sequence[str], num_chunks: int, second: str = "") -> Conditioning:
        """The embeddings of texts of `at_step`, [B, n L, D].

        Args:
            second: what a second text encoder reads in place of the texts, if it is not empty.
        """
        if self.rule is None:
            plain: Conditioning = self.encoder(texts, num_chunks, second)
            return plain
        return embed_weighted(self.encoder, texts, num_chunks, self.rule, second)

    def chunks_needed(self, prompt: str) -> int:
        """The most chunks that the prompt needs at any step."""
        if self.rule is None:
            return self.encoder.chunks_needed(prompt)
        return max(chunks_needed(self.encoder, text) for text in self._texts(prompt))

    def truncated_words(self, prompt: str, num_chunks: int) -> str:
        """The words beyond a number of chunks: of the first text that is too long, if the prompt has several."""
        if self.rule is None:
            return self.encoder.truncated_words(prompt, num_chunks)
        return next(
            filter(None, (truncated_words(self.encoder, x, num_chunks) for x in self._texts(prompt))), ""
        )

    def _texts(self, prompt: str) -> list[str]:
        """Every text that the prompt is at some step."""
        parts = composed_prompts(prompt)
        return list(
            dict.fromkeys(self._at_step(part.text, i) for part in parts for i in range(self.num_steps))
        )

    def _at_step(self, text: str, index: int) -> str:
        return prompt_at_step(text, index, self.num_steps)


def reader_for(encoder: ClipTextEncoder, settings: GenerationSettings) -> PromptReader:
    """The reader of the prompts of images with these settings."""
    rule = None if settings.prompt_weights == "none" else settings.prompt_weights
    return PromptReader(encoder, rule, settings.num_inference_steps)
