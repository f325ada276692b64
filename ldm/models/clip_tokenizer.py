"""CLIP's original tokenizer. A single file has no vocabulary, so it is taken from the open_clip package."""

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from transformers import CLIPTokenizer

from ldm.errors import UserError
from ldm.models.clip_vocabulary import END, MAX_MERGES, START, Pair, vocabulary

CONTEXT_LENGTH = 77


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer with 49,408 tokens, 77 per prompt.

    Args:
        pad_token: the end token in Stable Diffusion 1, "!" (id 0) in 2.

    Raises:
        UserError: open_clip is not installed completely.
    """
    return CLIPTokenizer(
        vocab=dict(clip_vocabulary()),
        merges=list(_clip_merges()),
        model_max_length=CONTEXT_LENGTH,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
    )


@cache
def clip_vocabulary() -> dict[str, int]:
    """CLIP's tokens and their ids; errors as `clip_tokenizer`."""
    return vocabulary(_clip_merges())


@cache
def _clip_merges() -> tuple[Pair, ...]:
    """The merges that CLIP uses, the first part of the file; it is found without importing open_clip."""
    spec = find_spec("open_clip")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(
            "open_clip, which has CLIP's vocabulary, is not installed completely",
            "pip install open_clip_torch",
        )
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : MAX_MERGES + 1]
    pairs = [line.split() for line in lines]
    return tuple((first, second) for first, second in pairs)
