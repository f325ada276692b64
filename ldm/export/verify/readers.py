"""A fresh process that loads an exported model with the library that others use, and carries out the trial.

None of our code computes anything here: diffusers and peft must read the model as we do.
Run as `python -m ldm.export.verify.readers TASK.json`; the task names the reader, the files and the trial.
"""

import inspect
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
    return _stock_class(task).from_single_file(
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
    for part in ("unet", "text_encoder", "text_encoder_2"):
        folder = Path(task["file"]) / part
        if folder.is_dir():
            setattr(
                pipe, part, PeftModel.from_pretrained(getattr(pipe, part), str(folder)).merge_and_unload()
            )
    return pipe


def read_lokr(task: Mapping[str, Any]) -> Any:
    """A LoKr file on its base."""
    from ldm.export.verify.lokr_reader import add_lokr

    pipe = read_folder(task)
    add_lokr(pipe, Path(task["file"]))
    return pipe


def read_openvino(task: Mapping[str, Any]) -> Any:
    """OpenVINO's networks in diffusers' stock pipeline."""
    from ldm.export.verify.openvino_reader import read_openvino as read

    return read(task)


def _stock_class(task: Mapping[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, task["trial"]["pipeline_class"])


WITHOUT_CHECKER: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}

READERS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
    "diffusers": ("diffusers", read_folder),
    "single-file": ("diffusers", read_single_file),
    "lora": ("diffusers", read_lora),
    "peft": ("peft", read_peft),
    "lokr": ("peft", read_lokr),
    "openvino": ("openvino", read_openvino),
}
"""The library and the function of each reader, by name."""


def with_sampler(pipe: Any, class_name: str) -> Any:
    """A stock pipeline with another sampler; the components are shared.

    Its offset and clipping are those that `StableDiffusionPipeline` sets in every sampler, and others do not.
    """
    import diffusers

    scheduler = getattr(diffusers, class_name).from_config(
        pipe.scheduler.config, steps_offset=1, clip_sample=False
    )
    arguments = inspect.signature(type(pipe).__init__).parameters.keys() - pipe.components.keys()
    settings = {name: value for name, value in pipe.config.items() if name in arguments}
    return type(pipe)(**{**pipe.components, "scheduler": scheduler}, **settings)


Inputs = Mapping[str, Any]
"""Tensors by name, see `ldm.export.verify.trial.trial_inputs`."""


def _from_prompt(pipe: Any, trial: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    return {"height": trial["height"], "width": trial["width"]}


def _inpaint(pipe: Any, trial: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """With the mean of the masked image's latents, of which the stock pipeline by itself draws a sample.

    Both are of the same posterior, which the pipeline's own autoencoder gives. The mean needs no random number.
    """
    import torch

    image, mask = inputs["given_image"], inputs["given_mask"]
    with torch.no_grad():
        posterior = pipe.vae.encode((image * 2 - 1) * (mask < 0.5)).latent_dist
    return {
        **_from_prompt(pipe, trial, inputs),
        "image": image,
        "mask_image": mask,
        "masked_image_latents": posterior.mean * pipe.vae.config.scaling_factor,
    }


def _xl_inpaint(pipe: Any, trial: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """From pure noise: by default, that pipeline starts from an image with almost no signal left."""
    return {**_inpaint(pipe, trial, inputs), "strength": 1.0}


def _edit(pipe: Any, trial: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The size is that of the image."""
    return {"image": inputs["given_image"], "image_guidance_scale": trial["image_guidance_scale"]}


def _upscale(pipe: Any, trial: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The size is that of the image. The noise of the low-resolution image is all that the stock pipeline draws."""
    import torch

    generator = torch.Generator("cpu").manual_seed(trial["low_resolution_seed"])
    return {
        "image": inputs["given_image"],
        "noise_level": trial["noise_level"],
        "generator": [generator],
    }


ARGUMENTS: dict[str, Callable[[Any, Mapping[str, Any], Inputs], dict[str, Any]]] = {
    "StableDiffusionInpaintPipeline": _inpaint,
    "StableDiffusionInstructPix2PixPipeline": _edit,
    "StableDiffusionUpscalePipeline": _upscale,
    "StableDiffusionXLInpaintPipeline": _xl_inpaint,
    "StableDiffusionXLInstructPix2PixPipeline": _edit,
}
"""What the stock pipelines of tasks with input images are called with besides prompts, noise, steps and guidance."""


def trial_outputs(pipe: Any, task: Mapping[str, Any]) -> dict[str, Any]:
    """The stock pipeline's results: an image [1, 3, H, W] in 0 to 1, and an encoded image [1, C, h, w].

    The image is made with the pipeline's own scheduler, unless the trial names the class of another.
    """
    import torch
    from safetensors.torch import load_file

    pipe.to(torch.float32)  # whatever it is stored in
    trial = task["trial"]
    if trial["scheduler_class"] is not None:
        pipe = with_sampler(pipe, trial["scheduler_class"])
    if hasattr(pipe.scheduler, "noise_sampler_seed"):  # takes a seed where others take a generator
        pipe.scheduler.noise_sampler_seed = [trial["seed"]]
    pipe.set_progress_bar_config(disable=True)
    inputs = load_file(task["inputs"])
    arguments = ARGUMENTS.get(trial["pipeline_class"], _from_prompt)
    common = {name: trial[name] for name in ("negative_prompt", "num_inference_steps", "guidance_scale")}
    common["generator"] = [torch.Generator("cpu").manual_seed(trial["seed"])]
    pixels = pipe(
        trial["prompt"],
        latents=inputs["noise"],
        output_type="pt",
        **{**common, **arguments(pipe, trial, inputs)},
    ).images
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
