"""What many GPUs would reach: the arithmetic of `ldm.evaluation.scaling`, and the page that is written from it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.evaluation.scaling import Costs, exchange_sec, loading_sec, reach
from tests.support.benchmark_folder import ROOT, benchmark

COSTS = Costs(
    compute_sec=0.1,
    gradient_bytes=1e9,
    node_bytes_per_sec=1e11,
    network_bytes_per_sec=1e10,
    latency_sec=0.0,
    gpus_per_node=8,
    overlap_fraction=0.0,
    loading_sec=0.01,
    samples_per_gpu=4,
    sample_bytes=1e5,
    storage_bytes_per_sec=1e9,
)


def test_one_gpu_exchanges_nothing() -> None:
    one = reach(COSTS, 1)
    assert (one.step_sec, one.exposed_sec, one.efficiency, one.limit) == (0.1, 0.0, 1.0, "compute")
    assert one.samples_per_sec == pytest.approx(40)


def test_a_ring_sends_twice_all_but_one_share() -> None:
    assert exchange_sec(COSTS, 2) == pytest.approx(2 * 0.5 * 1e9 / 1e11)
    assert exchange_sec(COSTS, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 1e11)
    with_latency = replace(COSTS, latency_sec=1e-3)
    assert exchange_sec(with_latency, 8) == pytest.approx(exchange_sec(COSTS, 8) + 14e-3)


def test_beyond_one_machine_the_slowest_link_counts() -> None:
    assert exchange_sec(COSTS, 9) == pytest.approx(2 * 8 / 9 * 1e9 / 1e10)
    fast_network = replace(COSTS, network_bytes_per_sec=1e12)
    assert exchange_sec(fast_network, 9) == pytest.approx(2 * 8 / 9 * 1e9 / 1e11)


def test_what_hides_under_computing_costs_nothing() -> None:
    exchange = exchange_sec(COSTS, 64)
    open_to_all, half, hidden = (
        reach(replace(COSTS, overlap_fraction=share), 64) for share in (0.0, 0.5, 1.0)
    )
    assert open_to_all.step_sec == pytest.approx(0.1 + exchange)
    assert half.step_sec == pytest.approx(0.1 + exchange - 0.05)
    assert open_to_all.limit == "communication"
    assert hidden.exposed_sec == pytest.approx(exchange - 0.1)
    free = reach(replace(COSTS, overlap_fraction=1.0), 8)
    assert (free.exposed_sec, free.efficiency, free.limit) == (0.0, 1.0, "compute")


def test_many_gpus_wait_for_the_storage() -> None:
    assert loading_sec(COSTS, 8) == 0.01
    assert loading_sec(COSTS, 512) == pytest.approx(512 * 4 * 1e5 / 1e9)
    costs = replace(COSTS, storage_bytes_per_sec=1e8, overlap_fraction=1.0)
    slow = reach(costs, 512)
    assert slow.limit == "loading"
    assert slow.step_sec == pytest.approx(2.048)
    assert slow.efficiency == pytest.approx(0.1 / 2.048)
    assert slow.samples_per_sec == pytest.approx(1e8 / 1e5)  # as many as the storage gives, however many GPUs


@pytest.mark.parametrize(
    ("name", "value"),
    [("compute_sec", 0.0), ("overlap_fraction", 1.5), ("latency_sec", -1.0), ("gpus_per_node", 0)],
)
def test_a_cost_that_cannot_be_is_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        replace(COSTS, **{name: value})


def test_no_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="num_gpus is 0"):
        reach(COSTS, 0)


# The page


RESULT = {"costs": asdict(COSTS), "device": "cpu", "machine": {"cpu_cores": 2}}


def test_the_page_computes_nothing_without_costs() -> None:
    with pytest.raises(ValueError, match="too few clean samples"):
        benchmark("scaling_page").page_text({**RESULT, "costs": None})


def test_the_page_holds_what_is_computed() -> None:
    page = benchmark("scaling_page").page_text(RESULT)
    assert "Computed, not measured" in page
    assert "one process on 2 CPU cores" in page
    assert "| 1 | 100.0 ms | 0.0 ms | 40.0 | 100.0% | compute |" in page


def test_an_unknown_cost_is_refused() -> None:
    with pytest.raises(TypeError, match="extra"):
        benchmark("scaling_page").page_text({**RESULT, "costs": {**asdict(COSTS), "extra": 1.0}})


def test_the_page_in_the_repository_is_that_of_its_inputs() -> None:
    inputs = json.loads((ROOT / "docs/benchmarks/scaling.json").read_text())
    page: Path = ROOT / "docs/scaling.md"
    assert page.read_text() == benchmark("scaling_page").page_text(inputs)
