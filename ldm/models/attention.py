"""The kernels for attention: torch's own, or xformers' where a real call succeeds."""

from typing import Any, Literal

import torch

from ldm.errors import UserError

AttentionBackend = Literal["sdpa", "xformers"]
"""torch's scaled_dot_product_attention, which diffusers uses by default, or xformers' memory-efficient attention."""


def xformers_fault(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why xformers cannot be used; None if a forward and a backward pass on this device give the right numbers.

    That xformers is installed is not enough: built for another torch or GPU, it fails only when called.
    """
    query = torch.linspace(-1, 1, 2 * 16 * 2 * 32, device=device).reshape(2, 16, 2, 32).to(dtype)
    query.requires_grad_()
    try:
        from xformers.ops import memory_efficient_attention

        output = memory_efficient_attention(query, query, query)
        output.float().sum().backward()
    except Exception as error:  # the kind of error depends on how xformers was built
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    heads_first = query.detach().transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(heads_first, heads_first, heads_first)
    if not torch.allclose(output.detach(), expected.transpose(1, 2), atol=1e-2):
        return "its output is wrong"
    return None if query.grad is not None and query.grad.isfinite().all() else "its gradient is wrong"


def choose_attention(unet: Any, backend: AttentionBackend, device: torch.device) -> None:
    """Set the backend of a UNet's attention.

    Raises:
        UserError: xformers was requested and does not work here.
    """
    if backend == "sdpa":
        return
    fault = xformers_fault(device)
    if fault:
        raise UserError(f"attention = 'xformers' does not work here ({fault})", "set attention=sdpa")
    unet.enable_xformers_memory_efficient_attention()
