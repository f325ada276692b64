"""`ldm import`: a model in one file becomes a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.models.parts import ModelParts


def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A .safetensors file in the original layout of Stable Diffusion 1 or 2."
        ),
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; it must not exist.")],
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read a .ckpt, .pt, .pth or .bin too. Such files can hold programs: only tensors are taken, none of "
            "it is run, and that in a process of its own.",
        ),
    ] = False,
    dtype: Annotated[
        str, typer.Option(metavar="float32|float16|bfloat16", help="The number format to store.")
    ] = "float32",
    prediction_type: Annotated[
        str | None,
        typer.Option(
            metavar="epsilon|v_prediction",
            help="What the model predicts, where the file does not say or is wrong.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that exists.")] = False,
) -> None:
    """Write a model in one file as a folder in the diffusers layout.

    `ldm generate --model` and `ldm train` take such a file as it is. A folder shows its settings, and can be edited.
    """
    from ldm.errors import unknown_name
    from ldm.io.files import sha256_file
    from ldm.models.loading.model import save_parts
    from ldm.pipeline.pipeline import DTYPES

    if dtype not in DTYPES:
        raise unknown_name("--dtype", dtype, DTYPES)
    if dest.exists() and not overwrite:
        raise UserError(f"{dest} exists already", "choose another place, or use --overwrite")
    parts = _load(file, allow_pickle, prediction_type)
    provenance = {"imported_from": file.name, "sha256": sha256_file(file)}
    save_parts(parts, dest, dtype=DTYPES[dtype], provenance=provenance, replace=overwrite)
    typer.echo(dest)


def _load(file: Path, allow_pickle: bool, prediction_type: str | None) -> "ModelParts":
    """The model in a file; a pickle only where the user said so.

    Raises:
        UserError: there is no such file, it is of another kind, or no model is in it.
    """
    from ldm.cli.messages import own_warnings
    from ldm.models.loading.folder import PICKLES
    from ldm.models.loading.original_file import load_single_file
    from ldm.models.loading.pickled_file import unpickled

    if not file.is_file():
        raise UserError(f"{file} is no file", "name a .safetensors file")
    if file.suffix not in (".safetensors", *PICKLES):
        raise UserError(
            f"{file} is of another kind", f"files are read that end in .safetensors, {', '.join(PICKLES)}"
        )
    if file.suffix == ".safetensors":
        with own_warnings():
            return load_single_file(file, prediction_type=prediction_type)
    if not allow_pickle:
        raise UserError(
            f"{file} is a pickle, which can hold programs", "--allow-pickle takes its tensors alone"
        )
    with unpickled(file) as safetensors, own_warnings():
        try:
            return load_single_file(safetensors, prediction_type=prediction_type)
        except UserError as error:  # which names the file that the user never saw
            raise UserError(error.what.replace(str(safetensors), str(file)), error.hint) from error
