"""Counts of parameters and multiply-adds, from shapes alone."""

from __future__ import annotations

import torch
from torch import nn


def count_params(module: nn.Module) -> int:
    """The number of weights; buffers are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, in_channels: int, image_size: int) -> int:
    """Multiply-adds of convolutions and linear layers for one image; `module` must be on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode  # its import takes a tenth of a second, and few count

    was_training = module.training
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    module.train(was_training)
    return counter.get_total_flops() // 2
