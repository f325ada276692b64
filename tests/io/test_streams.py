"""Standard streams that are closed, full, or read by nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from ldm.io.standard_streams import forgive_output, open_missing_streams
open_missing_streams()
forgive_output("stdout", "stderr")
done = open(sys.argv[1], "w")
for number in range(3):
    print("x" * 10000, flush=True)
    print("y" * 10000, file=sys.stderr, flush=True)
print("done", file=done)
"""


def shell(command: str, *arguments: object) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["bash", "-o", "pipefail", "-c", command, "bash", sys.executable, *map(str, arguments)]
    return subprocess.run(
        words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ).returncode


@pytest.mark.parametrize(
    "where", ["| head -c 1", "2>&1 | head -c 1", ">/dev/full 2>/dev/full", "<&- >&- 2>&-", ">&-", "2>&-"]
)
def test_a_program_goes_on_when_its_output_is_lost(where: str, tmp_path: Path) -> None:
    assert shell(f'"$1" -c "$2" "$3" {where}', PROGRAM, tmp_path / "file") == 0
    assert (tmp_path / "file").read_text() == "done\n"


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("| (exec <&-; sleep 1)", 1, ""),
        (">/dev/full", 2, "error: standard output cannot be written: the disk is full: free some space"),
        (">&-", 0, ""),
        ("2>/dev/full >/dev/full", 2, ""),
    ],
)
def test_a_command_whose_output_is_lost_ends_in_one_line(
    where: str, code: int, said: str, tmp_path: Path
) -> None:
    told = tmp_path / "stderr"
    stderr = "" if "2>" in where else f"2>'{told}'"
    assert shell(f'"$1" -m ldm --help {stderr} {where}') == code
    lines = told.read_text().splitlines() if told.exists() else []
    assert len(lines) == bool(said) and all(line.startswith(said) for line in lines)
