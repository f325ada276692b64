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
    | {ADAPTER, *ADAPTER_WEIGHTS}
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
