"""Memory is asked for before something large begins, and an error that means "short of memory" is said as one."""

import resource
import subprocess
import sys

import pytest

from ldm.errors import UserError
from ldm.io.memory import check_memory, free_memory_bytes, memory_fault


def test_what_cannot_fit_is_refused_with_both_amounts() -> None:
    assert 2**20 < free_memory_bytes() < 2**50
    check_memory(1000, "a list", "make it shorter")
    with pytest.raises(
        UserError, match=r"a list needs about 1,000,000,000.0 GB of memory, [\d,.]+ GB are free"
    ):
        check_memory(1e18, "a list", "shorter")


def test_a_limit_of_the_address_space_counts() -> None:
    code = """
import resource
from ldm.io.memory import free_memory_bytes
resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))
print(free_memory_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4e9
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libc10.so: cannot open shared object file: Cannot allocate memory"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"),
        caused(RuntimeError("Failed to import transformers.models"), ImportError("failed to map segment")),
    ],
)
def test_errors_that_mean_too_little_memory_are_recognised(error: Exception) -> None:
    assert "there is not enough memory" in str(memory_fault(error))


def test_other_errors_are_not() -> None:
    assert memory_fault(ImportError("No module named 'torch'")) is None
    assert memory_fault(OSError(2, "No such file")) is None


@pytest.mark.slow
def test_the_command_says_that_memory_is_short() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))"
    code = f"{limit}\nfrom ldm.cli.app import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code, "info"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is not enough memory" in done.stderr
