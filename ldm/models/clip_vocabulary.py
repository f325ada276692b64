"""A vocabulary like CLIP's, learned from captions: byte pairs, lower case, `</w>` at the end of a word.

Words are split by the normalizer and pre-tokenizer of transformers' CLIPTokenizer itself, so that learning and
tokenizing agree. The ids are in CLIP's order: 256 bytes, 256 bytes that end a word, one per merge, start, end.

Padding is `<|endoftext|>`, as in Stable Diffusion 1. (open_clip pads with 0. The text tower is causal: a token never
sees what follows it. Up to the end token, and in the pooled output, both paddings give the same numbers.) open_clip's
own tokenizer also repairs text first: HTML entities, typographic quotes, mojibake, ligatures. On text that needs no
repair, the ids are the same.

`tokenizers.trainers.BpeTrainer` is not used: it merges equally frequent pairs in the order of their ids, so that other
merges follow and the tokens of existing models would change.
"""

import gzip
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

from torch import Tensor
from transformers import CLIPTokenizer

from ldm.errors import UserError
from ldm.io.files import write_bytes, write_json

Pair = tuple[str, str]

WORD_END = "</w>"
START = "<|startoftext|>"
END = "<|endoftext|>"
MAX_MERGES = 49152 - 256 - 2
"""open_clip reads this many merges of a file and silently drops the rest."""
OPEN_CLIP_MERGES = "open_clip_merges.txt.gz"
_HEADER = "#version: 0.2"


def learn_merges(captions: Iterable[str], num_merges: int) -> list[Pair]:
    """The byte-pair merges of the captions: the most frequent pair first, ties broken by the pair's text.

    Byte pair encoding (Sennrich et al. 2016, algorithm 1). Repeated captions count repeatedly.

    Args:
        captions: any text.
        num_merges: 0 to 48894. Fewer are returned once every word is one token.

    Raises:
        UserError: `num_merges` is outside the range.
    """
    if not 0 <= num_merges <= MAX_MERGES:
        raise UserError(f"num_merges = {num_merges}", f"choose 0 to {MAX_MERGES}")
    words = _Words(_count_words(captions))
    merges: list[Pair] = []
    while len(merges) < num_merges and (pair := words.most_frequent_pair()) is not None:
        words.merge(pair)
        merges.append(pair)
    return merges


def vocabulary(merges: Sequence[Pair]) -> dict[str, int]:
    """Token -> id in CLIP's order; the size is 514 + len(merges), and the end token has the highest id."""
    symbols = _byte_symbols()
    joined = [first + second for first, second in merges]
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *joined, START, END]
    ids = {token: index for index, token in enumerate(tokens)}
    assert len(ids) == len(tokens), "two merges give the same token"
    return ids


def make_tokenizer(merges: Sequence[Pair], context_length: int) -> CLIPTokenizer:
    """The tokenizer that `write_tokenizer` writes, made in memory."""
    return CLIPTokenizer(vocab=vocabulary(merges), merges=list(merges), model_max_length=context_length)


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Texts as ids [B, L] of the tokenizer's full length: truncated, or padded with the end token."""
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = encoded["input_ids"]
    return ids


def write_tokenizer(folder: str | Path, merges: Sequence[Pair], context_length: int) -> None:
    """Write what `CLIPTokenizer.from_pretrained(folder)` reads, and the same merges for open_clip.

    The files: vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json and `OPEN_CLIP_MERGES`,
    which is the `bpe_path` of `open_clip.tokenizer.SimpleTokenizer`.

    Args:
        folder: created if it does not exist.
        merges: from `learn_merges`.
        context_length: tokens per prompt, start and end included.

    Raises:
        UserError: the disk is full or not writable.
    """
    assert len(merges) <= MAX_MERGES
    folder = Path(folder)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **special}
    lines = [_HEADER, *(f"{first} {second}" for first, second in merges)]
    write_json(folder / "vocab.json", vocabulary(merges))
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)
    write_bytes(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    # No newline after the last merge: open_clip would count an empty line as another token.
    write_bytes(folder / OPEN_CLIP_MERGES, gzip.compress("\n".join(lines).encode(), mtime=0))


class _Words:
    """The distinct words of the captions with the merges so far, and how often each pair occurs in them."""

    def __init__(self, counts: Counter[str]) -> None:
        self.symbols = [[*word[:-1], word[-1] + WORD_END] for word in counts]
        self.counts = list(counts.values())
        self.pair_counts: Counter[Pair] = Counter()
        self.words_with: defaultdict[Pair, set[int]] = defaultdict(set)
        for index in range(len(self.symbols)):
            self._count_pairs(index, 1)
        self.queue = [(-count, pair) for pair, count in self.pair_counts.items()]
        heapify(self.queue)

    def most_frequent_pair(self) -> Pair | None:
        """The next pair to merge; queue entries whose count has changed since are skipped."""
        while self.queue:
            count, pair = heappop(self.queue)
            if -count == self.pair_counts[pair]:
                return pair
        return None

    def merge(self, pair: Pair) -> None:
        """Join the pair wherever it occurs, and recount the words that this changes."""
        changed: set[Pair] = set()
        for index in self.words_with.pop(pair):
            changed |= self._count_pairs(index, -1)
            self.symbols[index] = _join(self.symbols[index], pair)
            changed |= self._count_pairs(index, 1)
        for other in changed:
            if self.pair_counts[other] > 0:
                heappush(self.queue, (-self.pair_counts[other], other))

    def _count_pairs(self, index: int, sign: int) -> set[Pair]:
        """Add (+1) or subtract (-1) the pairs of one word; returns them."""
        pairs = list(pairwise(self.symbols[index]))
        for pair in pairs:
            self.pair_counts[pair] += sign * self.counts[index]
            self.words_with[pair].add(index)
        return set(pairs)


def _join(symbols: list[str], pair: Pair) -> list[str]:
    """The word with each occurrence of the pair joined, from left to right."""
    joined: list[str] = []
    index = 0
    while index < len(symbols):
        if tuple(symbols[index : index + 2]) == pair:
            joined.append(pair[0] + pair[1])
            index += 2
        else:
            joined.append(symbols[index])
            index += 1
    return joined


def _count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each word occurs in the captions; words are written in byte symbols."""
    backend = CLIPTokenizer(vocab=vocabulary([]), merges=[]).backend_tokenizer
    counts: Counter[str] = Counter()
    for caption in captions:
        text = backend.normalizer.normalize_str(caption)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return counts


def _byte_symbols() -> list[str]:
    """One printable character per byte, in CLIP's order: printable bytes themselves, then U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printable, *range(0x100, 0x200 - len(printable))]]
