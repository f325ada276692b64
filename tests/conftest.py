"""Every test, and every program that it starts, runs without a network, on two threads or on one of two workers."""

import gc
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

# set before torch and huggingface_hub are imported: they read these once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # a fake Hub's malformed answer to it would be kept for a day
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads leave their core to other processes

# keeps tests, and programs that they start, away from the user's cache
os.environ["LDM_CACHE_DIR"] = tempfile.mkdtemp(prefix="ldm-tests-")
os.environ["LDM_IDENTITY_DIR"] = os.path.join(os.environ["LDM_CACHE_DIR"], "identity")

import pytest
import torch

from tests.support.tiny_emoji import packages  # noqa: F401  # a fixture that two test files use

gc.disable()  # while the tests are collected, which creates millions of objects that stay


def pytest_collection_finish() -> None:
    """From now on, only what the tests create is looked through for garbage, not the libraries."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """The libraries' objects are freed at the end: some print what is left of theirs."""
    gc.unfreeze()


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
    """A connection to another machine fails the test, even if the code under test catches every Exception."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def gradients_stay_on() -> Iterator[None]:
    """A test that leaves gradients off fails, and not every training after it in the same process."""
    yield
    left_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert left_on, "the test left torch's gradients off"


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """Make Ctrl-C work here and in programs that a test starts, even under nohup or in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def cache_folder() -> Iterator[None]:
    """Remove the tests' cache when they are done."""
    yield
    shutil.rmtree(os.environ["LDM_CACHE_DIR"], ignore_errors=True)


def guarded(connect: Any) -> Any:
    """`connect` of a socket, for local addresses only."""

    def connect_locally(self: socket.socket, address: Any) -> Any:
        if not is_local(address):
            pytest.fail(f"a test reached for the network: {address}")
        return connect(self, address)

    return connect_locally
