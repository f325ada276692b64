"""Sharding a network over the processes (FSDP2): from whole tensors to shards and back.

This uses torch's `fully_shard` directly, on CUDA and on the CPU alike. Accelerate's plugin silently falls back to plain
DDP on the CPU, so sharding could only be tested on several GPUs. Without sharding, every function here returns its
argument unchanged.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, device: torch.device, num_processes: int) -> None:
    """Split every parameter of `module` along its first axis over all processes. Every process must call it.

    The weights are those of process 0. Each block of the network (a member of a list of modules) is gathered when it
    runs and resharded afterwards. Parameters become new objects: those in `module.parameter_groups()` are replaced, and
    optimizers and averages must be made afterwards.
    """
    before = dict(module.named_parameters())
    for parameter in before.values():
        parameter.data = parameter.data.contiguous()  # FSDP2 does not support channels_last
    for tensor in [*module.parameters(), *module.buffers()]:
        torch.distributed.broadcast(tensor.data, src=0)
    mesh = init_device_mesh(device.type, (num_processes,))
    for part in [*blocks(module), module]:
        # explicit, since weights left gathered after a forward pass alone (validation) would be stale in the next one
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    after = dict(module.named_parameters())
    replaced = {parameter: after[name] for name, parameter in before.items()}
    for group in getattr(module, "parameter_groups", list)():
        group["params"] = [replaced[parameter] for parameter in group["params"]]
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules that have parameters."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(module, FSDPModule)


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered if it is sharded. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard, sharing memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors, gathered one by one; those that were sharded are on the CPU. Every process must call it.

    Args:
        keep: whether this process needs them; otherwise the gathered ones are empty.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = full(tensor)
        if isinstance(tensor, DTensor):
            whole = whole.cpu() if keep else torch.empty(0)
        found[name] = whole
    return found


def shard_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """A copy of `whole`, which every process has, with the sharding, device and memory layout of `tensor`."""
    if not isinstance(tensor, DTensor):
        return torch.empty_like(tensor, dtype=whole.dtype).copy_(whole)
    return distribute_tensor(
        whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
    )


@torch.no_grad()
def assign(tensor: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, which every process has, into a tensor that may be sharded."""
    tensor.copy_(shard_like(tensor, whole) if isinstance(tensor, DTensor) else whole)


def unshard(module: nn.Module) -> None:
    """Gather every parameter of a sharded network until `reshard`. Every process must call it.

    Until then a process may run parts of the network alone. Before the next backward pass all processes must have run
    the same parts, because FSDP records what ran and prefetches accordingly. Changes to the parameters are lost at
    `reshard`.
    """
    for part in _sharded_parts(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def reshard(module: nn.Module) -> None:
    """Undo `unshard`."""
    for part in _sharded_parts(module):
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]
