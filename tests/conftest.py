"""Every test runs without a network, on two threads, in this process and in those it starts."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

# before torch and huggingface_hub are imported, which read them once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

# no test reads or fills the user's cache, nor does a program that a test starts
os.environ["LDM_CACHE_DIR"] = tempfile.mkdtemp(prefix="ldm-tests-")

import pytest

from tests.support.tiny_emoji import packages  # noqa: F401  # a fixture of two test files


def is_local(address: Any) -> bool:
    """Whether a socket address stays on this machine: a Unix socket, or a loopback host."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0]).partition("%")[0]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A connection to another machine fails the test, even where the code catches every Exception."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """Ctrl-C ends a program here and in the programs that a test starts, also under nohup and in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def cache_folder() -> Iterator[None]:
    """The tests' cache goes when they are done."""
    yield
    shutil.rmtree(os.environ["LDM_CACHE_DIR"], ignore_errors=True)


def guarded(connect: Any) -> Any:
    """`connect` of a socket, for local addresses only."""

    def connect_locally(self: socket.socket, address: Any) -> Any:
        if not is_local(address):
            pytest.fail(f"a test reached for the network: {address}")
        return connect(self, address)

    return connect_locally
