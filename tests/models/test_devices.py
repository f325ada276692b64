"""Whether the memory of freed tensors is kept for later ones."""

import ctypes
import subprocess
import sys

import pytest

MIB = 2**20
PROGRAM = """
import ctypes, sys
import torch
from ldm.models.devices import keep_freed_memory

class Held(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Held

def bytes_held():
    held = mallinfo()
    return held.arena + held.hblkhd

if sys.argv[1] == "kept":
    keep_freed_memory()
before = bytes_held()
activations = torch.ones(30 * 2**20 // 4)
del activations
print(bytes_held() - before)
"""


def bytes_kept(how: str) -> int:
    """The memory that the C library reports as kept after a tensor of 30 MiB was freed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 or later"
)
def test_memory_of_freed_tensors_stays_with_the_process() -> None:
    assert bytes_kept("usual") < 1 * MIB
    assert bytes_kept("kept") >= 30 * MIB
