"""The classifiers of torchvision, without their pretrained weights, to train beside a derived network.

The last layer, which has to be linear, makes room for the head. A network that is made for three channels gets a first
convolution for as many as the images have. Whether it takes images of their size is tried out when it is built.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from registry.core import NETWORKS, TORCHVISION_NAMES, Options, PluginError
from registry.networks import Encoded, Encoder
from registry.norm import BatchNorm

SMALLEST_MAP = 3  # sides of the last maps of `mobilenet_v2`, at least


class TorchvisionEncoder(Encoder):
    """A network of torchvision whose last layer, a linear one, is left out."""

    def __init__(self, net: nn.Module, last: str):
        """`last` is the name of the last layer."""
        super().__init__()
        linear = net.get_submodule(last)
        assert isinstance(linear, nn.Linear)
        self.num_features = linear.in_features
        _replace(net, last, nn.Identity())
        self.net = net

    def forward(self, images: Tensor) -> Encoded:
        """[N, C, H, W] -> what the last layer would get [N, num_features]."""
        return Encoded(self.net(images), None)


def build(name: str, in_channels: int, image_size: int) -> Encoder:
    """The network that torchvision calls `name`.

    Raises:
        PluginError: torchvision has none of that name, it does not end in a linear layer, or it does not take such
            images.
    """
    device = torch.get_default_device()
    with torch.device("cpu"):  # some of them compute while they are built, which shapes without data cannot
        encoder = _build(name, in_channels, image_size)
    trial = copy.deepcopy(encoder).to("meta")
    try:
        features = trial(torch.empty(2, in_channels, image_size, image_size, device="meta")).features
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise _does_not_fit(name, image_size, error) from None
    assert features.shape == (2, encoder.num_features)
    return encoder.to(device)


def _build(name: str, in_channels: int, image_size: int) -> TorchvisionEncoder:
    try:
        net = _made_by_torchvision(name, image_size)
    except (ValueError, RuntimeError, AssertionError) as error:
        if isinstance(error, PluginError):
            raise
        raise _does_not_fit(name, image_size, error) from None
    last = [path for path, module in net.named_modules() if not list(module.children())][-1]
    if not isinstance(net.get_submodule(last), nn.Linear):
        raise PluginError(
            f"network '{name}': does not end in a linear layer, so no head can take its place: take another network"
        )
    _take_channels(net, in_channels)
    _use_our_norms(net)
    if name == "mobilenet_v2":
        _fit_strides(net, image_size)
    return TorchvisionEncoder(net, last)


def _does_not_fit(name: str, image_size: int, error: Exception) -> PluginError:
    told = " ".join(str(error).split())
    return PluginError(
        f"network '{name}': does not take images of {image_size} pixels ({told}): take another network, or a data set "
        "of another --image-size"
    )


def _made_by_torchvision(name: str, image_size: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise PluginError(f"network '{name}': the installed torchvision has none of that name")
    builder = models.get_model_builder(name)
    possible: dict[str, Any] = {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        possible["image_size"] = image_size
    if name == "maxvit_t":
        possible["input_size"] = (image_size, image_size)
    taken = _GIVEN_TO.get(name.partition("_")[0], ())
    return builder(weights=None, **{key: value for key, value in possible.items() if key in taken})


_GIVEN_TO = {  # what a family of networks is told when it is built
    "googlenet": ("aux_logits", "init_weights"),
    "inception": ("aux_logits", "init_weights"),
    "vit": ("image_size",),
    "maxvit": ("input_size",),
}


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def _take_channels(net: nn.Module, in_channels: int) -> None:
    """Give the network a first convolution for images of that many channels."""
    path, first = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == in_channels:
        return
    facts = {key: getattr(first, key) for key in inspect.signature(nn.Conv2d).parameters if key not in _NO_FACTS}
    _replace(net, path, nn.Conv2d(**facts | {"in_channels": in_channels, "bias": first.bias is not None}))


_NO_FACTS = ("bias", "device", "dtype")


def _use_our_norms(net: nn.Module) -> None:
    """Replace torch's batch normalisation by the one whose running statistics can be held still."""
    for path, module in list(net.named_modules()):
        if type(module) is nn.BatchNorm2d:
            ours = BatchNorm(module.num_features, module.eps, module.momentum, module.affine)
            ours.load_state_dict(module.state_dict())
            _replace(net, path, ours)


def _fit_strides(net: nn.Module, image_size: int) -> None:
    """Take away the first strides until the last maps are not smaller than SMALLEST_MAP pixels a side."""
    strided = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.stride != (1, 1)]
    while strided and image_size / 2 ** len(strided) < SMALLEST_MAP:
        strided.pop(0).stride = (1, 1)


def _register(name: str) -> None:
    def factory(options: Options, in_channels: int, image_size: int) -> Encoder:
        return build(name, in_channels, image_size)

    fitted = ", its first strides fitted to small images" if name == "mobilenet_v2" else ""
    factory.__doc__ = f"torchvision's {name}, without pretrained weights{fitted}."
    NETWORKS.register(name)(factory)


for _name in TORCHVISION_NAMES:
    _register(_name)
