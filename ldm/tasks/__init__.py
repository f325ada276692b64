"""The tasks by name. To add one, write its file and list it here."""

from ldm.errors import unknown_name
from ldm.tasks.task import FROM_NOISE, Encode, Start, Task, encoder_for, input_latents
from ldm.tasks.text_to_image import TextToImage

__all__ = [
    "FROM_NOISE",
    "TASKS",
    "Encode",
    "Start",
    "Task",
    "check_task",
    "encoder_for",
    "find_task",
    "input_latents",
    "register_task",
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
    """Refuse an unknown task.

    Raises:
        UserError: as `find_task`.
    """
    find_task(name)


register_task(TextToImage())
