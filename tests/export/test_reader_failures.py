"""A reader that fails: the reason, the way on, and no blame on an export whose reader was killed."""

import signal
import sys
from pathlib import Path

import pytest

from ldm.export.verify import compare
from ldm.export.verify.compare import NotVerified, reader_failure

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: act_fn "abc" is not known
  see the list of them
"""


@pytest.mark.parametrize(
    ("code", "stderr", "said", "hint"),
    [
        (
            1,
            TRACEBACK,
            'cannot read the model (ValueError: act_fn "abc" is not known)',
            "run `ldm verify` on the model",
        ),
        (1, "", "cannot read the model (no message)", "run `ldm verify` on the model"),
        (3, "x", "cannot read the model (exit code 3: x)", "run `ldm verify` on the model"),
    ],
)
def test_a_fault_of_the_model_has_its_reason_and_the_way_on(
    code: int, stderr: str, said: str, hint: str
) -> None:
    error = reader_failure("diffusers", code, stderr, 4.9)
    assert said in error.what and error.hint.startswith(hint)
    assert not isinstance(error, NotVerified)


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (-signal.SIGKILL, "", "SIGKILL ended diffusers while it read the model; it had 4.9 GB of memory"),
        (-signal.SIGSEGV, "", "SIGSEGV ended diffusers while it read the model"),
        (1, "numpy.core.MemoryError: Unable", "diffusers had too little memory to read the model"),
        (
            1,
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory",
            "had too little memory",
        ),
    ],
)
def test_a_reader_that_was_killed_says_nothing_about_the_model(code: int, stderr: str, said: str) -> None:
    error = reader_failure("diffusers", code, stderr, 4.9)
    assert said in error.what and "this says nothing about the model" in error.hint
    assert isinstance(error, NotVerified)


def test_a_real_signal_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's program is replaced by one that kills itself."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(NotVerified, match="SIGKILL ended peft"):
        compare._run(tmp_path / "task.json", "peft")
