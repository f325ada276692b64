"""What a component's files may hold, checked around the libraries that open them by path.

Before loading: regular files of a reasonable size, and no count that a library would turn into a table. After loading:
a tokenizer whose tokens all have a row in the text encoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.json_files import MAX_CONFIG_BYTES, MAX_MODEL_JSON_BYTES, read_object, shortened
from ldm.io.opening import check_file

TEXT_SUFFIXES = (".json", ".txt", ".jinja", ".model")
"""Files of these kinds are small; the others are weights, whose headers are checked by themselves."""

MAX_LABELS = 100_000
"""transformers makes a table of `num_labels` names, which a text encoder does not use."""

MIN_CONTEXT = 3
"""The smallest context: start, one token and end."""

MAX_POSITIONS = 2**20


def check_files(folder: Path) -> None:
    """Refuse a component's folder that holds a pipe, a device, or a text file larger than any real one.

    Raises:
        UserError: naming the file.
    """
    for path in sorted(folder.rglob("*")):
        is_config = path.name.endswith("config.json")
        largest = MAX_CONFIG_BYTES if is_config else MAX_MODEL_JSON_BYTES
        try:
            check_file(path, largest if path.suffix in TEXT_SUFFIXES else None)
        except (FileNotFoundError, IsADirectoryError):
            continue  # a broken link, which nothing reads
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})", "restore the file") from None
        if is_config:
            _check_labels(path, read_object(path, max_bytes=MAX_CONFIG_BYTES))


def _check_labels(path: Path, config: Mapping[str, Any]) -> None:
    count = config.get("num_labels")
    if isinstance(count, int | float) and not 0 <= count <= MAX_LABELS:
        raise UserError(f"{path}: num_labels is {count:,}", f"it must be at most {MAX_LABELS:,}")


def check_tokenizer(place: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer with a context that is no length, or without one of the tokens that every prompt needs.

    Raises:
        UserError: naming the key and its value.
    """
    length = tokenizer.model_max_length
    is_number = isinstance(length, int | float) and not isinstance(length, bool)
    if not is_number or length != length // 1 or length < MIN_CONTEXT:
        raise UserError(
            f"{place}: model_max_length is {shortened(length)}",
            f"it must be a whole number of at least {MIN_CONTEXT} in tokenizer_config.json",
        )
    for name in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise UserError(f"{place} has no {name}", "restore the tokenizer's files")


def check_tokens(place: Path, tokenizers: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    """Refuse a tokenizer with a token for which its text encoder has no row, and a text encoder without positions.

    Args:
        tokenizers: by component; `tokenizer_2` is that of `text_encoder_2`.

    Raises:
        UserError: naming the token.
    """
    for name, tokenizer in tokenizers.items():
        network = networks[name.replace("tokenizer", "text_encoder")]
        check_rows(place, name, tokenizer, network.get_input_embeddings().num_embeddings)
        positions = network.config.max_position_embeddings
        if not MIN_CONTEXT <= positions <= MAX_POSITIONS:
            raise UserError(
                f"{place}: max_position_embeddings is {positions:,}", f"it must be at least {MIN_CONTEXT}"
            )


def check_rows(place: Path, name: str, tokenizer: Any, num_rows: int) -> None:
    """Refuse a tokenizer with an id for which there is no row among the embeddings.

    Args:
        name: of the tokenizer's component.

    Raises:
        UserError: naming the token.
    """
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if index >= num_rows:
        network = name.replace("tokenizer", "text_encoder")
        raise UserError(
            f"{place}: the {name} has the token {shortened(token)} with the id {index:,}, "
            f"and the {network} has {num_rows:,} rows",
            "these parts do not belong together; restore them",
        )
