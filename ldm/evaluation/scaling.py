"""What many GPUs would reach, computed from what one step, one exchange of gradients and one batch's reading cost.

A model of data parallel training with a ring all-reduce (Patarasuk & Yuan 2009): every GPU computes on its own samples,
the gradients are summed over all, partly while the backward pass still runs, and the next batch is read meanwhile.
"""

from dataclasses import dataclass

from ldm.errors import UserError


@dataclass(frozen=True)
class Costs:
    """What was measured on one GPU and on its links.

    Attributes:
        compute_sec: of one step of one GPU: forward, backward and optimizer.
        gradient_bytes: that each GPU exchanges a step.
        node_bytes_per_sec: a GPU's link to the others in its machine, one way.
        network_bytes_per_sec: a GPU's share of its machine's link to other machines, one way.
        latency_sec: of one message between neighbours in the ring.
        gpus_per_node: GPUs in a machine.
        overlap_fraction: share of compute_sec under which the exchange can hide, 0 to 1.
        loading_sec: in which a GPU's own workers make one batch of it.
        samples_per_gpu: in a step.
        sample_bytes: read from the storage for a sample.
        storage_bytes_per_sec: of the storage that all machines share.
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
        """Raises UserError for a cost that cannot be."""
        for name, value in vars(self).items():
            may_be_zero = name in ("latency_sec", "loading_sec", "overlap_fraction", "sample_bytes")
            if not (value >= 0 if may_be_zero else value > 0):
                raise UserError(f"{name} is {value}", "write what was measured")
        if self.overlap_fraction > 1:
            raise UserError(f"overlap_fraction is {self.overlap_fraction}", "it must be 0 to 1")


@dataclass(frozen=True)
class Reach:
    """What a number of GPUs would reach, as `Costs` have it.

    Attributes:
        exposed_sec: of a step, the part of the exchange that no computing hides.
        efficiency: samples a second over those of as many single GPUs that wait for nothing.
        limit: what takes the longest of a step: compute, communication (computing and what it does not hide), or
            loading.
    """

    num_gpus: int
    step_sec: float
    exposed_sec: float
    samples_per_sec: float
    efficiency: float
    limit: str


def reach(costs: Costs, num_gpus: int) -> Reach:
    """What `num_gpus` would reach: a step takes as long as the longer of computing with its exchange, and loading.

    Raises:
        UserError: there is not at least one GPU.
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
    """Of one ring all-reduce: 2 (N - 1) messages of a share 1/N of the gradients, over the slowest link in the ring."""
    link = costs.node_bytes_per_sec
    if num_gpus > costs.gpus_per_node:
        link = min(link, costs.network_bytes_per_sec)
    message = costs.gradient_bytes / num_gpus / link + costs.latency_sec
    return 2 * (num_gpus - 1) * message


def loading_sec(costs: Costs, num_gpus: int) -> float:
    """Until every GPU has its next batch: its own workers' time, or the shared storage's if that is longer."""
    read = num_gpus * costs.samples_per_gpu * costs.sample_bytes / costs.storage_bytes_per_sec
    return max(costs.loading_sec, read)
