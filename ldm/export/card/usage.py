"""How an export is used: in the program that its format is made for, and here."""

import json
import shlex
from collections.abc import Callable
from inspect import signature

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError
from ldm.export.card.markdown import code, fenced
from ldm.export.card.subject import CardSubject
from ldm.export.formats.single_file import has_known_unet
from ldm.models.adapters.folder import LORA_FILE
from ldm.models.loading.folder import weights_variant
from ldm.models.loading.source import EMBEDDED

STOCK = "StableDiffusionPipeline"
IMPORT = f"from diffusers import {STOCK}"
SD1_WIDTHS = [320, 640, 1280, 1280]
"""Of Stable Diffusion's UNet. Readers of a single file know these, and need the sizes of any other from elsewhere."""


def use_section(subject: CardSubject) -> str:
    """The section "Use": Python, then the command line."""
    parts = [_python_of(subject), _elsewhere(subject), _command_of(subject)]
    return "\n\n".join(part for part in parts if part)


def _python_of(subject: CardSubject) -> str:
    lines = [*_LOADING[subject.format](subject), *_sampler(subject), *_call(subject)]
    if subject.format == "openvino":
        return f"In OpenVINO, with `pip install optimum-intel`:\n\n{fenced(chr(10).join(lines), 'python')}"
    imported = sorted({STOCK, *(line.split()[2].partition(".")[0] for line in _sampler(subject))})
    lines[0] = f"from diffusers import {', '.join(imported)}"
    text = fenced("\n".join(lines), "python")
    return f"In [diffusers](https://github.com/huggingface/diffusers):\n\n{text}{_base_note(subject)}"


def _stock(subject: CardSubject, place: str) -> list[str]:
    variant = _variant(subject) if place == subject.place else None
    more = f", variant={_text(variant)}" if variant else ""
    return [IMPORT, "", f"pipe = {STOCK}.from_pretrained({_text(place)}{more}, safety_checker=None)"]


def _folder(subject: CardSubject) -> list[str]:
    lines = _stock(subject, subject.place)
    apart = [f"pipe.load_lora_weights({_text(subject.place)}, weight_name={_text(LORA_FILE)})"]
    return lines + apart if subject.keeps_lora_apart else lines


def _single_file(subject: CardSubject) -> list[str]:
    file, place = f"{subject.name}.safetensors", _text(f"{subject.name}/{subject.name}.safetensors")
    download = []
    if subject.repo_id:
        download = [f"file = hf_hub_download({_text(subject.repo_id)}, {_text(file)})"]
        place = "file"
    known = list(subject.source.parts.denoiser.unet.config.block_out_channels) == SD1_WIDTHS
    sizes = "" if known else ', config="FOLDER"'
    note = "" if known else "  # FOLDER: this model in the diffusers layout, for its sizes and words"
    return [
        IMPORT,
        *(["from huggingface_hub import hf_hub_download"] if download else []),
        "",
        *download,
        f"pipe = {STOCK}.from_single_file({place}{sizes}){note}",
    ]


def _lora(subject: CardSubject) -> list[str]:
    load = f"pipe.load_lora_weights({_text(subject.place)}, weight_name={_text(_lora_file(subject))})"
    return [*_stock(subject, _base_place(subject)), load]


def _peft(subject: CardSubject) -> list[str]:
    first, *rest = _stock(subject, _base_place(subject))
    parts = ["unet", "text_encoder"] if subject.source.lora is None else list(subject.source.lora.configs)
    loads = [
        f"pipe.{part} = PeftModel.from_pretrained(pipe.{part}, {_text(subject.place)}, subfolder={_text(part)})"
        for part in parts
    ]
    return [first, "from peft import PeftModel", *rest, *loads]


def _openvino(subject: CardSubject) -> list[str]:
    return [
        "from optimum.intel import OVStableDiffusionPipeline",
        "",
        f"pipe = OVStableDiffusionPipeline.from_pretrained({_text(subject.place)})",
    ]


