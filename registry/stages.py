"""Modules in stages that end where something has to be normalised, so that several of them can be normalised together.

On several ranks a batch normalisation waits for the statistics of the other ranks. The ops that leave one node do not
depend on each other, so they are computed stage by stage, and wait once for the statistics of all of them.

Stages are a generator: it yields what has to be normalised, is sent the result, and returns the module's result.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor, nn

from registry import collective
from registry.norm import BatchNorm, ToNormalise, batch_norms

Stages = Generator[ToNormalise, Tensor, Tensor]


def waits_for_ranks(module: nn.Module) -> bool:
    """Whether the module's batch normalisations need the statistics of other ranks."""
    return module.training and collective.shares_statistics()


def stages_of(module: Any, x: Tensor) -> Stages:
    """The stages of a module for x. A module that does not tell them by a method `stages` has only one."""
    if isinstance(module, BatchNorm):
        return (yield ToNormalise(module, x))
    if hasattr(module, "stages"):
        return (yield from module.stages(x))
    if type(module).forward is nn.Sequential.forward:
        for part in module:
            x = yield from stages_of(part, x)
        return x
    return module(x)


def run_alone(stages: Stages) -> Tensor:
    """The result of stages that nothing else is computed with."""
    result: Tensor | None = None
    try:
        while True:
            norm, x, weight = stages.send(result) if result is not None else next(stages)
            result = norm(x) if weight is None else batch_norms([ToNormalise(norm, x, weight)])[0]
    except StopIteration as end:
        return end.value


def run_together(several: Sequence[Stages]) -> list[Tensor]:
    """The results of several stages, whose normalisations are done together."""
    results: dict[int, Tensor] = {}
    answers: dict[int, Tensor | None] = dict.fromkeys(range(len(several)))
    while answers:
        asked: dict[int, ToNormalise] = {}
        for number, answer in answers.items():
            try:
                asked[number] = next(several[number]) if answer is None else several[number].send(answer)
            except StopIteration as end:
                results[number] = end.value
        answers = dict(zip(asked, batch_norms(list(asked.values())), strict=True)) if asked else {}
    return [results[number] for number in range(len(several))]
