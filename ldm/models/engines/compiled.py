"""A UNet through `torch.compile`: faster on CUDA, after a minute or more for each size of its inputs.

The module stays what it is: its weights, their names and the modules inside are those of before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.models.unet import UNetDenoiser
from ldm.types import Conditioning

BACKEND = "inductor"
"""What torch compiles with. It needs Triton on CUDA, and a C++ compiler on the CPU."""

MAX_SIZES = 256
"""Sizes of inputs that one network may be compiled for; torch allows 8, and aspect-ratio buckets need more."""


def compile_unet(unet: Any, *, cuda_graphs: bool = False) -> None:
    """Have every call of a diffusers UNet run compiled code, as one graph, made when a size first comes.

    Each size has code of its own (`dynamic=False`), so what a size is computed with does not hang on the sizes that
    came before it: a run that resumes goes on to the last bit. What cannot be one graph is an error, never left out.

    Args:
        cuda_graphs: send all of a call's kernels to the GPU at once; its answer is overwritten by the next call's.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SIZES)
    mode = {"mode": "reduce-overhead"} if cuda_graphs else {}
    unet.compile(backend=BACKEND, fullgraph=True, dynamic=False, **mode)


def is_compiled(module: nn.Module) -> bool:
    """Whether `compile_unet` was called on the module or on one inside it."""
    return any(getattr(part, "_compiled_call_impl", None) is not None for part in module.modules())


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Inside the block a compiled `module` runs as before: for few calls, compiling takes longer than it saves."""
    if not is_compiled(module):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@torch.no_grad()
def compile_denoiser(denoiser: UNetDenoiser, num_rows: int, height: int, width: int, num_tokens: int) -> None:
    """Compile a denoiser for generation, and call it once, so that what is wrong comes to light here.

    Its queries, keys and values are computed by one matrix (diffusers calls it fused): fewer, larger kernels. Do not
    save it afterwards.

    Args:
        num_rows: B of the call, with the rows of guidance.
        height: of the latents; so is `width`.
        num_tokens: L of the prompt embeddings.

    Raises:
        UserError: torch cannot compile it here.
    """
    device = next(denoiser.parameters()).device
    denoiser.unet.fuse_qkv_projections()
    if device.type == "cuda":
        denoiser.unet.to(memory_format=torch.channels_last)
    compile_unet(denoiser.unet, cuda_graphs=device.type == "cuda")
    latents = torch.zeros(num_rows, denoiser.latent_channels, height, width, device=device)
    timesteps = torch.full((num_rows,), 500, device=device)
    embeds = Conditioning(torch.zeros(num_rows, num_tokens, denoiser.text_width, device=device))
    try:
        denoiser(latents, timesteps, embeds)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler or Triton that is missing, or a layer that it does not know
        cause = getattr(error, "inner_exception", error)  # where torch wraps what its compiler said
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"this model cannot be compiled here ({reason})", "leave compile out") from error
