"""`ldm doctor`: what it says of the computer is so."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.cli import doctor
from ldm.cli.doctor import sdpa_kernels

CPU = torch.device("cpu")


def test_a_kernel_is_named_only_if_it_runs_and_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    named = sdpa_kernels(CPU)
    assert "math" in named
    query = torch.randn(1, 1, 4, 8)
    for name in ("flash", "efficient", "cudnn"):
        backend = getattr(SDPBackend, f"{name.upper()}_ATTENTION")
        try:
            with warnings.catch_warnings(action="ignore"), sdpa_kernel([backend]):
                torch.nn.functional.scaled_dot_product_attention(query, query, query)
            assert name in named
        except RuntimeError:
            assert name not in named
    wrong = torch.zeros_like
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", lambda q, k, v: wrong(q))
    assert sdpa_kernels(CPU) == []


def test_the_computer_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "not" / "yet" / "there"))
    monkeypatch.chdir(tmp_path)
    cores, memory, here, cache = doctor._computer([])
    assert cores == f"cores: {len(os.sched_getaffinity(0))}"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert 0 < float(memory.split()[1]) <= total + 0.1
    free = shutil.disk_usage(tmp_path).free / 1e9
    for line, folder in ((here, tmp_path), (cache, tmp_path / "not" / "yet" / "there")):
        assert line.endswith(f"GB ({folder})")
        assert float(line.split(": ")[1].split()[0]) == pytest.approx(free, abs=1)
    assert not (tmp_path / "not").exists()
    assert len(list(doctor._computer(["torch"]))) == 3  # the cache's place is known to what cannot be loaded


def test_a_container_has_the_memory_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    limit = Path("/sys/fs/cgroup/memory.max")
    monkeypatch.setattr(Path, "is_file", lambda path: path == limit)
    for text, expected in (("1048576\n", 2**20), ("max\n", None)):
        monkeypatch.setattr(Path, "read_text", lambda p, t=text, **o: t if p == limit else real(p, **o))
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert doctor._memory_bytes() == (expected or total)
