"""Private information is removed; the names of files and folders stay on request."""

from pathlib import Path
from typing import Any

import pytest

from ldm.export.hub.failures import redact
from ldm.export.hub.leaks import scan
from ldm.export.hub.outgoing import OutgoingFile
from ldm.io.redaction import path_name, redacted, redacted_prose

TOKEN = "hf_" + "aB3" * 11
NAMES = ("alice", "tower-7")
SECRETS = {
    "Hugging Face": TOKEN,
    "Hugging Face, short": "hf_aB3aB3aB",
    "Hugging Face, letters": "hf_" + "q" * 20,
    "Hugging Face, an organisation's": "api_org_" + "a1" * 10,
    "GitHub": "ghp_" + "a1" * 18,
    "GitHub, an app's": "ghs_" + "a1" * 5,
    "GitHub, fine-grained": "github_pat_" + "a1" * 20,
    "GitLab": "glpat-" + "a1-" * 7,
    "Weights & Biases": "wandb_v1_" + "a1_" * 10,
    "OpenAI": "sk-proj-" + "a1" * 12,
    "Slack": "xoxb-123456789012-abc",
    "Google": "AIza" + "a" * 35,
    "AWS": "AKIA" + "A1" * 8,
    "AWS, for a session": "ASIA" + "A1" * 8,
    "a web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "an encrypted web token": "eyJhbGciOiJSU0EifQ.T0tPTk9LT0sK.c2lnbmF0dXJl.c2lnbmF0.c2lnbmF0",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA\n-----END OPENSSH PRIVATE KEY-----",
    "half a private key": "-----BEGIN RSA PRIVATE KEY-----\nb3BlbnNzaA",
    "a password in an address": "bob:pa55:word@host",
    "a password without a name": ":pa55word@host",
}
"""A fake secret of each kind that is recognised by its format."""
SECRET_NAMES = (
    "HF_TOKEN my_secret DB_PASSWORD MYSQL_PASSWD CLOUD_CREDENTIAL KEY SIGNING_KEY OPENAI_APIKEY ACCESSKEY"
)


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
def test_a_path_is_reduced_to_its_last_part(path: str, name: str) -> None:
    assert path_name(path) == name


def test_settings_keep_the_names_of_paths_on_request() -> None:
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
def test_prose_keeps_urls_and_words(text: str, shown: str) -> None:
    assert redacted_prose(text, NAMES) == shown


def leaks_in(folder: Path, text: str) -> str:
    """The findings of a scan of a file with this text."""
    (folder / "README.md").write_text(text)
    return " ".join(map(str, scan([OutgoingFile("README.md", folder / "README.md", len(text))])))


@pytest.mark.parametrize("secret", SECRETS.values(), ids=list(SECRETS))
def test_text_that_looks_like_a_secret_is_removed_found_and_hidden(tmp_path: Path, secret: str) -> None:
    """The model card, the scan before a push, and the push's messages recognise the same secrets."""
    text = f"see https://{secret} here" if secret.endswith("@host") else f"by {secret}"
    hidden = secret.removesuffix("@host").split("\n")[0]
    assert "a token, " in leaks_in(tmp_path, text)
    for without in (redacted_prose(text, ()), redact(text, "")):
        assert hidden not in without and "b3BlbnNzaA" not in without
    assert redacted_prose(text, ()) in ("by <secret>", "see <secret> here")


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_secrets_in_the_environment_are_removed_found_and_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = "it is swordfish"
    assert (leaks_in(tmp_path, text), redacted_prose(text, ()), redact(text, "")) == ("", text, text)
    monkeypatch.setenv(name, "swordfish")
    assert "a token, swor..." in leaks_in(tmp_path, text)
    assert (redacted_prose(text, ()), redact(text, "")) == ("it is <secret>", "it is [hidden]")


def test_possible_secrets_are_removed_only_from_cards(tmp_path: Path) -> None:
    """Commit hashes and user names in URLs may be pushed, but our model cards leave them out."""
    text = f"at {'0123456789' * 4} of ssh://git@example"
    assert (leaks_in(tmp_path, text), redact(text, "")) == ("", text)
    assert redacted_prose(text, ()) == "at <secret> of <secret>"
