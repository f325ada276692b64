"""The guides' marked commands are run, in this process to save time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import ldm.cli.processes
import ldm.export.verify.compare
from ldm.export.verify import readers
from ldm.models.loading.model import save_parts
from tests.support.documents import ROOT, marked_blocks, run_here
from tests.support.tiny_images import photo
from tests.support.tiny_launch import forked
from tests.support.tiny_models import make_refiner, make_sdxl
from tests.support.tiny_tasks import make_labelled

GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
BLOCKS = [
    pytest.param(guide.name, block, id=guide.name)
    for guide in GUIDES
    for block in marked_blocks(guide.read_text(encoding="utf-8"), "bash")
]


def write_models_of_tasks(folder: Path) -> None:
    """In place of the training runs, models with random weights."""
    for task in ("upscale", "restore"):
        parts = make_labelled(folder / "tokenizer", task, num_levels=3)
        save_parts(parts, folder / f"runs/tasks/{task}/pipeline")


def write_sdxl(folder: Path) -> None:
    """In place of models of full size, tiny ones."""
    save_parts(make_sdxl(folder / "tokenizers"), folder / "models/sdxl")
    save_parts(make_refiner(folder / "tokenizers"), folder / "models/sdxl-refiner")


def write_photos(folder: Path) -> None:
    """A few captioned images in place of the user's."""
    (folder / "photos").mkdir()
    for number in range(12):
        photo(64, 64, seed=number).save(folder / f"photos/{number:02d}.png")
        (folder / f"photos/{number:02d}.txt").write_text(f"photo {number}")


PREPARED = {"upscale.md": write_models_of_tasks, "sdxl.md": write_sdxl, "evaluate.md": write_photos}
"""What stands for trainings that a guide describes and that take too long."""


def run_forked(command: Sequence[str], environment: Mapping[str, str], num_processes: int = 1) -> int:
    """Run a training program in a process that need not import everything."""
    assert num_processes == 1
    done = forked(command, env=environment)
    print(done.stdout, done.stderr)
    return done.returncode


def read_here(task: Path, reader: str) -> None:
    """Run the reader of an export in this process, which has diffusers loaded already."""
    readers.main([str(task)])


@pytest.mark.parametrize(("guide", "block"), BLOCKS)
def test_the_commands_run(guide: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ldm.cli.processes, "run_processes", run_forked)
    monkeypatch.setattr(ldm.export.verify.compare, "_run", read_here)
    PREPARED.get(guide, lambda folder: None)(tmp_path)
    run_here(block)


def test_there_are_blocks() -> None:
    assert [block.id for block in BLOCKS] == [
        "control.md", "edit.md", "evaluate.md", "faster.md", "inpaint.md", "objectives.md", "prompts.md",
        "provenance.md", "sdxl.md", "sdxl.md", "upscale.md",
    ]  # fmt: skip
