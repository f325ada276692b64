"""Find a model: the embedded one, a folder, a run, a single file, or one on the Hub."""

import re
from pathlib import Path

from ldm.errors import UserError
from ldm.models.families.family import Component
from ldm.models.families.registry import FAMILIES, network_components
from ldm.models.loading.folder import ADAPTER, ADAPTER_WEIGHTS, PICKLES, VARIANTS
from ldm.models.loading.hub_answers import HINT, is_from_the_library, reason_of
from ldm.models.loading.weights_check import weights_files

EMBEDDED = {name: Path(__file__).parents[2] / "assets" / name for name in ("emoji", "emoji-edit")}
"""Models inside the package, by name."""

HINT_MODEL = f"name a folder, a Hub id, {' or '.join(EMBEDDED)}"

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@(?!.*\.\.)\w[\w./-]*)?")
"""A repository, and after an @ the branch, tag or commit; a path to another folder does not match."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt",
)  # fmt: skip


def find_model(model: str | Path) -> tuple[Path, str]:
    """The folder or the single file of a model, and its id, a name without a path.

    Args:
        model: an embedded model, a folder in the diffusers layout or of an adapter, a run folder (with
            `pipeline/`), a .safetensors file in the original layout, or a Hub id, with a revision as in
            `user/name@v1.0`.

    Raises:
        UserError: there is no such model, or the Hub cannot be reached.
    """
    if not str(model):  # otherwise it would be the current folder
        raise UserError("no model ''", HINT_MODEL)
    if isinstance(model, str) and model in EMBEDDED:
        return _embedded(model), model
    path = Path(model).expanduser()
    if path.is_file():
        return _single_file(path), path.name
    if path.is_dir():
        return _in_folder(path)
    if isinstance(model, str) and HUB_ID.fullmatch(model):
        return _from_hub(model), model
    raise UserError(f"no model {str(model)!r}", HINT_MODEL)


def _embedded(name: str) -> Path:
    if not (EMBEDDED[name] / "model_index.json").is_file():
        raise UserError(f"the embedded model {name!r} is not in this installation", "name a model folder")
    return EMBEDDED[name]


def _single_file(path: Path) -> Path:
    """A safetensors file; its contents are checked when it is loaded."""
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is a pickle", "only safetensors are read; `ldm import --allow-pickle` converts it"
        )
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is a file", "name a model folder or a .safetensors file")
    return path


def _in_folder(path: Path) -> tuple[Path, str]:
    """A model's own folder or a run's. A model in a run is named after the run: its folder is always `pipeline`."""
    is_run = not (path / "model_index.json").exists() and (path / "pipeline").is_dir()
    folder = path / "pipeline" if is_run else path
    full = folder.resolve()
    return folder, full.parent.name if full.name == "pipeline" else full.name


def _from_hub(model: str) -> Path:
    """Download the files of a Hub model that are loaded, or find them in the local cache."""
    repo_id, _, revision = model.partition("@")
    small, networks = _hub_files(), network_components()
    folder = _download(repo_id, revision or None, [*small, *_hub_weights("")])
    for variant in VARIANTS:
        if any(
            (folder / name).is_dir() and not _has_weights(folder / name, networks[name]) for name in networks
        ):
            folder = _download(repo_id, revision or None, [*small, *_hub_weights(variant)])
    return folder


def network_from_hub(place: str, stem: str) -> Path:
    """The folder of a single network on the Hub, downloaded or found in the local cache.

    Args:
        place: a Hub id, with a revision as of `find_model`.
        stem: of the names of its weights.

    Raises:
        UserError: there is no such repository, or the Hub cannot be reached.
    """
    repo_id, _, revision = place.partition("@")
    small = ["config.json", ADAPTER]
    for variant in ("", *VARIANTS):
        folder = _download(repo_id, revision or None, [*small, *_weights_patterns(stem, variant)])
        if any(weights_files(folder, stem, each) for each in (None, *VARIANTS)):
            break
    return folder


def _hub_files() -> list[str]:
    """Everything that is downloaded besides the weights: no code, no pickles and no images."""
    tokenizers = dict.fromkeys(name for family in FAMILIES for name in family.tokenizers)
    return [
        "model_index.json",
        "ldm.json",
        ADAPTER,
        *ADAPTER_WEIGHTS,
        "config.json",  # of a ControlNet
        *(f"{name}/config.json" for name in network_components()),
        "scheduler/scheduler_config.json",
        *(f"{tokenizer}/{name}" for tokenizer in tokenizers for name in TOKENIZER_FILES),
    ]


def _hub_weights(variant: str) -> list[str]:
    """Patterns of the weights of one variant of all networks."""
    networks = network_components().items()
    return [f"{part}/{name}" for part, one in networks for name in _weights_patterns(str(one.stem), variant)]


def _weights_patterns(stem: str, variant: str) -> list[str]:
    """Patterns of the weights of one variant, in one file and in shards, with the shards' index."""
    dotted = f".{variant}" if variant else ""
    names = ["{0}{1}.safetensors", "{0}{1}-*-of-*.safetensors", "{0}.safetensors.index{1}.json"]
    return [name.format(stem, dotted) for name in names]


def _has_weights(folder: Path, component: Component) -> bool:
    assert component.stem is not None
    return any(weights_files(folder, component.stem, variant) for variant in (None, *VARIANTS))


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    at = f" at {revision!r}" if revision else ""
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no folder {repo_id!r} here, and the Hub has no model with that id{at} ({reason})",
            "check the name and the network, or name a folder",
        ) from error
    except Exception as error:
        if not is_from_the_library(error):
            raise
        raise UserError(
            f"no folder {repo_id!r} here, and {repo_id}{at} cannot be downloaded ({reason_of(error)})", HINT
        ) from error
