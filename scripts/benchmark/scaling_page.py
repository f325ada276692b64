"""docs/scaling.md: the predicted speed of 8, 64 and 512 workers, computed from costs that `scaling` measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.evaluation.scaling import Costs, Reach, reach

COUNTS = (1, 8, 64, 512)

HEAD = """# Scaling to many workers

Computed, not measured. `python scripts/benchmark.py scaling-page` writes this page from the costs measured by
`python scripts/benchmark.py scaling --output docs/benchmarks/scaling.json`, with the model in
`ldm/evaluation/scaling.py`. It assumes data parallel training: each worker computes on its own samples, gradients are
summed by a ring all-reduce, part of which may overlap with the backward pass, and the next batch is loaded meanwhile.

- exchange = 2 (N - 1) (gradient bytes / N / slowest link in the ring + latency)
- loading = the longer of a worker's time for a batch and the shared storage's time for all N batches
- step = the longer of loading, and computing + the part of the exchange that does not overlap with it
- efficiency = computing / step
"""

MEASURED_ON = {
    "cpu": """A worker is one process on {cpu_cores} CPU cores, and the link between two workers is gloo over that
machine's loopback. No part of the exchange is assumed to overlap, because the same cores would do both. A GPU computes
a step about a hundred times faster and has a different link, so its proportions differ. With `--device cuda`, the same
two commands write the page for a GPU.""",
    "cuda": """A worker is one {gpu}, and the link is NCCL between two of them in one machine; between machines the same
speed is assumed. No part of the exchange is assumed to overlap.""",
}


def write_page(inputs: Path, page: Path) -> None:
    """Write the page from the result of the benchmark `scaling`.

    Raises:
        ValueError: it has no costs: too few samples were clean.
    """
    page.write_text(page_text(json.loads(inputs.read_text())))


def page_text(result: Mapping[str, Any]) -> str:
    """The page in Markdown, from the benchmark's result."""
    if result["costs"] is None:
        raise ValueError(
            "the costs were measured with too few clean samples: measure again on a quiet machine"
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
        "| workers | step | exchange not overlapped | samples per second | efficiency | limit |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {one.num_gpus} | {1e3 * one.step_sec:.1f} ms | {1e3 * one.exposed_sec:.1f} ms "
        f"| {one.samples_per_sec:,.1f} | {one.efficiency:.1%} | {one.limit} |"
        for one in reached
    ]
    return "\n".join(head + rows)
