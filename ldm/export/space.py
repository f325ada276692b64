"""A Space of Hugging Face around an exported model: the page of `ldm serve`, in a container that Spaces build.

The folder needs nothing but the packages in `requirements.txt`: our own package is in it, because it is not published.
"""

import json
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from urllib.parse import quote

import yaml

import ldm
from ldm.errors import UserError
from ldm.export.card.front_matter import licence_keys
from ldm.export.model_files import CARD
from ldm.io.files import write_bytes
from ldm.io.redaction import public_text
from ldm.io.temporary import temporary_in

PORT = 7860
MOST_LETTERS = 60
"""The most that the Hub accepts as a short description."""

_TAKEN = (CARD, "Dockerfile", "requirements.txt", "ldm")
_PACKAGE = Path(ldm.__file__).parent
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")
_ALWAYS_OR_UI = re.compile(r"^[^;]*$|extra == ['\"]ui['\"]")
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

_DOCKERFILE = """\
FROM python:{python}-slim
RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app
COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --user -r requirements.txt
COPY --chown=user . .
EXPOSE {port}
CMD {command}
"""
_LIMITS = {"--max-size": 1024, "--max-steps": 50, "--max-images": 4}
_PAGE = """\
# {title}

The model is in the folder `{model}`, with its [card]({card}). Programs can use OpenAI's interface and A1111's.

Anyone can use this Space. Set the secret `LDM_TOKEN` (8 characters or more) to ask visitors for it. The limits on
sizes, steps and images are in the last line of `Dockerfile`. On a GPU, remove the first line of `requirements.txt`.
"""


def write_space(folder: Path, name: str, *, title: str, licence: str | None = None) -> None:
    """Turn the folder of an exported model into that of a Space: the model moves into a folder of its own in it.

    Args:
        name: of the model's folder, which visitors see as the model's name.
        title: of the Space.
        licence: of the weights.

    Raises:
        UserError: this package is not installed, so that its requirements are not known; or the disk is full.
    """
    requirements = pinned_requirements()
    model = _model_folder(folder, name)
    title = public_text(title)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    page = _PAGE.format(title=title, model=model, card=quote(f"{model}/{CARD}"))
    command = json.dumps(["python", "-m", "ldm", *_serve(model)])
    texts = {
        "requirements.txt": "\n".join([f"--extra-index-url {_CPU_INDEX}", *requirements, ""]),
        "Dockerfile": _DOCKERFILE.format(python=python, port=PORT, command=command),
        CARD: f"---\n{_front_matter(title, licence)}---\n{page}",
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    _copy_package(folder / "ldm")


def _model_folder(folder: Path, name: str) -> str:
    """Move everything into a folder inside; returns its name."""
    inner = temporary_in(folder, name).path
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path != inner:
            path.rename(inner / path.name)
    name = "model" if name in _TAKEN or name.startswith((".", "-")) else name
    inner.rename(folder / name)
    return name


def _serve(model: str) -> list[str]:
    """The arguments of `ldm` in a Space."""
    limits = [word for option, most in _LIMITS.items() for word in (option, str(most))]
    return ["serve", f"./{model}", "--host", "0.0.0.0", "--port", str(PORT), "--public", *limits]


def pinned_requirements() -> list[str]:
    """The packages that `ldm serve` needs, in the versions that are installed: "torch==2.11.0".

    Raises:
        UserError: this package, or one that it needs, is not installed.
    """
    try:
        needed = distribution("open-ldm").requires or []
        names = [_REQUIREMENT.match(each)[0] for each in needed if _ALWAYS_OR_UI.search(each)]  # type: ignore[index]
        return [f"{name}=={version(name).partition('+')[0]}" for name in names]
    except PackageNotFoundError as error:
        raise UserError(f"--space needs the package {error.name}", f"pip install {error.name}") from None


def _front_matter(title: str, licence: str | None) -> str:
    facts = {
        "title": title,
        "emoji": "🎨",
        "colorFrom": "indigo",
        "colorTo": "green",
        "sdk": "docker",
        "app_port": PORT,
        "short_description": f"Images from text with {title}"[:MOST_LETTERS],
        **licence_keys(licence),
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _copy_package(dest: Path) -> None:
    """Copy our package without the embedded models."""
    shutil.copytree(_PACKAGE, dest, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    licences = [file for file in distribution("open-ldm").files or [] if file.name == "LICENSE"]
    if licences:
        write_bytes(dest / "LICENSE", licences[0].read_binary())
