"""The arguments of a training that kohya's and LyCORIS' programs write into the header of a LoRA.

The weights say by themselves what they mean, except where the training changed the base model first. So an argument
that is not known here is refused by name.
"""

from collections.abc import Mapping

from ldm.errors import UserError
from ldm.io.json_files import parse_json

NETWORK_ARGS = "ss_network_args"

WITHOUT_EFFECT = frozenset((
    "algo", "preset", "type", "conv_dim", "conv_alpha", "linear_dim", "linear_alpha", "rank", "alpha", "dim",
    "dropout", "rank_dropout", "module_dropout", "rank_dropout_scale", "use_conv_cp", "use_cp", "use_tucker",
    "use_scalar", "dora_wd", "wd_on_output", "wd_on_out", "train_norm", "decompose_both", "factor", "full_matrix",
    "rs_lora", "bypass_mode", "unbalanced_factorization", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_size",
    "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "scale_weight_norms", "verbose",
    "block_dropout", "disable_conv_cp", "unit", "warn", "lbw", "lbw_preset", "ggpo_beta", "ggpo_sigma",
    "exclude_patterns", "include_patterns", "network_reg_dims", "network_reg_lrs", "reg_dims", "reg_lrs", "only_layers",
))  # fmt: skip
"""Arguments that only concern the training, or that the tensors' names and shapes repeat."""

KEEPS_BASE = ("default", "gaussian", "kaiming", "orthogonal", "zero", "true")
"""Ways to initialise a LoRA that leave the base model as it is."""


def check_network_args(where: str, metadata: Mapping[str, str]) -> None:
    """Refuse a LoRA whose training may have changed the base model or the formula.

    Raises:
        UserError: naming the argument.
    """
    try:
        given = parse_json(metadata.get(NETWORK_ARGS) or "null")
    except (ValueError, RecursionError):
        raise UserError(f"{where}: {NETWORK_ARGS} in its header is broken", "restore the file") from None
    for key, value in given.items() if isinstance(given, dict) else ():
        said = str(value).strip().lower()
        if key in ("initialize", "init_lora_weights", "init_weights") and said in KEEPS_BASE:
            continue
        if key not in WITHOUT_EFFECT and said not in ("", "none", "false", "null"):
            raise UserError(
                f"{where}: {key} = {str(value)[:80]!r} in its {NETWORK_ARGS}",
                "this argument of its training is not known here: it may change the base model or the formula",
            )
