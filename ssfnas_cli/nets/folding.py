"""Batch normalisation folded into convolutions, for networks that are only evaluated.

In evaluation a BN multiplies each channel by a number and adds another one. If nothing else reads a convolution's
result, its weights and bias can do both, and a pass over every map is saved.

Which convolution a BN reads is observed and not guessed from the modules, whose code may do anything: the network
computes two images, and every operation on its tensors is followed. A BN is folded if it reads a convolution's result,
or a concatenation of several, that is read by nothing else. What is not recognised stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from registry.norm import BatchNorm
from ssfnas_cli.nets.heads import Classifier

aten = torch.ops.aten
COPIES = (aten.clone, aten._to_copy)
TOLERANCE = 1e-3  # of the largest logit


@torch.no_grad()
def fold(model: Classifier, images: Tensor) -> Classifier:
    """A copy of a network that computes the same in evaluation, without gradients, and faster.

    Args:
        model: the network; it is put into evaluation mode. Its compiled kernels, which need the BNs, are not copied.
        images: some like those that it gets, [N, C, H, W], to see how it computes.

    Returns:
        A network for evaluation without gradients, which has no auxiliary head.
    """
    plain = Classifier(model.encoder, model.head, None, model.correction).eval()
    folded = copy.deepcopy(plain)
    folded.encoder.compile_with(None)
    same = fold_in_place(folded, images)
    return folded if same else plain  # a network of a plugin may do what cannot be observed


@torch.no_grad()
def fold_in_place(module: nn.Module, x: Tensor) -> bool:
    """Fold the BNs of a module in evaluation mode that gives one tensor.

    Args:
        x: an input like those that it gets, [N, C, H, W], to see how it computes.

    Returns:
        Whether it still gives the same.
    """
    watch = _Watch(module)
    with watch:
        wanted = module(x)
    for norm, convolutions in watch.foldable():
        _fold(norm, convolutions)
    return bool((module(x) - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _fold(norm: BatchNorm, convolutions: Sequence[nn.Conv2d]) -> None:
    """Let the convolutions, whose results the BN reads one beside the other, do what the BN does."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    begin = 0
    for convolution in convolutions:
        mine = slice(begin, begin + convolution.out_channels)
        weight, bias = convolution.weight, convolution.bias
        moved = shift[mine] if bias is None else shift[mine] + bias * scale[mine]
        weight.copy_(weight * scale[mine].view(-1, 1, 1, 1))
        convolution.bias = nn.Parameter(moved.to(weight.dtype), requires_grad=False)
        begin += convolution.out_channels
    norm.folded = True


class _Watch(TorchDispatchMode):
    """Follows the results of convolutions to the BNs that read them.

    A tensor is known by its id, so that all of them are kept until the end. Convolutions and BNs are known by the
    tensors that they bring along, since modules may also be computed by functions.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        modules = list(model.modules())
        self.convolutions = {id(one.weight): one for one in modules if isinstance(one, nn.Conv2d)}
        self.norms = {id(one.running_mean): one for one in modules if isinstance(one, BatchNorm)}
        self.made_by: dict[int, list[nn.Conv2d]] = {}  # the convolutions whose results a tensor holds, in their order
        self.steps: dict[int, list[int]] = {}  # the tensors on the way from their results to this one
        self.inputs: dict[int, list[int]] = {}  # by BN, the tensors that it reads
        self.num_reads: Counter[int] = Counter()
        self.kept: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds, only to keep it out of here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        self.kept += [*read, *(one for one in tree_leaves(out) if isinstance(one, Tensor))]
        self.num_reads.update(map(id, read))
        packet = func.overloadpacket
        norm = next((id(one) for one in read if id(one) in self.norms), None)
        if packet is aten.convolution and id(read[1]) in self.convolutions:
            self._note(out, [self.convolutions[id(read[1])]], [])
        elif norm is not None:
            self.inputs.setdefault(norm, []).append(id(read[0]))
        elif self._only_moves(packet, args) and all(id(one) in self.made_by for one in read):
            convolutions = [conv for one in read for conv in self.made_by[id(one)]]
            self._note(out, convolutions, [step for one in read for step in self.steps[id(one)]])
        return out

    @staticmethod
    def _only_moves(packet: Any, args: Any) -> bool:
        """Whether an operation copies a map, or puts the channels of several beside each other."""
        return packet in COPIES or (packet is aten.cat and args[1:] == (1,))

    def _note(self, out: Tensor, convolutions: list[nn.Conv2d], steps: list[int]) -> None:
        self.made_by[id(out)], self.steps[id(out)] = convolutions, [*steps, id(out)]

    def foldable(self) -> list[tuple[BatchNorm, list[nn.Conv2d]]]:
        """The BNs that can be folded, each with the convolutions that take their place."""
        found = []
        for name, inputs in self.inputs.items():
            norm, source = self.norms[name], inputs[0]
            convolutions = self.made_by.get(source, [])
            once = [source, *self.steps.get(source, ()), *(id(one.weight) for one in convolutions)]
            single = len(inputs) == 1 and all(self.num_reads[one] == 1 for one in once)
            if single and sum(one.out_channels for one in convolutions) == norm.num_features:
                found.append((norm, convolutions))
        return found
