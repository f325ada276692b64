"""A network cut over the processes (FSDP2): whole tensors become shards, and shards whole tensors.

torch's `fully_shard` is used itself, on CUDA and on the CPU alike: Accelerate's plugin gives plain DDP on the CPU and
says nothing, so what it does could be tested on several GPUs alone. Where nothing is sharded, every function here
passes on what it is given.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, device: torch.device) -> None:
    """Cut every parameter of `module` along its first axis over all processes, each of which must call this.

    Process 0's weights are taken. A block of the network (what stands in a list of modules) is gathered when its turn
    comes and given back after it. The parameters are other objects then: those in `module.parameter_groups()` are
    replaced, and optimizers and averages are to be made afterwards.
    """
    before = dict(module.named_parameters())
    for parameter in before.values():
        parameter.data = parameter.data.contiguous()  # FSDP2 knows no channels_last
    for tensor in [*module.parameters(), *module.buffers()]:
        torch.distributed.broadcast(tensor.data, src=0)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in [*blocks(module), module]:
        # said outright: what is left whole after a forward pass alone (validation) would be out of date at the next
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    after = dict(module.named_parameters())
    replaced = {parameter: after[name] for name, parameter in before.items()}
    for group in getattr(module, "parameter_groups", list)():
        group["params"] = [replaced[parameter] for parameter in group["params"]]
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What stands in the outermost lists of modules, and has parameters."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(module, FSDPModule)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor. Every process must call it; itself where it is not cut."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; itself where it is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors, one after another, those that were cut on the CPU. Every process must call it.

    Args:
        keep: whether this process wants them; else they are empty.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = full(tensor)
        if isinstance(tensor, DTensor):
            whole = whole.cpu() if keep else torch.empty(0)
        found[name] = whole
    return found


def cut_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """A copy of `whole`, which every process has, cut as `tensor` is, on its device and in its memory layout."""
    if not isinstance(tensor, DTensor):
        return torch.empty_like(tensor, dtype=whole.dtype).copy_(whole)
    return distribute_tensor(
        whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
    )


@torch.no_grad()
def assign(tensor: Tensor, whole: Tensor) -> None:
    """Give a tensor, cut or not, the values of a whole one, which every process has."""
    tensor.copy_(cut_like(tensor, whole) if isinstance(tensor, DTensor) else whole)


def all_reduce_max(number: int) -> int:
    """The largest of all processes' numbers. Every process must call it.

    They talk from host to host, so that none waits for what its device still has to do.
    """
    found = torch.tensor(number)
    world = torch.distributed.group.WORLD
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=_hosts(world))
    return int(found)


@lru_cache(maxsize=1)
def _hosts(world: Any) -> Any:
    """A group of all processes whose tensors lie on the CPU: `world` itself where it is one."""
    if torch.distributed.get_backend(world) == "gloo":
        return world
    return torch.distributed.new_group(backend="gloo")


def unshard(module: nn.Module) -> None:
    """Gather every parameter of a sharded network, for as long as until `reshard`. Every process must call it.

    Its parts then run without the others, but before the next backward pass every process must have run them alike:
    FSDP notes what ran, and gathers ahead by it. What is written into the parameters is forgotten by `reshard`.
    """
    for part in _sharded_parts(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def reshard(module: nn.Module) -> None:
    """Give back what `unshard` gathered."""
    for part in _sharded_parts(module):
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]
