"""The examples of a model card: how to use the export in Python, and with `ldm generate`."""

import shlex

from ldm.export.card.facts import SchedulerChange
from ldm.export.card.samples import size_of_inputs
from ldm.export.card.task_words import words_for
from ldm.export.formats.exporter import ExportedModel, Usage, literal


def python_example(
    exported: ExportedModel, usage: Usage, scheduler: SchedulerChange | None, prompt: str
) -> str:
    """A program that loads the export and draws the prompt with the model's default settings."""
    classes = [usage.pipeline_class] if usage.pipeline_class else []
    lines = list(usage.python)
    if scheduler and usage.pipeline_class:
        classes.append(scheduler.class_name)
        changes = "".join(f", {key}={value!r}" for key, value in scheduler.changes.items())
        lines.append(f"pipe.scheduler = {scheduler.class_name}.from_config(pipe.scheduler.config{changes})")
    imports = [f"from diffusers import {', '.join(sorted(classes))}"] if classes else []
    imports += [*words_for(exported.source.parts.task).imports, *usage.imports]
    return "\n".join([*imports, "", *lines, *_call(exported, prompt)])


def _call(exported: ExportedModel, prompt: str) -> list[str]:
    defaults, words = exported.source.parts.defaults, words_for(exported.source.parts.task)
    size = size_of_inputs(exported.source.parts)
    settings = {
        **words.arguments(size),
        "num_inference_steps": repr(defaults.num_inference_steps),
        "guidance_scale": repr(defaults.guidance_scale),
    }
    given = ", ".join(f"{key}={value}" for key, value in settings.items())
    call = f"image = pipe({literal(prompt)}, {given}).images[0]"
    return [*words.load(size), call, *words.finish, 'image.save("image.png")']


def _few_step_options(exported: ExportedModel) -> list[str]:
    """The options with which a LoRA that distils its base is used, as a LoRA file brings no defaults."""
    defaults = exported.source.parts.defaults
    if not exported.is_lora or defaults.scheduler != "lcm":
        return []
    numbers = {
        "--num-inference-steps": f"{defaults.num_inference_steps}",
        "--guidance-scale": f"{defaults.guidance_scale:g}",
    }
    return ["--scheduler", "lcm", *(word for pair in numbers.items() for word in pair)]


def command_example(exported: ExportedModel, usage: Usage, prompt: str) -> str | None:
    """The same with `ldm generate`, after a download if that is needed; None if it does not read the format."""
    if usage.model is None:
        return None
    lora = ["--lora", usage.lora] if usage.lora else []
    options = [*words_for(exported.source.parts.task).options, *_few_step_options(exported)]
    lines = [["ldm", "generate", prompt, "--model", usage.model, *lora, *options]]
    if exported.repo_id and usage.needs_download:
        lines.insert(0, ["hf", "download", exported.repo_id, "--local-dir", exported.name])
    return "\n".join(map(shlex.join, lines))
