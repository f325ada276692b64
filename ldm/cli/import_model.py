"""`ldm import`: turns a model in one file into a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli import options
from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.models.parts import ModelParts


@reporting
def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A .safetensors file in the original layout of Stable Diffusion 1, 2 or XL."
        ),
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder for the model.")],
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Also read a .ckpt, .pt, .pth or .bin. Such files can contain code: a separate process takes only the "
            "tensors, and runs nothing.",
        ),
    ] = False,
    dtype: Annotated[
        str, typer.Option(metavar="float32|float16|bfloat16", help="The number format of the stored weights.")
    ] = "float32",
    vae: options.Vae = None,
    base: options.Base = None,
    prediction_type: options.PredictionType = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DEST if this program wrote it.")
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Convert a model in one file to a folder in the diffusers layout.

    `ldm generate --model` and `ldm train` also read such a file directly. A folder shows the
    settings and can be edited.
    """
    from ldm.errors import unknown_name
    from ldm.io.files import sha256_file
    from ldm.io.folders import is_taken
    from ldm.io.ownership import check_replaceable
    from ldm.models.devices import DTYPES
    from ldm.models.loading.model import save_parts

    if dtype not in DTYPES:
        raise unknown_name("--dtype", dtype, DTYPES)
    if overwrite:
        check_replaceable(dest)
    elif is_taken(dest):
        raise UserError(f"{dest} exists already", "choose another folder, or add --overwrite")
    parts = _load(file, allow_pickle, prediction_type, vae=vae, base=base)
    provenance = {"imported_from": file.name, "sha256": sha256_file(file)}
    save_parts(parts, dest, dtype=DTYPES[dtype], provenance=provenance, replace=overwrite)
    printer.result({"output": str(dest), **provenance}, dest)


def _load(
    file: Path,
    allow_pickle: bool,
    prediction_type: str | None,
    *,
    vae: str | None = None,
    base: str | None = None,
) -> "ModelParts":
    """The model in a file, completed with parts from elsewhere; a pickle only if the user allows it.

    Raises:
        UserError: the file does not exist, is of another kind, or does not contain a model.
    """
    from ldm.models.loading.folder import PICKLES
    from ldm.models.loading.model import load_parts
    from ldm.models.loading.original_file import load_single_file
    from ldm.models.loading.pickled_file import unpickled
    from ldm.models.loading.vae_file import load_autoencoder

    if not file.is_file():
        raise UserError(f"{file} is not a file", "name a .safetensors file")
    if file.suffix not in (".safetensors", *PICKLES):
        raise UserError(
            f"{file} is not a model file", f"name a file that ends in .safetensors, {', '.join(PICKLES)}"
        )
    if file.suffix != ".safetensors" and not allow_pickle:
        raise UserError(
            f"{file} is a pickle, which can contain code", "add --allow-pickle to take only its tensors"
        )
    given: dict[str, Any] = {
        "prediction_type": prediction_type,
        "vae": load_autoencoder(Path(vae).expanduser()) if vae else None,
        "base": load_parts(base) if base else None,
    }
    if file.suffix == ".safetensors":
        return load_single_file(file, **given)
    with unpickled(file) as safetensors:
        try:
            return load_single_file(safetensors, **given, beside=file)
        except UserError as error:  # names the temporary file
            raise UserError(error.what.replace(str(safetensors), str(file)), error.hint) from error
