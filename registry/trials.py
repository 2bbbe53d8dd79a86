"""Plugins of other packages are tried where they are built, so that a mistake is one line that names them.

What they give goes to compiled kernels by its address, and into sums whose shapes torch would broadcast in silence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from registry.core import Options, Plugin, PluginError
from registry.samplers import Positions, Sampler

SIDE = 8  # of the map that an op is tried on


def build_op(plugin: Plugin[Any], channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """Build an op; try one of another package on a map [2, C, SIDE, SIDE].

    Raises:
        PluginError: it fails, changes its input, or gives no map [2, C, SIDE / stride, SIDE / stride].
    """
    op = plugin.build(channels, stride, affine, options)
    if not plugin.is_foreign:
        return op
    if not isinstance(op, nn.Module):
        raise PluginError(f"op {plugin.credited}: its factory gives no torch.nn.Module: {op!r}")
    given = _random(op, 2, channels, SIDE, SIDE)
    before = given.clone()
    result = _run(plugin, op, given)
    expected = (2, channels, -(-SIDE // stride), -(-SIDE // stride))
    _check(plugin, f"at stride {stride} for a map {list(given.shape)}", result, expected, given.dtype)
    if not given.is_meta and not torch.equal(given, before):
        raise PluginError(f"op {plugin.credited} changes its input, which other ops read: copy it")
    return op


def try_scores(plugin: Plugin[Any], head: nn.Module, num_features: int, num_classes: int) -> None:
    """Try a head of another package that gives scores of classes.

    Raises:
        PluginError: it fails, or gives no scores [2, num_classes] for features [2, num_features].
    """
    if not plugin.is_foreign:
        return
    given = _random(head, 2, num_features)
    result = _run(plugin, head, given)
    _check(plugin, f"for features {list(given.shape)}", result, (2, num_classes), given.dtype)


def try_features(plugin: Plugin[Any], network: Any, in_channels: int, image_size: int) -> None:
    """Try a network of another package.

    Raises:
        PluginError: it fails, or gives no features [2, num_features] for images [2, in_channels, size, size].
    """
    if not plugin.is_foreign:
        return
    given = _random(network, 2, in_channels, image_size, image_size)
    result = _run(plugin, network, given)
    features = getattr(result, "features", result)
    _check(plugin, f"as features of images {list(given.shape)}", features, (2, network.num_features), given.dtype)


def order_of(sampler: Sampler, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
    """The order of an epoch, as long as the sampler says that it is.

    Raises:
        PluginError: it has another length, or is not of positions in `labels`.
    """
    order = np.asarray(sampler.order(labels, seed, epoch, progress))
    named, length = f"sampler '{type(sampler).__name__}'", sampler.length(progress)
    if order.shape != (length,):
        raise PluginError(f"{named}: its order has the shape {list(order.shape)}, and its length is {length}")
    if order.dtype.kind not in "iu" or (len(order) and not 0 <= order.min() <= order.max() < len(labels)):
        raise PluginError(f"{named}: its order should hold positions from 0 to {len(labels) - 1}, as whole numbers")
    return order


def _random(module: nn.Module, *shape: int) -> Tensor:
    """Normal numbers where the module's weights are, from a generator of their own."""
    weight = next(module.parameters(), None)
    device = torch.get_default_device() if weight is None else weight.device
    if device.type == "meta":
        return torch.empty(shape, device=device)
    numbers = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=numbers, device="cpu").to(device)


def _run(plugin: Plugin[Any], module: nn.Module, given: Tensor) -> Any:
    """The result of an evaluation, which moves neither running statistics nor torch's random numbers."""
    was_training = module.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return module.eval()(given)
    except Exception as error:
        raise plugin.failed(f"fails on {list(given.shape)}", error) from error
    finally:
        module.train(was_training)


def _check(plugin: Plugin[Any], where: str, result: Any, expected: tuple[int, ...], dtype: torch.dtype) -> None:
    named = f"{plugin.credited} gives"
    if not isinstance(result, Tensor):
        raise PluginError(f"{named} no tensor {where}: {type(result).__name__}")
    if tuple(result.shape) != expected:
        raise PluginError(f"{named} {list(result.shape)} {where}: it should give {list(expected)}")
    if result.dtype != dtype:
        raise PluginError(f"{named} {result.dtype} {where} of {dtype}: it should keep the type")
