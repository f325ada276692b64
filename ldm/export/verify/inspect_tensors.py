"""Inspecting safetensors files: number formats, non-finite values, and missing or unexpected tensors."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.export.verify.finding import Finding, refused
from ldm.export.verify.inspect_files import tree
from ldm.io.files import open_tensors, sha256_file
from ldm.io.safetensors_header import Header, TensorEntry, read_header
from ldm.models.adapters.embedding import is_of_two
from ldm.models.adapters.lora_names import LOKR_KINDS, foreign_kind, split_name
from ldm.models.adapters.lycoris import FULL_KINDS, missing_factors
from ldm.models.families.family import Component, OriginalNetwork
from ldm.models.families.original_names import from_original, is_passed_over, left_over
from ldm.models.families.registry import FAMILIES, family_of_file
from ldm.models.loading.components import build_network

USUAL = ("F32", "F16", "BF16")
CHUNK = 2**22
MOST_NAMED = 3


def inspect_tensors(folder: Path, paths: Iterable[Path] | None = None) -> Iterator[Finding]:
    """Findings about a folder's safetensors, or about some of them; files at the top level are models by themselves."""
    for path in tree(folder) if paths is None else paths:
        if path.suffix == ".safetensors" and path.is_file():
            name = path.relative_to(folder).as_posix()
            try:
                header = read_header(path)
                yield from _file(path, name, header)
                yield from _model(name, header) if "/" not in name else ()
            except UserError as error:
                yield refused(folder, name, error)


def _file(path: Path, name: str, header: Header) -> Iterator[Finding]:
    dtypes = Counter(entry.dtype for entry in header.tensors.values())
    kinds = ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.most_common())
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    yield Finding("note", name, f"{size}, tensors: {kinds or 'none'}, sha256 {sha256_file(path)}")
    unusual = [key for key, entry in header.tensors.items() if _is_unusual(key, entry)]
    if unusual:
        dtype = header.tensors[unusual[0]].dtype
        yield Finding("warning", name, f"{_names(unusual)}: unusual number format {dtype}")
    if broken := not_finite(path):
        yield Finding("error", name, f"{_names(broken)}: non-finite values")


def _is_unusual(name: str, entry: TensorEntry) -> bool:
    """Whether a weight has an unusual number format; counters and markers may have any."""
    counts = len(entry.shape) == 0 or name.endswith("position_ids") or is_passed_over(name)
    return entry.dtype not in USUAL and entry.num_numbers > 0 and not counts


def _names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more


def not_finite(path: Path) -> list[str]:
    """The tensors of a safetensors file that contain a NaN or an infinity; only one at a time is in memory.

    Raises:
        UserError: the file is damaged.
    """
    with open_tensors(path) as file:
        names = sorted(file.keys())
        return [name for name in names if not _is_finite(file.get_tensor(name))]


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    flat = tensor.reshape(-1)
    for begin in range(0, len(flat), CHUNK):
        part = flat[begin : begin + CHUNK]
        wide = part.float() if part.element_size() == 1 else part  # 8-bit floats do not support isfinite
        if not torch.isfinite(wide).all():
            return False
    return True


def _model(name: str, header: Header) -> Iterator[Finding]:
    """A file that is a model by itself, recognised by the names of its tensors."""
    tensors = header.tensors
    if family_of_file(tensors.keys()) is not None:
        yield Finding("note", name, "a model in the original layout of Stable Diffusion")
        yield from (Finding("error", name, fault) for fault in _single_file_faults(tensors))
    elif kind := _foreign_to_all(tensors):
        yield Finding("warning", name, f"{kind}, which we cannot read")
    elif any(split_name(key) for key in tensors):
        yield Finding("note", name, "a LoRA")
        yield from (Finding("error", name, fault) for fault in _lora_faults(tensors))
    elif tensors and all(len(entry.shape) == 2 for entry in tensors.values()):
        said = "a new token in two text encoders" if is_of_two(tensors) else f"{len(tensors)} new tokens"
        yield Finding("note", name, f"vectors of {said}")
    else:
        yield Finding("warning", name, "not a known kind of model")


def _foreign_to_all(names: Collection[str]) -> str | None:
    """The kind of a file that no family reads; None otherwise."""
    kinds = [foreign_kind(names, family.lora) for family in FAMILIES]
    return kinds[0] if all(kinds) else None


def _lora_faults(tensors: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Layers with one half missing, ranks that do not agree, and names that do not belong to a LoRA."""
    layers: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in sorted(tensors.items()):
        if (split := split_name(name)) is None:
            yield f"the weight {name!r} is unexpected"
        else:
            layers.setdefault(split[0], {})[split[1]] = entry
    for layer, kinds in layers.items():
        if missing := _missing(kinds.keys()):
            yield f"the layer {layer!r} has no {' and no '.join(missing)}"
        elif "down" in kinds and kinds["down"].shape[:1] != kinds["up"].shape[1:2]:
            yield f"the layer {layer!r} has two ranks: {kinds['down'].shape[:1]} and {kinds['up'].shape[1:2]}"


def _missing(kinds: Collection[str]) -> list[str]:
    """The tensors that a layer with these lacks: see `ldm.models.adapters.lycoris` for what has no down and up."""
    factors = list(missing_factors(kinds))
    if set(kinds) & {*LOKR_KINDS} or (FULL_KINDS & set(kinds) and not factors):
        return factors
    return [] if set(kinds) == {"diff_b"} else sorted({"down", "up"} - set(kinds))


def _single_file_faults(tensors: Mapping[str, TensorEntry]) -> Iterator[str]:
    """The first fault of each network in a single file, found from shapes alone."""
    weights = {
        n: torch.empty(entry.shape, device="meta") for n, entry in tensors.items() if not is_passed_over(n)
    }
    family = family_of_file(tensors.keys())
    assert family is not None and family.single_file is not None
    layout = family.single_file.networks
    yield from (f"the weight {name!r} belongs to no part of the model" for name in left_over(weights, layout))
    try:
        found = from_original(weights, layout)
    except (KeyError, ValueError, IndexError) as error:
        yield f"the weight {error.args[0]!r} is not part of a known structure"
        return
    for name, network in layout.items():
        yield from _network_fault(name, family.components[name], network, found[name])


def _network_fault(
    name: str, component: Component, original: OriginalNetwork, weights: Mapping[str, Tensor]
) -> Iterator[str]:
    try:
        build_network(name, component, original.read_settings(weights), weights, torch.float32)
    except UserError as error:
        yield str(error)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        yield f"the {name} is incomplete, or has another structure ({error})"
