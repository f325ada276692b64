"""Changes of a layer that are not a product of two matrices: LoHa, LoKr, whole differences, and those of norms.

LoHa    (w1_a w1_b) * (w2_a w2_b), entry by entry                   FedPara, Hyeon-Woo et al. 2021
LoKr    kron(w1, w2), either of which may be a product              LyCORIS, Yeh et al. 2024
diff    the change itself; `diff_b` and `b_norm` are those of a bias

LoHa and LoKr are multiplied by alpha / rank, as LyCORIS and ComfyUI do. A convolution may have a core tensor (`t1` and
`t2`).
"""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.adapters.lora_names import LOKR_KINDS

FULL_KINDS = frozenset((
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", *LOKR_KINDS, "diff",
))  # fmt: skip
"""Kinds of tensors, see `ldm.models.adapters.lora_names.ENDS`, that make up a change of the whole weight."""

LARGEST_RANK = 16_384
"""Of a core tensor: contracting it takes memory in proportion."""


def full_change(where: str, tensors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """The change of a weight, in its shape.

    Args:
        where: the name in an error.
        tensors: of one layer by kind, among them one of `FULL_KINDS`.

    Raises:
        UserError: a tensor is missing or does not fit, or the layer has another change as well.
    """
    others = tensors.keys() - FULL_KINDS - {"alpha", "scalar", "diff_b"}
    if others:
        raise UserError(f"{where} also has {min(others)}", "one kind of change is read for each layer")
    try:
        if "diff" in tensors:
            change = tensors["diff"]
        else:
            formula = _loha if any(kind.startswith("hada") for kind in tensors) else _lokr
            # shapes first: a few small factors can stand for more memory than there is
            _check_shape(where, formula({kind: _shape_only(kind, t) for kind, t in tensors.items()}), shape)
            change = formula(tensors)
            change = change * tensors["scalar"] if "scalar" in tensors else change
    except KeyError as error:
        raise UserError(f"{where} has no {error.args[0]}", "the file is incomplete") from None
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"{where} has weights that do not fit each other ({str(error).splitlines()[0]})",
            "restore the file",
        ) from None
    return fit_change(where, change, shape)


def missing_factors(kinds: Collection[str]) -> Iterator[str]:
    """The factors that a layer with these kinds of tensors lacks, for the change that it has."""
    for number in (1, 2):
        halves = [f"w{number}_a", f"w{number}_b"]
        if any(kind.startswith("hada") for kind in kinds):
            yield from (f"hada_{half}" for half in halves if f"hada_{half}" not in kinds)
        elif any(kind.startswith("lokr") for kind in kinds) and f"lokr_w{number}" not in kinds:
            has_half = any(f"lokr_{half}" in kinds for half in halves)
            wanted = halves if has_half else [f"w{number}"]
            yield from (f"lokr_{part}" for part in wanted if f"lokr_{part}" not in kinds)


def written_factors(factors: Mapping[str, Tensor], alpha: float, rank: int) -> dict[str, Tensor]:
    """A LoKr's factors and alpha as LyCORIS has them, from peft's.

    Both multiply with alpha / rank, but LyCORIS not if the two factors are whole: it is then part of the first.
    """
    if {"lokr_w1", "lokr_w2"} <= factors.keys():
        whole = {**factors, "lokr_w1": factors["lokr_w1"] * (alpha / rank)}
        return {**whole, "alpha": torch.tensor(float(rank))}
    return {**factors, "alpha": torch.tensor(float(alpha))}


def fit_change(where: str, change: Tensor, shape: torch.Size) -> Tensor:
    """A change of a weight or a bias in its shape; 1x1 convolutions and linear layers stand for each other.

    Raises:
        UserError: it is of another shape, or not finite.
    """
    _check_shape(where, change, shape)
    if not change.isfinite().all():
        raise UserError(f"{where} has values that are not finite", "use another file")
    return change.reshape(shape)


def _check_shape(where: str, change: Tensor, shape: torch.Size) -> None:
    if change.numel() != shape.numel() or (shape and change.shape[:1] != shape[:1]):
        raise UserError(
            f"{where} has {list(change.shape)}, the model {list(shape)}", "is it of another model?"
        )


def _shape_only(kind: str, tensor: Tensor) -> Tensor:
    """A tensor without values, of which a product takes no memory; alpha is a number."""
    return tensor if kind == "alpha" else tensor.to("meta")


def _loha(tensors: Mapping[str, Tensor]) -> Tensor:
    one, two = (
        _product(tensors[f"hada_w{i}_a"], tensors[f"hada_w{i}_b"], tensors.get(f"hada_t{i}")) for i in (1, 2)
    )
    return one * two * _scale(tensors, len(tensors["hada_w1_b"]))


def _lokr(tensors: Mapping[str, Tensor]) -> Tensor:
    """Two whole factors have no rank, and then alpha has no meaning."""
    ranks = [len(tensors[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors]
    one, two = (_factor(tensors, i) for i in (1, 2))
    one = one.reshape(*one.shape, *[1] * (two.ndim - one.ndim))
    return torch.kron(one, two.contiguous()) * (_scale(tensors, ranks[0]) if ranks else 1.0)


def _factor(tensors: Mapping[str, Tensor], number: int) -> Tensor:
    name = f"lokr_w{number}"
    if name in tensors:
        return tensors[name]
    return _product(tensors[f"{name}_a"], tensors[f"{name}_b"], tensors.get(f"lokr_t{number}"))


def _product(first: Tensor, second: Tensor, core: Tensor | None) -> Tensor:
    """`first` times `second`; with a core tensor [r, s, k, k], `first` [r, out] and `second` [s, in]."""
    if core is None:
        return first.flatten(1) @ second.flatten(1)
    if len(second) > LARGEST_RANK:
        raise ValueError(f"a rank of {len(second):,}")
    return torch.einsum("rskl,rp,si->pikl", core, first, second)


def _scale(tensors: Mapping[str, Tensor], rank: int) -> float:
    return float(tensors["alpha"].item()) / rank if "alpha" in tensors else 1.0
