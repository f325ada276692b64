"""A Space of Hugging Face around an exported model: the page of `ldm serve`, in a container that Spaces build.

The folder needs nothing but the packages in `requirements.txt`: our own package is in it, because it is not published.
"""

import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import yaml

import ldm
from ldm.errors import UserError
from ldm.export.card.front_matter import licence_keys
from ldm.export.model_files import CARD
from ldm.io.files import write_bytes
from ldm.io.redaction import public_text

MODEL = "model"
"""The folder of the model in a Space."""
PORT = 7860
MOST_LETTERS = 60
"""The most that the Hub accepts as a short description."""

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
CMD ["python", "-m", "ldm", "serve", "{model}", "--host", "0.0.0.0", "--port", "{port}", "--public", \
"--max-size", "1024", "--max-steps", "50", "--max-images", "4"]
"""
_PAGE = """\
# {title}

The model is in the folder `{model}`, with its [card]({model}/{card}). Programs can use OpenAI's interface and A1111's.

Anyone can use this Space. Set the secret `LDM_TOKEN` (8 characters or more) to ask visitors for it. The limits on
sizes, steps and images are in the last line of `Dockerfile`. On a GPU, remove the first line of `requirements.txt`.
"""


def write_space(folder: Path, *, title: str, licence: str | None = None) -> None:
    """Turn the folder of an exported model into that of a Space: the model moves into `model/`.

    Args:
        title: of the Space.
        licence: of the weights.

    Raises:
        UserError: this package is not installed, so that its requirements are not known; or the disk is full.
    """
    requirements = pinned_requirements()
    (folder / MODEL).mkdir()
    for path in list(folder.iterdir()):
        if path.name != MODEL:
            path.rename(folder / MODEL / path.name)
    title = public_text(title)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    page = _PAGE.format(title=title, model=MODEL, card=CARD)
    texts = {
        "requirements.txt": "\n".join([f"--extra-index-url {_CPU_INDEX}", *requirements, ""]),
        "Dockerfile": _DOCKERFILE.format(python=python, port=PORT, model=MODEL),
        CARD: f"---\n{_front_matter(title, licence)}---\n{page}",
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    _copy_package(folder / "ldm")


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
