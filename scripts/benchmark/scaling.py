"""Two processes against one: `ldm train` with the same global batch, each on its share of the cores or its own GPU."""

import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .costs import measure_costs
from .models import MEDIUM, NARROW_VAE, SMALLEST, make_dataset, make_model
from .rows import result_of, row_of, taken_of
from .samples import Scale, Setting, machine
from .train import Case, ours, write_config
from .workers import Side, take_turns

NARROW = replace(MEDIUM, vae_channels=NARROW_VAE, text_layers=1)
"""Its autoencoder and text encoder are used only before the first step."""
CASES: Mapping[Scale, Case] = {
    "full": Case("36M UNet", NARROW, 256, 4, 8),
    "quick": Case("36M UNet", NARROW, 256, 2, 4),
    "smallest": Case("smallest UNet", replace(SMALLEST, num_groups=16), 64, 2, 4),
}
ONE, TWO = "1 process", "2 processes"


def scaling(setting: Setting) -> dict[str, Any]:
    """Time steps of one process and of two alternately."""
    case = CASES[setting.scale]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = make_model(folder, case.shape, case.size_px)
        data = make_dataset(folder / "data", case.num_images, case.size_px)
        config = write_config(folder, model, data, case, setting.device)
        sides = {
            name: Side(ours(folder, config, name.replace(" ", "-"), setting.device), environments(number))
            for number, name in enumerate((ONE, TWO), 1)
        }
        taken = take_turns(sides, setting.rounds, setting.device)
        costs = measure_costs(folder, taken[ONE], case, setting, environments(2))
    title = f"training, {case.name}, {case.size_px} px, global batch {case.batch_size}"
    return result_of(
        "scaling",
        [row_of(title, taken, TWO, ONE)],
        device=setting.device,
        costs=costs,
        sides=taken_of(taken),
        machine=machine(),
    )


def environments(num_processes: int) -> tuple[Mapping[str, str], ...]:
    """The environment for torch.distributed of each process, with the cores split evenly; a single one needs none."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_processes))}
    if num_processes == 1:
        return (threads,)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **threads,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    return tuple({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes))
