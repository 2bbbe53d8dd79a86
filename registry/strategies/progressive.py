"""Progressive search (Chen et al., Progressive Differentiable Architecture Search, ICCV 2019; P-DARTS).

A search by gradient in stages. Each stage has a deeper supernet than the one before, and fewer candidates an edge:
those with the largest mixing weights at the end of the stage before. All weights and alphas begin anew (P-DARTS:
train_search.py). What is not a candidate any more has the mixing weight 0, so that it costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch import Tensor

from registry.core import OPS, STRATEGIES, Options, PluginError
from registry.gpu import placed
from registry.space import CELL_TYPES
from registry.strategies.base import SearchContext, Stage
from registry.strategies.edge_weights import initial_edges
from registry.strategies.gradient import Gradient

KEPT = {kind: f"kept_{kind}" for kind in CELL_TYPES}  # the names of the masks in the record


def _listed(value: Any) -> Any:
    """One number a stage: `8,5,3`, a list, or a single number."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


class ProgressiveOptions(Options):
    """Options of `progressive`: lists of one number a stage."""

    ops: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed), Field(min_length=1, max_length=100)
    ] = Field((8, 5, 3), description="candidates on every edge in each stage; all of `ops` in the first")
    add_layers: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], BeforeValidator(_listed)] = Field(
        (0, 6, 12), description="cells of each stage's supernet beside `layers`"
    )
    skip_dropout: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], BeforeValidator(_listed)] = Field(
        (0.0, 0.4, 0.7),
        description="probability at the start of each stage that a step leaves out an edge's skip connection; it falls "
        "to 0.7 % of that at its end",
    )
    beta_decay: float = Field(0.0, ge=0, description="as of `gradient`, rising in each stage")

    @field_validator("ops")
    @classmethod
    def _shrinks(cls, ops: tuple[int, ...]) -> tuple[int, ...]:
        if any(later > earlier for earlier, later in itertools.pairwise(ops)):
            raise ValueError("a stage cannot have more candidates than the one before")
        return ops

    @field_validator("add_layers", "skip_dropout")
    @classmethod
    def _has_one_a_stage(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        stages = len(info.data.get("ops", values))
        if len(values) != stages:
            raise ValueError(f"should have one number for each of the {stages} stages that option 'ops' lists")
        if info.field_name == "add_layers" and values[0]:
            raise ValueError("should begin with 0: the first stage has as many cells as the setting 'layers' says")
        return values


@STRATEGIES.register("progressive", options=ProgressiveOptions)
class Progressive(Gradient):
    """P-DARTS: the search by gradient in stages of growing depth, with fewer candidates on every edge in each.

    The epochs are divided evenly among the stages. With one stage it is the strategy `gradient`.

    Attributes:
        kept: which ops are candidates, uint8 [num_edges, num_ops] for each cell type, as many on each edge.
    """

    options: ProgressiveOptions  # type: ignore[assignment]

    def __init__(self, options: Options, context: SearchContext):
        super().__init__(options, context)
        given, num_ops = self.options.ops, len(context.ops)
        if given[0] != num_ops:
            raise PluginError(
                f"option 'ops' of 'progressive': the first stage has all {num_ops} candidates, and {given[0]} is said: "
                f"list {num_ops} and then fewer, one number a stage"
            )
        if context.epochs < len(given):
            raise PluginError(
                f"'progressive' has {len(given)} stages, and there is no epoch for each: take at least --epochs "
                f"{len(given)}"
            )
        if context.warmup_epochs >= (shortest := min(stage.epochs for stage in self.stages())):
            raise PluginError(
                f"setting 'warmup_epochs' is of every stage of 'progressive': {context.warmup_epochs} leave none of "
                f"the {shortest} epochs of one for the alphas: take fewer, or more --epochs"
            )
        self.kept = {kind: torch.ones(alphas.shape, dtype=torch.uint8) for kind, alphas in self.alphas.items()}
        self.history |= {KEPT[kind]: kept[None].float() for kind, kept in self.kept.items()}
        self.record_names = (*self.record_names, *KEPT.values())

    # Stages

    def stages(self) -> list[Stage]:
        """Of numbers of epochs that differ by at most one."""
        bounds = [k * self.context.epochs // len(self.options.ops) for k in range(len(self.options.ops) + 1)]
        return [
            Stage(first, end - first, layers)
            for first, end, layers in zip(bounds[:-1], bounds[1:], self.options.add_layers, strict=True)
        ]

    def begin_stage(self, number: int) -> None:
        """Keep the candidates with the largest weights on every edge, and begin with new alphas."""
        record = {name: rows[-1:] for name, rows in self.history.items()}
        weights = self._weights_of(record, 0, 1.0)
        self.kept = {kind: self._strongest(weights[kind], self.options.ops[number]) for kind in CELL_TYPES}
        self.stage = number
        with torch.no_grad():
            for name, values in self._initial(number).items():
                self.learned[name].copy_(values)
        self.optimizer.state.clear()

    def _strongest(self, weights: NDArray[np.float64], number: int) -> Tensor:
        """A mask of so many ops of the largest weights on each edge. Ties go to the earlier op.

        One of them is an op that computes something, so that a genotype can be derived.
        """
        real = [column for column, op in enumerate(self.context.ops) if not OPS.get(op).facts.is_none]
        kept = torch.zeros(weights.shape, dtype=torch.uint8)
        for mask, of_edge in zip(kept, weights, strict=True):
            best = real[int(of_edge[real].argmax())]
            others = [column for column in np.argsort(-of_edge, kind="stable").tolist() if column != best]
            mask[[best, *others[: number - 1]]] = 1
        return kept

    def _initial(self, number: int) -> dict[str, Tensor]:
        """What is learned, at the start of a stage after the first."""
        seeds = np.random.SeedSequence([self.context.seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))
        num_edges, num_ops = self.alphas[CELL_TYPES[0]].shape
        alphas = {kind: self.relaxation.initial_alphas(num_edges, num_ops, generator) for kind in CELL_TYPES}
        return alphas | (initial_edges(generator) if self.edges else {})

    # Candidates

    def _live(self) -> dict[str, Tensor]:
        return {kind: alphas.gather(1, _columns(self.kept[kind], alphas)) for kind, alphas in self.alphas.items()}

    def _placed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {kind: _spread(values, self.kept[kind]) for kind, values in weights.items()}

    def _left_out(self, kind: str) -> Tensor:
        return self.kept[kind] == 0

    def _skip_dropout(self) -> float:
        return self.options.skip_dropout[self.stage]

    # The record

    def end_epoch(self) -> dict[str, float]:
        """Add what has been learned, and the masks, to the history."""
        for kind, kept in self.kept.items():
            self.history[KEPT[kind]] = torch.cat([self.history[KEPT[kind]], kept[None].float()])
        return super().end_epoch() | {"candidates_per_edge": int(self.kept[CELL_TYPES[0]][0].sum())}

    def weights_at(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """The mixing weights of recorded alphas, without noise; 0 for ops that were no candidates."""
        return self._weights_of(record, epoch, self._progress_after(epoch))

    def started_with(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """The weights of the stage's initial alphas."""
        number = self.stage_of(max(0, epoch - 1))
        if number == 0:
            return super().started_with(record, epoch)
        masks = {name: record[name][epoch] for name in KEPT.values()}
        begun = {name: values[None] for name, values in (self._initial(number) | masks).items()}
        return self._weights_of(begun, 0, 0.0)

    def _weights_of(self, record: Mapping[str, Tensor], row: int, progress: float) -> dict[str, NDArray]:
        """The mixing weights of a row of a record."""
        weights = {}
        for kind in CELL_TYPES:
            alphas, kept = record[kind][row].double(), record[KEPT[kind]][row]
            live = self.relaxation.weights(alphas.gather(1, _columns(kept, alphas)), progress)
            weights[kind] = _spread(live, kept).numpy()
        return weights | self._edges_at(record, row)

    # State

    def tensors(self) -> dict[str, Tensor]:
        """As of `gradient`; the masks and the number of the stage."""
        masks = {f"kept.{kind}": kept for kind, kept in self.kept.items()}
        return super().tensors() | masks | {"stage": torch.tensor(self.stage)}

    def stage_in(self, tensors: Mapping[str, Tensor]) -> int:
        return int(tensors["stage"])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        super().load(tensors)
        self.stage = self.stage_in(tensors)
        self.kept = {kind: tensors[f"kept.{kind}"].clone() for kind in CELL_TYPES}
        for name in KEPT.values():
            self.history[name] = tensors[f"history.{name}"].clone()


def _columns(kept: Tensor, alphas: Tensor) -> Tensor:
    """The columns of the candidates of each edge, [num_edges, candidates of an edge]."""
    return placed(kept.nonzero()[:, 1].reshape(len(kept), -1), alphas.device)


def _spread(weights: Tensor, kept: Tensor) -> Tensor:
    """The weights of the candidates in the columns of all ops, with 0 for the others."""
    return weights.new_zeros(kept.shape).scatter(1, _columns(kept, weights), weights)
