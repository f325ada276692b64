"""Imports and loading without garbage collection, and exiting a command without freeing every object."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm.io.collector import collector_paused
from ldm.models.loading.model import load_parts
from tests.support.tiny_generate import save_model

PROGRAM = """
import atexit, sys, threading, time
from ldm.cli.app import main

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
atexit.register(print, "bye")
if sys.argv[1] == "thread":
    threading.Thread(target=lambda: time.sleep(0.2) or print("thread done")).start()
sys.argv = ["ldm", *sys.argv[2:]]
main()
"""


def test_garbage_collection_is_paused_while_a_model_loads(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    searches: list[str] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        searches.append(phase)

    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    try:
        gc.set_threshold(10)  # a collection for every ten new objects, so thousands for a model
        load_parts(model)
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)
    assert len(searches) < 20  # before and after loading


def test_the_collector_is_restored_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), collector_paused():
        assert not gc.isenabled()
        _ = 1 // 0
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def run_ldm(*arguments: str) -> tuple[int, list[str], str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()[1:], done.stderr


def test_a_command_runs_exit_handlers_but_frees_no_objects() -> None:
    assert run_ldm("alone", "--version") == (0, ["bye"], "")
    code, _, told = run_ldm("alone", "generate", "a", "--model", "nowhere")
    assert code == 2
    assert told.startswith("error: ")


def test_a_running_thread_is_waited_for() -> None:
    assert run_ldm("thread", "--version") == (0, ["thread done", "bye", "taken apart"], "")
