"""docs/scaling.md: what 8, 64 and 512 GPUs would reach, computed from measured costs once these are there."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.evaluate.scaling import Costs, Reach, reach

COUNTS = (1, 8, 64, 512)
NOT_YET = "not measured yet"

HEAD = """# What many GPUs would reach

Computed, not measured: this page is written by `python scripts/benchmark.py scaling-page` from the costs in
`docs/benchmarks/scaling-inputs.json` by the rules of `ldm/evaluate/scaling.py`. They hold for data parallel training:
each GPU works on its own samples, the gradients are summed by a ring all-reduce, of which a part is hidden under the
backward pass, and the next batch is read meanwhile.

- exchange = 2 (N - 1) (gradient bytes / N / slowest link in the ring + latency)
- loading = the longer of the workers' time for a batch and what the shared storage takes for all N
- step = the longer of loading, and computing + what of the exchange it does not hide
- efficiency = computing / step
"""


def write_page(inputs: Path, page: Path) -> None:
    """Write the page from a JSON object with a cost, or null, under each name of `Costs`, and `where` it was measured.

    Raises:
        ValueError: a name is missing, or is not one of a cost.
    """
    page.write_text(page_text(json.loads(inputs.read_text())))


def page_text(given: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    names = [each.name for each in dataclasses.fields(Costs)]
    costs = {name: value for name, value in given.items() if name != "where"}
    if set(costs) != set(names):
        raise ValueError(f"the costs are {sorted(costs)}, expected {sorted(names)}")
    missing = [name for name in names if costs[name] is None]
    reached = None if missing else [reach(Costs(**costs), count) for count in COUNTS]
    parts = [
        HEAD,
        "## Costs\n",
        _cost_table(names, costs),
        f"\nMeasured on: {given.get('where') or NOT_YET}.\n",
    ]
    parts += ["## Reach\n", _reach_table(reached)]
    if missing:
        parts.append(f"\n{len(missing)} of {len(names)} costs are {NOT_YET}, so nothing is computed.")
    return "\n".join(parts) + "\n"


def _cost_table(names: list[str], costs: Mapping[str, Any]) -> str:
    values = [f"{costs[name]:g}" if costs[name] is not None else NOT_YET for name in names]
    rows = [f"| `{name}` | {value} |" for name, value in zip(names, values, strict=True)]
    return "\n".join(["| cost | value |", "|---|---|", *rows])


def _reach_table(reached: list[Reach] | None) -> str:
    head = [
        "| GPUs | step | not hidden | samples a second | efficiency | limit |",
        "|---|---|---|---|---|---|",
    ]
    if reached is None:
        return "\n".join(head + [f"| {count} |" + f" {NOT_YET} |" * 5 for count in COUNTS])
    rows = [
        f"| {one.num_gpus} | {1e3 * one.step_sec:.1f} ms | {1e3 * one.exposed_sec:.1f} ms "
        f"| {one.samples_per_sec:,.0f} | {one.efficiency:.1%} | {one.limit} |"
        for one in reached
    ]
    return "\n".join(head + rows)
