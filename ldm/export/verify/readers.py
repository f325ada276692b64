"""A fresh process that loads an exported model with the library that others use, and carries out the trial.

Nothing of ours computes: what is written must mean to diffusers and peft what it means to us.
Run as `python -m ldm.export.verify.readers ORDER.json`; the order names the reader, the files and the trial.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read_folder(order: Mapping[str, Any]) -> Any:
    """A folder in the diffusers layout."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(
        order["folder"],
        variant=order.get("variant"),
        use_safetensors=True,
        local_files_only=True,
        **WITHOUT_CHECKER,
    )


def read_single_file(order: Mapping[str, Any]) -> Any:
    """A checkpoint in the original layout; sizes and vocabulary come from a folder with configurations."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_single_file(
        order["file"],
        config=order["folder"],
        local_files_only=True,
        **WITHOUT_CHECKER,
    )


def read_lora(order: Mapping[str, Any]) -> Any:
    """A LoRA file, of any naming that diffusers knows, on its base."""
    pipe = read_folder(order)
    file = Path(order["file"])
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    return pipe


def read_peft(order: Mapping[str, Any]) -> Any:
    """Adapters in peft's own layout, a folder for each network, on their base."""
    from peft import PeftModel

    pipe = read_folder(order)
    for part in ("unet", "text_encoder"):
        folder = Path(order["file"]) / part
        if folder.is_dir():
            setattr(
                pipe, part, PeftModel.from_pretrained(getattr(pipe, part), str(folder)).merge_and_unload()
            )
    return pipe


def read_openvino(order: Mapping[str, Any]) -> Any:
    """Networks of OpenVINO in diffusers' stock pipeline."""
    from ldm.export.verify.openvino_reader import read_openvino as read

    return read(order)


WITHOUT_CHECKER: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}

READERS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
    "diffusers": ("diffusers", read_folder),
    "single-file": ("diffusers", read_single_file),
    "lora": ("diffusers", read_lora),
    "peft": ("peft", read_peft),
    "openvino": ("openvino", read_openvino),
}
"""By name: the library that reads, and how."""


def output(pipe: Any, order: Mapping[str, Any]) -> dict[str, Any]:
    """By the stock pipeline: the trial's picture [1, 3, H, W] in 0 to 1, and its image encoded [1, C, h, w]."""
    import torch
    from diffusers import DDIMScheduler
    from safetensors.torch import load_file

    pipe.to(torch.float32)  # whatever it is stored in
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    trial = {key: value for key, value in order["trial"].items() if key != "seed"}
    given = load_file(order["given"])
    pixels = pipe(**trial, latents=given["noise"], output_type="pt").images
    with torch.no_grad():
        encoded = pipe.vae.encode(given["image"]).latent_dist.mean
    return {"pixels": pixels, "encoded": encoded}


def main(argv: list[str]) -> int:
    """Carry out the order; returns the exit code."""
    from safetensors.torch import save_file

    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    _, read = READERS[order["reader"]]
    tensors = output(read(order), order)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, order["answer"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