_LOADING: dict[str, Callable[[CardSubject], list[str]]] = {
    "diffusers": _folder,
    "single-file": _single_file,
    "lora-diffusers": _lora,
    "lora-kohya": _lora,
    "lora-peft": _peft,
    "openvino": _openvino,
}


def _sampler(subject: CardSubject) -> list[str]:
    """The sampler of the model's defaults, where the stock pipeline would take another."""
    import diffusers

    parts = subject.source.parts
    entry = SCHEDULERS[parts.defaults.scheduler]
    if subject.is_lora_file or subject.format == "openvino" or not entry.available:
        return []
    config = {
        name: parameter.default
        for name, parameter in signature(getattr(diffusers, entry.class_name)).parameters.items()
    } | parts.scheduler_config
    changes = {key: value for key, value in entry.overrides.items() if config.get(key) != value}
    if config.get("_class_name") == entry.class_name and not changes:
        return []
    more = "".join(f", {key}={value!r}" for key, value in changes.items())
    return [f"pipe.scheduler = {entry.class_name}.from_config(pipe.scheduler.config{more})"]


def _call(subject: CardSubject) -> list[str]:
    defaults = subject.source.parts.defaults
    settings = {
        "height": defaults.height,
        "width": defaults.width,
        "num_inference_steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale,
    }
    given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    return [f"image = pipe({_text(subject.prompt)}, {given}).images[0]", 'image.save("picture.png")']


def _elsewhere(subject: CardSubject) -> str:
    """Where programs look for such a file, of a model that they know."""
    places = {
        "single-file": "`models/Stable-diffusion` of AUTOMATIC1111's web UI, `models/checkpoints` of ComfyUI",
        "lora-kohya": "`models/Lora` of AUTOMATIC1111's web UI, `models/loras` of ComfyUI",
    }
    where = places.get(subject.format) if has_known_unet(subject.source.parts) else None
    return f"Elsewhere: put {code(f'{subject.name}.safetensors')} into {where}." if where else ""


def _command_of(subject: CardSubject) -> str:
    """The same by `ldm generate`; empty where it does not read the format."""
    if subject.format == "openvino":
        return ""
    model, lora = subject.place, ""
    if subject.format == "single-file":
        model = f"{subject.name}/{subject.name}.safetensors"
    elif subject.is_lora_file:
        model, lora = _base_place(subject), f"{subject.name}/{_lora_file(subject)}".rstrip("/")
    elif subject.keeps_lora_apart:
        lora = f"{subject.name}/{LORA_FILE}"
    words = ["ldm", "generate", subject.prompt, "--model", model, *(["--lora", lora] if lora else [])]
    lines = [shlex.join(words)]
    if subject.repo_id and (lora or subject.format == "single-file"):
        lines.insert(0, shlex.join(["hf", "download", subject.repo_id, "--local-dir", subject.name]))
    text = fenced("\n".join(lines), "bash")
    return f"In OpenLDM, which takes size, steps and sampler from the model:\n\n{text}"


def _lora_file(subject: CardSubject) -> str:
    """The LoRA's file inside the export; empty for peft, whose folder is named."""
    names = {"lora-kohya": f"{subject.name}.safetensors", "lora-diffusers": LORA_FILE}
    return names.get(subject.format, "")


def _base_place(subject: CardSubject) -> str:
    base = subject.base
    return "BASE" if base is None else base.hub_id or base.name


def _base_note(subject: CardSubject) -> str:
    """Where to have a base from that is no model of the Hub."""
    base = subject.base
    if not subject.is_lora_file or base is None or base.hub_id:
        return ""
    name = code(base.name)
    if base.name in EMBEDDED:
        write = code(f"ldm export {base.name} {base.name}")
        return f"\n\n{name} is the model inside OpenLDM; {write} writes it as a folder."
    return f"\n\n{name} is the folder of the base model, in the diffusers layout."


def _variant(subject: CardSubject) -> str | None:
    try:
        return weights_variant(subject.folder, "unet")
    except (UserError, OSError):
        return None


def _text(text: str) -> str:
    """A string literal of Python."""
    return json.dumps(text, ensure_ascii=False)
