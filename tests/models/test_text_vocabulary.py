"""The learned vocabulary: its merges, CLIP's order of ids, and the same ids from open_clip and transformers."""

import random
from collections import Counter
from itertools import islice, pairwise, product
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from ldm.errors import UserError
from ldm.models.clip_vocabulary import (
    END,
    MAX_MERGES,
    OPEN_CLIP_MERGES,
    START,
    learn_merges,
    make_tokenizer,
    token_ids,
    vocabulary,
    write_tokenizer,
)

CONTEXT_LENGTH = 24
WORDS = """
a small Red circle above LARGE blue square don't we'll I'VE 12 3.14 #1 50% $5 (x) [y] !! ... ?! - -- well-made
Élan naïve Ünïcode straße e\u0301tude 日本 привет 😀 🐱👤 👩\u200d🚀 🇫🇷 ❤️ © ½ x²+y² a_b a/b 12345 4th it's
'tis rock'n'roll : ; , * ~ ^ = + \\ | ' " "quoted" aaaa ababab mississippi
"""
SNIPPETS = [*WORDS.split(), "the cat's", "  ", "\t", "\n", "\u00a0"]


def make_captions(count: int) -> list[str]:
    """Random sequences of snippets, with and without spaces between; some too long for the context."""
    draw = random.Random(3)
    return [
        draw.choice([" ", "", "  "]).join(draw.choices(SNIPPETS, k=draw.randint(0, 20))) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tokenizer"
    write_tokenizer(folder, learn_merges(make_captions(200), 150), CONTEXT_LENGTH)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def open_clip_tokenizer(folder: Path) -> SimpleTokenizer:
    return SimpleTokenizer(bpe_path=str(folder / OPEN_CLIP_MERGES), context_length=CONTEXT_LENGTH)


def naive_merges(words: Counter[str], num_merges: int) -> list[tuple[str, str]]:
    """Textbook byte pair encoding: recount all pairs for every merge."""
    texts = {tuple([*word[:-1], word[-1] + "</w>"]): count for word, count in words.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in texts.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        texts = {tuple(replace_pair(list(symbols), best)): count for symbols, count in texts.items()}
    return merges


def replace_pair(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    for index in range(len(symbols) - 1):
        if (symbols[index], symbols[index + 1]) == pair:
            return [*symbols[:index], pair[0] + pair[1], *replace_pair(symbols[index + 2 :], pair)]
    return symbols


def test_merges_of_a_hand_worked_example() -> None:
    captions = ["LOW low low low low", "lower", "lower"]
    # (l, o) stands 7 times; then (lo, w</w>) 5 times; then (e, r</w>), (lo, w), (w, e) twice each, (e, r</w>)
    # coming first by its text; then (lo, w) before (w, er</w>).
    expected = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>"), ("lo", "w"), ("low", "er</w>")]
    assert learn_merges(captions, 100) == expected


@pytest.mark.parametrize("seed", range(3))
def test_merges_equal_the_textbook_algorithm(seed: int) -> None:
    draw = random.Random(seed)
    words = Counter("".join(draw.choices("abc", k=draw.randint(1, 9))) for _ in range(80))
    captions = [" ".join(words.elements())]
    assert learn_merges(captions, 60) == naive_merges(words, 60)


def test_merges_do_not_depend_on_the_order_of_the_captions() -> None:
    captions = make_captions(100)
    assert learn_merges(captions, 80) == learn_merges(reversed(captions), 80)


@pytest.mark.parametrize("num_merges", [-1, MAX_MERGES + 1])
def test_a_number_of_merges_that_open_clip_cannot_read_is_refused(num_merges: int) -> None:
    with pytest.raises(UserError, match=f"num_merges = {num_merges}"):
        learn_merges(["a"], num_merges)


def test_ids_are_in_the_order_of_clip(
    folder: Path, tokenizer: CLIPTokenizer, open_clip_tokenizer: SimpleTokenizer
) -> None:
    ids = vocabulary(learn_merges(make_captions(200), 150))
    assert list(ids)[:-2] == list(open_clip_tokenizer.encoder)[:-2]
    assert tokenizer.get_vocab() == ids
    assert len(ids) == open_clip_tokenizer.vocab_size == 514 + 150
    assert (ids[START], ids[END]) == (662, 663)


def test_special_tokens_and_length_are_read_back(tokenizer: CLIPTokenizer) -> None:
    names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert names == (START, END, END, END)
    assert tokenizer.model_max_length == CONTEXT_LENGTH


def test_ids_equal_those_of_open_clip(tokenizer: CLIPTokenizer, open_clip_tokenizer: SimpleTokenizer) -> None:
    captions = make_captions(600)
    theirs = open_clip_tokenizer(captions).tolist()
    ours = token_ids(tokenizer, captions).tolist()
    lengths = [row.index(tokenizer.eos_token_id) + 1 for row in ours]
    for caption, mine, other, length in zip(captions, ours, theirs, lengths, strict=True):
        assert mine[:length] == other[:length], caption
        assert set(mine[length:]) <= {tokenizer.pad_token_id}
        assert set(other[length:]) <= {0}
    assert sum(length == CONTEXT_LENGTH for length in lengths) > 50, "some captions must be cut"
    assert sum(length < CONTEXT_LENGTH for length in lengths) > 50
    assert 2 in lengths, "an empty caption must be among them"


def test_a_long_caption_keeps_its_end_token(tokenizer: CLIPTokenizer) -> None:
    ids = token_ids(tokenizer, ["a " * 100])[0].tolist()
    assert len(ids) == CONTEXT_LENGTH
    assert ids[0] == tokenizer.bos_token_id
    assert ids.index(tokenizer.eos_token_id) == CONTEXT_LENGTH - 1


def test_the_tokenizer_made_in_memory_is_the_one_written(tokenizer: CLIPTokenizer) -> None:
    made = make_tokenizer(learn_merges(make_captions(200), 150), CONTEXT_LENGTH)
    captions = make_captions(100)
    assert torch.equal(token_ids(made, captions), token_ids(tokenizer, captions))
    assert token_ids(made, captions).shape == (100, CONTEXT_LENGTH)


def test_every_text_can_be_written_in_bytes(tokenizer: CLIPTokenizer) -> None:
    text = "".join(chr(code) for code in [*range(0x21, 0x250), 0x1F600, 0x10FFFF])
    assert tokenizer.eos_token_id not in tokenizer(text, add_special_tokens=False)["input_ids"]


def test_decoding_returns_the_caption(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("A small RED  café 😀")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a small red café 😀"


def test_only_open_clip_repairs_typographic_quotes(
    tokenizer: CLIPTokenizer, open_clip_tokenizer: SimpleTokenizer
) -> None:
    assert open_clip_tokenizer.encode("the cat’s") == open_clip_tokenizer.encode("the cat's")
    assert tokenizer("the cat’s")["input_ids"] != tokenizer("the cat's")["input_ids"]


def test_no_merges_and_the_largest_number_of_merges_are_read(tmp_path: Path) -> None:
    symbols = list(vocabulary([]))[:512]
    plain, ending = symbols[:256], symbols[256:]
    most = list(islice(product(plain, plain + ending), MAX_MERGES))
    for merges in ([], most):
        write_tokenizer(tmp_path, merges, 77)
        open_clip_tokenizer = SimpleTokenizer(bpe_path=str(tmp_path / OPEN_CLIP_MERGES))
        assert open_clip_tokenizer.eot_token_id == 513 + len(merges)
        assert len(CLIPTokenizer.from_pretrained(tmp_path)) == 514 + len(merges)


def test_files_are_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, learn_merges(make_captions(200), 150), CONTEXT_LENGTH)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)
