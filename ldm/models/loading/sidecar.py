"""The configuration beside a single file: `model.yaml` beside `model.safetensors`, as the original programs write it.

It says what the weights do not: what the model predicts, and its noise schedule. A YAML file that is something else,
such as the settings of a training, is ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import parse_yaml
from ldm.errors import UserError, warn
from ldm.io.opening import read_text

MAX_BYTES = 2**20

PARAMETERIZATIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
"""`parameterization` of the original programs, and diffusers' name."""

BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
"""`beta_schedule` of the original programs, whose "linear" is linear in the square roots, and diffusers' name."""


@dataclass(frozen=True)
class Sidecar:
    """What the configuration beside a file says; None where it says nothing.

    Attributes:
        schedule: values for the scheduler's configuration, by diffusers' names.
    """

    path: Path
    prediction_type: str | None
    scaling_factor: float | None
    schedule: dict[str, Any]


def read_sidecar(model: Path) -> Sidecar | None:
    """The configuration of the same name beside a file, if there is one.

    Raises:
        UserError: it is one of a model, and a value is of the wrong kind.

    Warns:
        LdmWarning: it cannot be read, or asks for a part of the text encoder's output that is not read.
    """
    path = model.with_suffix(".yaml")
    params = _params(path) if path.is_file() else None
    if params is None:
        return None
    predicts = _choice(path, params, "parameterization", PARAMETERIZATIONS)
    schedule = {
        "beta_schedule": _choice(path, params, "beta_schedule", BETA_SCHEDULES),
        "beta_start": _number(path, params, "linear_start"),
        "beta_end": _number(path, params, "linear_end"),
        "num_train_timesteps": _number(path, params, "timesteps", int),
    }
    _warn_of_text_layer(path, params)
    said = {key: value for key, value in schedule.items() if value is not None}
    return Sidecar(path, predicts, _number(path, params, "scale_factor"), said)


def _params(path: Path) -> Mapping[str, Any] | None:
    """`model.params`; None for a file that has none."""
    try:
        tree = parse_yaml(read_text(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or "not valid YAML").splitlines()[0]
        warn(f"{path} is not read ({reason}): it may say what the model beside it predicts")
        return None
    for key in ("model", "params"):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else None


def _choice(path: Path, params: Mapping[str, Any], key: str, known: Mapping[str, str]) -> str | None:
    value = params.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{path}: {key} is {str(value)[:80]!r}", f"it must be one of {', '.join(known)}")
    return known[value]


def _number(path: Path, params: Mapping[str, Any], key: str, kind: type = float) -> Any:
    value = params.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise UserError(f"{path}: {key} is {str(value)[:80]!r}", "it must be a positive number")
    return kind(value)


def _warn_of_text_layer(path: Path, params: Mapping[str, Any]) -> None:
    """Stable Diffusion 2 reads the last layer but one, which is so by its family; in 1, nobody reads it."""
    text = params.get("cond_stage_config")
    target, own = (text.get("target"), text.get("params")) if isinstance(text, dict) else (None, None)
    layer = own.get("layer") if isinstance(own, dict) else None
    if layer not in (None, "last") and str(target).endswith(".FrozenCLIPEmbedder"):
        warn(f"{path}: the text encoder's layer {str(layer)[:40]!r} is not read, but the last one")
