"""Predict the throughput of many GPUs from the measured costs of one step, one gradient exchange and one batch.

A model of data-parallel training with a ring all-reduce (Patarasuk & Yuan 2009): every GPU computes on its own samples,
the gradients are summed over all GPUs, partly during the backward pass, and the next batch is loaded in parallel.
"""

from dataclasses import dataclass

from ldm.errors import UserError


@dataclass(frozen=True)
class Costs:
    """Measured costs of one GPU and its links.

    Attributes:
        compute_sec: time of one step on one GPU: forward, backward and optimizer.
        gradient_bytes: bytes that each GPU exchanges per step.
        node_bytes_per_sec: bandwidth of a GPU's link to the others in its machine, one way.
        network_bytes_per_sec: a GPU's share of its machine's bandwidth to other machines, one way.
        latency_sec: latency of one message between neighbours in the ring.
        gpus_per_node: GPUs per machine.
        overlap_fraction: share of compute_sec that can hide the exchange, 0 to 1.
        loading_sec: time in which a GPU's data loader workers produce one batch for it.
        samples_per_gpu: samples per GPU and step.
        sample_bytes: bytes read from storage per sample.
        storage_bytes_per_sec: bandwidth of the storage that all machines share.
    """

    compute_sec: float
    gradient_bytes: float
    node_bytes_per_sec: float
    network_bytes_per_sec: float
    latency_sec: float
    gpus_per_node: int
    overlap_fraction: float
    loading_sec: float
    samples_per_gpu: int
    sample_bytes: float
    storage_bytes_per_sec: float

    def __post_init__(self) -> None:
        """Raises UserError for an impossible cost."""
        for name, value in vars(self).items():
            may_be_zero = name in ("latency_sec", "loading_sec", "overlap_fraction", "sample_bytes")
            if not (value >= 0 if may_be_zero else value > 0):
                raise UserError(f"{name} is {value}", "give the measured value")
        if self.overlap_fraction > 1:
            raise UserError(f"overlap_fraction is {self.overlap_fraction}", "it must be 0 to 1")


@dataclass(frozen=True)
class Reach:
    """The predicted throughput of a number of GPUs.

    Attributes:
        exposed_sec: the part of the exchange per step that computing does not hide.
        efficiency: samples per second, relative to the same number of independent GPUs that never wait.
        limit: what limits a step: compute, communication (computing plus the exposed exchange), or loading.
    """

    num_gpus: int
    step_sec: float
    exposed_sec: float
    samples_per_sec: float
    efficiency: float
    limit: str


def reach(costs: Costs, num_gpus: int) -> Reach:
    """The throughput of `num_gpus`: a step takes the longer of computing plus exposed exchange, and loading.

    Raises:
        UserError: num_gpus is below 1.
    """
    if num_gpus < 1:
        raise UserError(f"num_gpus is {num_gpus}", "it must be at least 1")
    exposed = max(0.0, exchange_sec(costs, num_gpus) - costs.overlap_fraction * costs.compute_sec)
    working, loading = costs.compute_sec + exposed, loading_sec(costs, num_gpus)
    step = max(working, loading)
    limit = "loading" if loading > working else "communication" if exposed else "compute"
    samples_per_sec = num_gpus * costs.samples_per_gpu / step
    return Reach(num_gpus, step, exposed, samples_per_sec, costs.compute_sec / step, limit)


def exchange_sec(costs: Costs, num_gpus: int) -> float:
    """Time of one ring all-reduce: 2 (N - 1) messages, each 1/N of the gradients, over the slowest link in the ring."""
    link = costs.node_bytes_per_sec
    if num_gpus > costs.gpus_per_node:
        link = min(link, costs.network_bytes_per_sec)
    message = costs.gradient_bytes / num_gpus / link + costs.latency_sec
    return 2 * (num_gpus - 1) * message


def loading_sec(costs: Costs, num_gpus: int) -> float:
    """Time until every GPU has its next batch: its own workers' time, or the shared storage's if that is longer."""
    read = num_gpus * costs.samples_per_gpu * costs.sample_bytes / costs.storage_bytes_per_sec
    return max(costs.loading_sec, read)
