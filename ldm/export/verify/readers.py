"""A fresh process that loads an exported model with the library that others use, and carries out the trial.

None of our code computes anything here: diffusers and peft must read the model as we do.
Run as `python -m ldm.export.verify.readers TASK.json`; the task names the reader, the files and the trial.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read_folder(task: Mapping[str, Any]) -> Any:
    """A folder in the diffusers layout."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(
        task["folder"],
        variant=task.get("variant"),
        use_safetensors=True,
        local_files_only=True,
        **WITHOUT_CHECKER,
    )


def read_single_file(task: Mapping[str, Any]) -> Any:
    """A checkpoint in the original layout; sizes and vocabulary come from a folder with configurations."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_single_file(
        task["file"],
        config=task["folder"],
        local_files_only=True,
        **WITHOUT_CHECKER,
    )


def read_lora(task: Mapping[str, Any]) -> Any:
    """A LoRA file, with any names that diffusers knows, on its base."""
    pipe = read_folder(task)
    file = Path(task["file"])
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    return pipe


def read_peft(task: Mapping[str, Any]) -> Any:
    """Adapters in peft's layout, a folder for each network, on their base."""
    from peft import PeftModel

    pipe = read_folder(task)
    for part in ("unet", "text_encoder"):
        folder = Path(task["file"]) / part
        if folder.is_dir():
            setattr(
                pipe, part, PeftModel.from_pretrained(getattr(pipe, part), str(folder)).merge_and_unload()
            )
    return pipe


def read_openvino(task: Mapping[str, Any]) -> Any:
    """OpenVINO's networks in diffusers' stock pipeline."""
    from ldm.export.verify.openvino_reader import read_openvino as read

    return read(task)


WITHOUT_CHECKER: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}

READERS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
    "diffusers": ("diffusers", read_folder),
    "single-file": ("diffusers", read_single_file),
    "lora": ("diffusers", read_lora),
    "peft": ("peft", read_peft),
    "openvino": ("openvino", read_openvino),
}
"""The library and the function of each reader, by name."""


def with_sampler(pipe: Any, class_name: str) -> Any:
    """A stock pipeline with another sampler, which it corrects as it corrects its own; the components are shared."""
    import diffusers

    scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config)
    return type(pipe)(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)


def trial_outputs(pipe: Any, task: Mapping[str, Any]) -> dict[str, Any]:
    """The stock pipeline's results: an image [1, 3, H, W] in 0 to 1, and an encoded image [1, C, h, w].

    The image is made with the pipeline's own scheduler, unless the trial names the class of another.
    """
    import torch
    from safetensors.torch import load_file

    pipe.to(torch.float32)  # whatever it is stored in
    trial = dict(task["trial"])
    seed, class_name = trial.pop("seed"), trial.pop("scheduler_class")
    if class_name is not None:
        pipe = with_sampler(pipe, class_name)
    if hasattr(pipe.scheduler, "noise_sampler_seed"):  # takes a seed where others take a generator
        pipe.scheduler.noise_sampler_seed = [seed]
    pipe.set_progress_bar_config(disable=True)
    inputs = load_file(task["inputs"])
    generator = [torch.Generator("cpu").manual_seed(seed)]
    pixels = pipe(**trial, latents=inputs["noise"], generator=generator, output_type="pt").images
    with torch.no_grad():
        encoded = pipe.vae.encode(inputs["image"]).latent_dist.mean
    return {"pixels": pixels, "encoded": encoded}


def main(argv: list[str]) -> int:
    """Carry out the task; returns the exit code."""
    from safetensors.torch import save_file

    task = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    _, read = READERS[task["reader"]]
    tensors = trial_outputs(read(task), task)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, task["outputs"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
