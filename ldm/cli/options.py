"""The options of `ldm generate`: their types, bounds and what their help teaches."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="What the pictures should show; each prompt in quotes."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Take further prompts from a file. Text: one a line; empty lines and lines that start with # "
        'are passed over. JSONL: one object a line, {"prompt": "...", "seed": 3, "scheduler": "euler"}, with '
        "any of the settings below, which then win over those given here. - reads text from standard input.",
    ),
]
FromImage = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Make the picture in this PNG again, from the settings inside it. Prompts and options given "
        "beside it take the place of its own.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER|FILE|HUB_ID",
        help="What to generate with: emoji (comes with this program), a folder in the diffusers layout such "
        "as a Stable Diffusion checkpoint, a .safetensors file in the layout of the original programs, a training "
        "run's folder, or a Hub id such as user/name or "
        "user/name@revision, which is downloaded once. Safetensors only.  [default: emoji]",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="Add a LoRA to the model: a .safetensors file for diffusers or in kohya's naming, a folder for peft, or "
        "a training run. WEIGHT is how much of it: 1 is as trained. Several may be given, each with its own "
        "--lora; their order makes no difference.  [default weight: 1]",
    ),
]
Output = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Where the pictures go; it is made if it is not there.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace pictures of the same name; without it they are refused.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on where an earlier call stopped: a picture that is there, whole, and made by this model with these "
        "settings is kept, the rest is made, and grid.png drawn anew. Any other file of a picture's name is refused; "
        "with --overwrite beside it, replaced.",
    ),
]
Grid = Annotated[
    bool, typer.Option("--grid", help="Write grid.png too: all the pictures of this call side by side.")
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="The number that a picture's noise comes from. The same prompt, settings and seed give the same "
        "picture, alone or among others.  [default: 0]",
    ),
]
NumImages = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Pictures of each prompt, with the seeds seed, seed + 1, seed + 2, ...  [default: 1]",
    ),
]
NumInferenceSteps = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Sampling steps: more take longer; beyond some 50 little changes."),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="How strongly the prompt is followed. 1 is without guidance and twice as fast; 3 to 9 are "
        "usual; more makes colours glaring.",
    ),
]
GuidanceRescale = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Takes the glare out of a high guidance scale: 0 is off, 0.7 is usual where needed.",
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="START END",
        help="Use guidance in a part of the sampling only; the rest is twice as fast, and often better. Rising "
        "numbers are fractions of the steps: 0 0.5 is their first half. Falling ones are noise levels, noise "
        "over signal: 5 0.3.  [default: the model's own; 0 1, all steps, where it has none]",
    ),
]
DeepFeaturesEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Compute the deep levels of the network at every N-th step only and use them again in between: "
        "faster, and the picture changes; the more steps, the less.  [default: 1]",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="fast: guidance in the first half of the steps and deep levels at every third; full: leave nothing "
        "out, also where the model's own default does. Options given beside it win.",
    ),
]
MaxPromptChunks = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Contexts of the text encoder that a long prompt may fill, 75 words and signs each with CLIP, at most 3; "
        "what is beyond is left out, with a warning.  [default: the model's own]",
    ),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What the pictures should not show; needs a guidance scale above 1."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The sampler; `--scheduler list` names them all with what they are."),
]
Karras = Annotated[
    bool | None,
    typer.Option(
        "--karras/--no-karras",
        help="Space the noise levels as Karras et al. 2022 do; often better with few steps.",
    ),
]
Height = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Of a picture; models are best at the size they learned."),
]
Width = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Of a picture; both are rounded to the model's multiple."),
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Pictures made at once: more are faster until the memory is full, and where it does not hold them fewer "
        "are taken; the pictures stay the same. auto: as many as a GPU holds.  [default: 8, or 1 with --low-memory]",
    ),
]
NumProcesses = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes that share the batches: each loads the model, on a GPU of its own or on its part of the CPU's "
        "cores. The pictures are the same for any number. No more are started than there are batches.",
    ),
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Use less memory and more time, for the same pictures: one at a time, and on a GPU only that "
        "part of the model that is at work.",
    ),
]
Engine = Annotated[
    Literal["torch", "openvino", "auto"] | None,
    typer.Option(
        help="What runs the denoiser: torch; openvino, which is faster on a CPU (pip install open-ldm[openvino]), in "
        "float32 and for the same picture within a step of its 255 levels; or auto, which is openvino where that is "
        "installed and its conversion, kept in the cache, is done or worth its seconds.  [default: torch]",
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
        help="What the model computes in: float32, or float16 or bfloat16, which are faster on a GPU, take "
        "half the memory and change the picture slightly.  [default: float32]",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the denoiser with torch.compile: faster on a GPU, after a minute or more for each size of batch "
        "and picture, so for many pictures. They change by rounding only. Needs Triton, or on a CPU a C++ compiler.",
    ),
]
