"""Compile a UNet with `torch.compile`: faster on CUDA, but compiling takes a minute or more for each input size.

The module itself does not change: it keeps its weights, parameter names and submodules.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.models.unet import UNetDenoiser
from ldm.types import Conditioning

BACKEND = "inductor"
"""The torch.compile backend. It needs Triton on CUDA and a C++ compiler on the CPU."""

MAX_SIZES = 256
"""Maximum number of input sizes per network; torch's default is 8, and aspect-ratio buckets need more."""


def compile_unet(unet: Any, *, cuda_graphs: bool = False) -> None:
    """Compile a diffusers UNet in place as a single graph, once for each input size when it first occurs.

    Each size is compiled separately (`dynamic=False`), so its code does not depend on which sizes came before it and
    resumed runs are bit-identical. A UNet that does not compile to a single graph raises an error instead of falling
    back to uncompiled code.

    Args:
        cuda_graphs: launch all kernels of a call at once; the next call overwrites the output.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SIZES)
    mode = {"mode": "reduce-overhead"} if cuda_graphs else {}
    unet.compile(backend=BACKEND, fullgraph=True, dynamic=False, **mode)


def is_compiled(module: nn.Module) -> bool:
    """Whether `compile_unet` was called on the module or on one of its submodules."""
    return any(getattr(part, "_compiled_call_impl", None) is not None for part in module.modules())


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Run a compiled `module` eagerly inside the block: for a few calls, compiling takes longer than it saves."""
    if not is_compiled(module):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@torch.no_grad()
def compile_denoiser(denoiser: UNetDenoiser, num_rows: int, height: int, width: int, num_tokens: int) -> None:
    """Compile a denoiser for generation, and call it once so that errors occur here.

    The query, key and value projections are fused into one matrix, for fewer and larger kernels. Do not save the
    denoiser afterwards.

    Args:
        num_rows: B of a call, including the rows for guidance.
        height: height of the latents; `width` likewise.
        num_tokens: L of the prompt embeddings.

    Raises:
        UserError: torch cannot compile it on this machine.
    """
    device = next(denoiser.parameters()).device
    denoiser.unet.fuse_qkv_projections()
    if device.type == "cuda":
        denoiser.unet.to(memory_format=torch.channels_last)
    compile_unet(denoiser.unet, cuda_graphs=device.type == "cuda")
    latents = torch.zeros(num_rows, denoiser.latent_channels, height, width, device=device)
    timesteps = torch.full((num_rows,), 500, device=device)
    embeds = Conditioning(torch.zeros(num_rows, num_tokens, denoiser.text_width, device=device))
    if denoiser.embeds_guidance:
        embeds = replace(embeds, guidance_scale=torch.ones(num_rows, device=device))
    try:
        denoiser(latents, timesteps, embeds)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a missing compiler or Triton, or an unsupported layer
        cause = getattr(error, "inner_exception", error)  # torch wraps the backend's error in this attribute
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"this model cannot be compiled here ({reason})", "leave compile out") from error
