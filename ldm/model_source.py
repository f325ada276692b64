"""Where a model lies: the embedded one, a folder, a run, or the Hub."""

import re
from pathlib import Path

from ldm.errors import UserError
from ldm.model_folder import ADAPTER, ADAPTER_WEIGHTS, COMPONENTS

EMBEDDED = {"emoji": Path(__file__).parent / "assets" / "emoji"}
"""Models inside the package, by name."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_model(model: str | Path) -> tuple[Path, str]:
    """The folder of a model, and its id: a name without a path.

    Args:
        model: "emoji", a folder in the diffusers layout or of an adapter, a run folder (with `pipeline/`), or a Hub id.

    Raises:
        UserError: there is no such model, or the Hub cannot be reached.
    """
    if isinstance(model, str) and model in EMBEDDED:
        return _embedded(model), model
    path = Path(model).expanduser()
    if path.is_file():
        raise UserError(f"{path} is a file", "name a model folder in the diffusers layout")
    if path.is_dir():
        return _in_folder(path)
    if isinstance(model, str) and HUB_ID.fullmatch(model):
        return _from_hub(model), model
    raise UserError(f"no model {str(model)!r}", f"name a folder, a Hub id, or {' or '.join(EMBEDDED)}")


def _embedded(name: str) -> Path:
    if not (EMBEDDED[name] / "model_index.json").is_file():
        raise UserError(f"the embedded model {name!r} is not in this installation", "name a model folder")
    return EMBEDDED[name]


def _in_folder(path: Path) -> tuple[Path, str]:
    """A model's own folder or a run's. A run names its model, for the folder is always called pipeline."""
    is_run = not (path / "model_index.json").exists() and (path / "pipeline").is_dir()
    folder = path / "pipeline" if is_run else path
    full = folder.resolve()
    return folder, full.parent.name if full.name == "pipeline" else full.name


def _from_hub(repo_id: str) -> Path:
    """Download what is loaded of a Hub model, or find it in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "txt", "safetensors")]
    try:
        folder = snapshot_download(
            repo_id,
            allow_patterns=["model_index.json", ADAPTER, "ldm.json", *ADAPTER_WEIGHTS, *patterns],
            ignore_patterns=["*.fp16.safetensors", "*.non_ema.safetensors"],
        )
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no folder {repo_id!r} here, and the Hub gives no model of that id ({reason})",
            "check the name and the network, or name a folder",
        ) from error
    return Path(folder)
