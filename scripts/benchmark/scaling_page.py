"""docs/scaling.md: the throughput of 8, 64 and 512 workers, computed from the costs that `scaling` measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.evaluation.scaling import Costs, Reach, reach

COUNTS = (1, 8, 64, 512)

HEAD = """# Scaling to many workers

These numbers are computed, not measured. `python scripts/benchmark.py scaling-page` writes this page from the costs
that `python scripts/benchmark.py scaling --output docs/benchmarks/scaling.json` measured, with the model in
`ldm/evaluation/scaling.py`. It describes data-parallel training: each worker computes on its own samples, the gradients
are summed by a ring all-reduce, which can be partly hidden by the backward pass, and the next batch is loaded in
parallel.

- exchange = 2 (N - 1) (gradient bytes / N / slowest link in the ring + latency)
- loading = the longer of the workers' time for a batch and the shared storage's time for all N batches
- step = the longer of loading, and computing plus the part of the exchange that is not hidden
- efficiency = computing / step
"""

MEASURED_ON = {
    "cpu": """A worker is one process on the {cpu_cores} CPU cores of the machine, and the link between two workers is
gloo over its loopback interface. No part of the exchange counts as hidden, because the same cores would do both. A GPU
computes a step a hundred times faster and has a different link, so its numbers differ: run the same two commands there
with `--device cuda` to write its page.""",
    "cuda": """A worker is one {gpu}, and the link is NCCL between two of them in one machine; links between machines
are assumed to be the same. No part of the exchange counts as hidden.""",
}


def write_page(inputs: Path, page: Path) -> None:
    """Write the page from the result of the benchmark `scaling`.

    Raises:
        ValueError: the result has no costs, because too few samples were clean.
    """
    page.write_text(page_text(json.loads(inputs.read_text())))


def page_text(result: Mapping[str, Any]) -> str:
    """The page in Markdown, from the benchmark's result."""
    if result["costs"] is None:
        raise ValueError(
            "there were too few clean samples to measure the costs: measure again on a quiet machine"
        )
    costs = Costs(**result["costs"])
    where = MEASURED_ON[result["device"]].format(**result["machine"])
    reached = _reach_table([reach(costs, count) for count in COUNTS])
    return (
        "\n".join([HEAD, "## Costs\n", where, "", _cost_table(costs), "\n## Predicted speed\n", reached])
        + "\n"
    )


def _cost_table(costs: Costs) -> str:
    rows = [f"| `{name}` | {value:g} |" for name, value in vars(costs).items()]
    return "\n".join(["| cost | value |", "|---|---|", *rows])


def _reach_table(reached: list[Reach]) -> str:
    head = [
        "| workers | step | not hidden | samples per second | efficiency | limit |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {one.num_gpus} | {1e3 * one.step_sec:.1f} ms | {1e3 * one.exposed_sec:.1f} ms "
        f"| {one.samples_per_sec:,.1f} | {one.efficiency:.1%} | {one.limit} |"
        for one in reached
    ]
    return "\n".join(head + rows)
