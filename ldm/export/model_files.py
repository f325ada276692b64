"""The names of the files that a model's folder consists of, in all formats.

`ldm push` sends only these files. `ldm verify` reports any others.
"""

import re

from ldm.models.families.registry import component_names, optional_names
from ldm.models.loading.folder import ADAPTER, ADAPTER_WEIGHTS

REPORT = "export.json"
CARD = "README.md"
TOP_FILES = frozenset(
    {CARD, REPORT, "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "ldm.json", "model_index.json"}
    | {ADAPTER, *ADAPTER_WEIGHTS, "config.json"}
)
PARTS = (*component_names(), *optional_names(), "vae_encoder", "vae_decoder")
"""The folders inside a model's folder."""
PART_FILES = frozenset(
    {"config.json", "scheduler_config.json", "generation_config.json", "preprocessor_config.json"}
    | {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    | {"special_tokens_map.json", "added_tokens.json", "openvino_model.xml", "openvino_model.bin"}
    | {"adapter_config.json", "adapter_model.safetensors"}  # peft has a folder for each network
)
PART_WEIGHTS = re.compile(
    r"(diffusion_pytorch_)?model(\.\w+)?(-\d+-of-\d+)?\.safetensors"
    r"|(diffusion_pytorch_)?model\.safetensors\.index(\.\w+)?\.json"
)
IMAGE = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:png|jpe?g|webp)", re.IGNORECASE)
"""An image that a model card shows."""
RECORDS = (REPORT, "ldm.json", ADAPTER)
"""Records of ours, which say where a model comes from."""
SETTINGS = frozenset({
    "scheduler", "engine", "dtype", "format", "variant", "reader", "unit", "prediction_type", "architecture",
    "implementation", "network_module", "base_model_version", "target_modules", "class_name", "kind",
    "made_by", "program",
})  # fmt: skip
"""Keys of records and of headers whose values programs choose among; people write the others."""


def is_setting(key: str) -> bool:
    """Whether a program chooses the value of this key: "scheduler", "modelspec.architecture", "ss_network_module"."""
    return key.rpartition(".")[2].removeprefix("ss_") in SETTINGS


def is_vocabulary(name: str) -> bool:
    """Whether a file of an export is a tokenizer's: its texts are tokens, and changing them changes the model."""
    return name.startswith("tokenizer")
