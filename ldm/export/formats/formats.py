"""The registry of export formats. A new format is one file with two functions, and one entry in `FORMATS`.

Nothing heavy is imported here, because the command line derives its help from this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportFormat:
    """A format that models can be exported in.

    Attributes:
        summary: what the format is for; shown in the help of `ldm export`.
        export: the exporter, an `ldm.export.formats.exporter.Exporter`, as "module:function". It is imported on use.
        usage: what the model card says about using the export, an `ldm.export.formats.exporter.UsageOf`, likewise.
        mean_only: its readers expect as many output channels as latent ones, so a learned variance is left out.
        is_lora: the export is a LoRA alone, of no use without its base model.
        tags: additional tags on the Hub.
        packages: additional Python packages whose versions the model card names.
    """

    summary: str
    export: str
    usage: str
    mean_only: bool = False
    is_lora: bool = False
    tags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


_FOLDER = "ldm.export.formats.diffusers_folder"
_SINGLE_FILE = "ldm.export.formats.single_file"
_LORA = "ldm.export.formats.lora_formats"
_OPENVINO = "ldm.export.formats.openvino"
_LORA_TAGS = ("template:diffusion-lora",)

FORMATS: dict[str, ExportFormat] = {
    "diffusers": ExportFormat(
        "a folder for diffusers' StableDiffusionPipeline",
        f"{_FOLDER}:export_folder",
        f"{_FOLDER}:folder_usage",
    ),
    "single-file": ExportFormat(
        "one file in the original layout of Stable Diffusion 1 and 2",
        f"{_SINGLE_FILE}:export_single_file",
        f"{_SINGLE_FILE}:single_file_usage",
        mean_only=True,
    ),
    "lora-diffusers": ExportFormat(
        "a LoRA for diffusers' load_lora_weights",
        f"{_LORA}:export_lora_diffusers",
        f"{_LORA}:lora_diffusers_usage",
        is_lora=True,
        tags=_LORA_TAGS,
    ),
    "lora-peft": ExportFormat(
        "a LoRA in peft's layout",
        f"{_LORA}:export_lora_peft",
        f"{_LORA}:lora_peft_usage",
        is_lora=True,
        tags=_LORA_TAGS,
    ),
    "lora-kohya": ExportFormat(
        "a LoRA with kohya's names, which most other programs read",
        f"{_LORA}:export_lora_kohya",
        f"{_LORA}:lora_kohya_usage",
        is_lora=True,
        tags=_LORA_TAGS,
    ),
    "openvino": ExportFormat(
        "networks for OpenVINO, which is fast on Intel's processors",
        f"{_OPENVINO}:export_openvino",
        f"{_OPENVINO}:openvino_usage",
        tags=("openvino",),
        packages=("openvino",),
    ),
}
