"""What is private goes, and what a path names stays where that is asked for."""

from pathlib import Path
from typing import Any

import pytest

from ldm.redaction import path_name, redacted, redacted_prose

TOKEN = "hf_" + "aB3" * 11
NAMES = ("alice", "tower-7")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/sets/cats/", "cats"),
        ("runs/hands", "hands"),
        ("~/cats", "cats"),
        ("C:\\Users\\alice\\data set", "data set"),
        ("cats", "cats"),
        ("/home/alice", "<path>"),
        ("/Users/bob/", "<path>"),
        ("~alice", "<path>"),
        ("~", "<path>"),
        ("..", "<path>"),
        ("/", "<path>"),
        ("C:\\", "<path>"),
        ("https://example.org/key=1", "<path>"),
    ],
)
def test_a_path_is_named_by_its_last_part(path: str, name: str) -> None:
    assert path_name(path) == name


def test_settings_keep_the_names_of_paths_where_asked() -> None:
    settings: dict[str, Any] = {
        "run_dir": Path("/data/runs/alice-cats"),
        "data": {"path": "/home/alice/cats", "sources": [{"path": "sets/dogs", "masks": None}]},
        "base": "emoji",
        "prompts": ["see /home/alice/x.png, please", "a cat and/or a dog", f"{TOKEN} of alice"],
        "hub": {"token": "short"},
        "seed": 3,
    }
    assert redacted(settings, names=NAMES, name_paths=True) == {
        "run_dir": "<name>-cats",
        "data": {"path": "cats", "sources": [{"path": "dogs", "masks": None}]},
        "base": "emoji",
        "prompts": ["see x.png, please", "a cat and/or a dog", "<secret> of <name>"],
        "hub": {"token": "<secret>"},
        "seed": 3,
    }
    assert redacted(settings, names=NAMES)["data"]["path"] == "<path>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a black/white cat", "a black/white cat"),
        ("red/blue", "red/blue"),
        ("on Tower-7 in /home/alice/cats.", "on <name> in cats."),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("https://alice:pass@example.org/a", "<secret>"),
        (f"by {TOKEN}!", "by <secret>!"),
        ("by malice", "by malice"),
    ],
)
def test_prose_keeps_addresses_and_words(text: str, shown: str) -> None:
    assert redacted_prose(text, NAMES) == shown
