"""Embeddings (textual inversion) from files on top of a model: tokens for prompts, named in the record of every image.

Read are diffusers' files (one tensor, named as the token), A1111's (`emb_params`), and those of models with two text
encoders (`clip_l` and `clip_g`), all as safetensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import read_tensors, sha256_file
from ldm.models.adapters.embedding import TOKEN, Vectors, apply_embedding, is_of_two
from ldm.models.clip import ClipTextEncoder
from ldm.models.loading.folder import ADAPTER_FILES, PICKLES


@dataclass(frozen=True)
class UsedEmbedding:
    """A token in a model, as an image's record names it.

    Attributes:
        token: how prompts write it.
        sha256: of the file.
    """

    token: str
    sha256: str


def apply_embeddings(
    text_encoders: Sequence[ClipTextEncoder], places: Sequence[str | Path]
) -> tuple[UsedEmbedding, ...]:
    """Add tokens to text encoders.

    Args:
        text_encoders: of a model, and of a second one that reads the same prompts.
        places: each `FILE` or `FILE=<token>`, or a folder with such a file. Without a token it is the name in the file,
            or the file's own name in angle brackets.

    Raises:
        UserError: a file is missing, damaged or no embedding, or is of another model, or its token is known already.
    """
    used = []
    for place in places:
        path, given = split_token(str(place))
        token, vectors = _read(path, given)
        for text_encoder in text_encoders:
            _check_room(path, vectors, text_encoder)
            apply_embedding(text_encoder, token, vectors)
        used.append(UsedEmbedding(token, sha256_file(path)))
    return tuple(used)


def split_token(text: str) -> tuple[Path, str | None]:
    """The file of `FILE` or `FILE=<token>`, and the token if there is one.

    Raises:
        UserError: there is no such file, it is a pickle, or the token is not in angle brackets.
    """
    path, equals, token = text.rpartition("=")
    if not equals or Path(text).expanduser().exists():
        path, token = text, ""
    elif not TOKEN.fullmatch(token):
        raise UserError(f"the token {token!r} in {text!r}", "write FILE=<my-cat>")
    file = Path(path).expanduser()
    file = file / ADAPTER_FILES["embedding"] if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"{file} does not exist", "name the .safetensors file of an embedding")
    if file.suffix in PICKLES:
        raise UserError(f"{file} is a pickle", "only safetensors are read")
    return file, token or None


def _read(path: Path, token: str | None) -> tuple[str, Vectors]:
    tensors = read_tensors(path)
    if not is_of_two(tensors) and len(tensors) != 1:
        what = f"{path} is no embedding: it has {len(tensors)} tensors"
        raise UserError(what, "such files have clip_l and clip_g, or one tensor")
    if fault := next((name for name, each in tensors.items() if not _is_finite(each)), None):
        raise UserError(f"{path}: {fault} has values that are not finite", "use another file")
    name = next(iter(tensors))
    named = name if TOKEN.fullmatch(name) else f"<{_stem(path)}>"
    return token or named, tensors if is_of_two(tensors) else tensors[name]


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())


def _stem(path: Path) -> str:
    """The file's name, or that of its folder where every such file has the same."""
    named = path.resolve()
    if named.name == ADAPTER_FILES["embedding"]:
        named = named.parent.parent if named.parent.name == "pipeline" else named.parent
    return "".join(c for c in named.stem.replace(" ", "-") if c not in "<>|") or "token"


def _check_room(path: Path, vectors: Vectors, text_encoder: ClipTextEncoder) -> None:
    each = [vectors] if isinstance(vectors, Tensor) else list(vectors.values())
    most = max(len(one) for one in each if one.ndim == 2) if any(one.ndim == 2 for one in each) else 1
    if most > text_encoder.room:
        what = f"{path} has {most:,} vectors, and a prompt has room for {text_encoder.room}"
        raise UserError(what, "use another embedding")
