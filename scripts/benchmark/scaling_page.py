"""docs/scaling.md: what 8, 64 and 512 workers would reach, computed from costs that `scaling` measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.evaluation.scaling import Costs, Reach, reach

COUNTS = (1, 8, 64, 512)

HEAD = """# What many workers would reach

Computed, not measured: this page is written by `python scripts/benchmark.py scaling-page` from the costs that
`python scripts/benchmark.py scaling --output docs/benchmarks/scaling.json` measured, by the rules of
`ldm/evaluation/scaling.py`. They hold for data parallel training: each worker computes on its own samples, the
gradients are summed by a ring all-reduce, of which a part may be hidden under the backward pass, and the next batch is
read meanwhile.

- exchange = 2 (N - 1) (gradient bytes / N / slowest link in the ring + latency)
- loading = the longer of the workers' time for a batch and what the shared storage takes for all N
- step = the longer of loading, and computing + what of the exchange it does not hide
- efficiency = computing / step
"""

MEASURED_ON = {
    "cpu": """A worker is one process on the {cpu_cores} CPU cores that were at hand, and the link between two of them
is gloo's over the loopback of that machine. No part of the exchange counts as hidden: the same cores would do both. A
GPU computes a step a hundred times faster than this and has another link, so its shares are others: measured there with
`--device cuda`, the same two commands write its page.""",
    "cuda": """A worker is one {gpu}, and the link is NCCL's between two of them in one machine; between machines it is
taken to be the same. No part of the exchange counts as hidden.""",
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
    return "\n".join([HEAD, "## Costs\n", where, "", _cost_table(costs), "\n## Reach\n", reached]) + "\n"


def _cost_table(costs: Costs) -> str:
    rows = [f"| `{name}` | {value:g} |" for name, value in vars(costs).items()]
    return "\n".join(["| cost | value |", "|---|---|", *rows])


def _reach_table(reached: list[Reach]) -> str:
    head = [
        "| workers | step | not hidden | samples a second | efficiency | limit |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {one.num_gpus} | {1e3 * one.step_sec:.1f} ms | {1e3 * one.exposed_sec:.1f} ms "
        f"| {one.samples_per_sec:,.1f} | {one.efficiency:.1%} | {one.limit} |"
        for one in reached
    ]
    return "\n".join(head + rows)
