"""Tensors in the layouts of memory that the operators know."""

import torch

LAYOUTS = ("planes", "tap-major", "group-major")     # NCHW, and NHWC with either order of a pixel's kernels


def memory_orders(layout):
    """The order in memory of the dimensions of an image [N,C,H,W] and of a kernel [N,G,9,H,W]."""
    kernel = {"planes": (0, 1, 2, 3, 4), "tap-major": (0, 3, 4, 2, 1), "group-major": (0, 3, 4, 1, 2)}[layout]
    return ((0, 1, 2, 3) if layout == "planes" else (0, 2, 3, 1)), kernel


def laid_out(tensor, order):
    """The same tensor with its dimensions in this order in memory."""
    return tensor.permute(order).contiguous().permute([order.index(dimension) for dimension in range(tensor.dim())])


def between_nans(tensor, order, margin=4096):
    """As `laid_out`, with NaN in memory before and behind, so that a read outside shows."""
    memory = torch.full((tensor.numel() + 2 * margin,), float("nan"), dtype=tensor.dtype)
    turned = tensor.permute(order)
    inner = memory[margin:margin + tensor.numel()].view(turned.shape).copy_(turned)
    return inner.permute([order.index(dimension) for dimension in range(tensor.dim())])
