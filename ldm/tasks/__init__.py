"""The tasks by name. To add one, write its file and list it here."""

from collections.abc import Collection

from ldm.errors import UserError, unknown_name
from ldm.tasks.control import LABEL_CONTROL, MAP_CONTROL
from ldm.tasks.depth import Depth, DepthFromImage
from ldm.tasks.edit import Edit
from ldm.tasks.image_to_image import ImageToImage
from ldm.tasks.inpaint import BlendedInpaint, Inpaint
from ldm.tasks.restore import Restore
from ldm.tasks.task import FROM_NOISE, Encode, Start, Task, TrainingInputs, encoder_for, input_latents
from ldm.tasks.text_to_image import TextToImage
from ldm.tasks.upscale import Upscale

__all__ = [
    "FROM_NOISE",
    "TASKS",
    "Encode",
    "Start",
    "Task",
    "TrainingInputs",
    "check_task",
    "encoder_for",
    "find_task",
    "input_latents",
    "register_task",
    "task_for_images",
]

TASKS: dict[str, Task] = {}


def register_task(task: Task) -> None:
    """Make a task known by its name, in place of one that had it."""
    TASKS[task.name] = task


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is none; the message gives the nearest name.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def check_task(name: str) -> None:
    """Refuse a task that no model is trained for.

    Raises:
        UserError: there is no such task, or models trained for another one do it.
    """
    task = find_task(name)
    trained_as = task.trained_as
    if not task.can_be_trained:
        raise UserError(f"models for {name!r} are only loaded", "train a ControlNet: task: control")
    if trained_as != name:
        raise UserError(f"no model is trained for {name!r}", f"a {trained_as} model can do it: train that")


def task_for_images(model_task: str, given: Collection[str]) -> Task:
    """What a model does with the images given to `generate`.

    Args:
        model_task: the name of the task that the model was trained for.
        given: the names of the images.

    Raises:
        UserError: no task of the model takes these images; the message names those that it takes.
    """
    able = [task for task in TASKS.values() if task.trained_as == model_task]
    found = next((task for task in able if set(task.given) == set(given)), None)
    if found is None:
        fitting = "; ".join(f"{task.name}: {_flags(task.given)}" for task in able)
        raise UserError(
            f"a model trained for {model_task} has no use for {_flags(given)}",
            f"give what one of its tasks takes ({fitting})",
        )
    return found


def _flags(images: Collection[str]) -> str:
    return " and ".join(f"--{name}" for name in images) or "a prompt alone"


for task in (
    TextToImage(),
    ImageToImage(),
    BlendedInpaint(),
    Inpaint(),
    Edit(),
    Upscale(),
    Restore(),
    MAP_CONTROL,
    LABEL_CONTROL,
    Depth(),
    DepthFromImage(),
):
    register_task(task)
