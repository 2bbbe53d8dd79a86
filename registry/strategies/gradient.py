"""Gradient-based search: a step of the relaxed alphas before each step of the weights (DARTS, Algorithm 1)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from registry import gpu
from registry.core import OPS, STRATEGIES, Options
from registry.optimizers import SGD, Adam, Optimizer
from registry.space import CELL_TYPES, EDGE_WEIGHTS, edge_list
from registry.state import load_optimizer, optimizer_tensors
from registry.strategies import bilevel
from registry.strategies.base import SearchContext, SearchStep, Strategy
from registry.strategies.edge_weights import initial_edges, weights_of_edges


class GradientOptions(Options):
    """Options of `gradient`, which work with any relaxation."""

    skip_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability at the start that a step leaves out an edge's skip connection, against a collapse "
        "into skips (P-DARTS); it falls to 0.7 % of that at the end",
    )
    beta_decay: float = Field(
        0.0,
        ge=0,
        description="weight at the end, rising linearly from 0, of the mean over edges of log sum exp(alpha) "
        "(beta-DARTS, whose code has 50)",
    )


@STRATEGIES.register("gradient", options=GradientOptions)
class Gradient(Strategy):
    """DARTS and what followed it: Adam, or SGD, minimises the loss on the alpha half over the alphas.

    Attributes:
        alphas: a leaf tensor [num_edges, num_ops] for each cell type.
        edges: if edges have weights, a leaf tensor [num_edges] for each cell type, by the name of these weights.
        learned: both.
        history: all that is learned, of all epochs, [epochs so far + 1, ...].
    """

    options: GradientOptions
    minds_cost = True

    def __init__(self, options: Options, context: SearchContext):
        super().__init__(options, context)
        self.relaxation = context.relaxation
        self.default_rule = self.relaxation.default_rule
        generator = torch.Generator().manual_seed(context.seed)
        shape = (len(edge_list()), len(context.ops))
        self.alphas = {
            kind: self.relaxation.initial_alphas(*shape, generator).to(context.device).requires_grad_()
            for kind in CELL_TYPES
        }
        edges = initial_edges(generator) if context.edge_weights else {}
        self.edges = {name: numbers.to(context.device).requires_grad_() for name, numbers in edges.items()}
        self.learned = self.alphas | self.edges
        self.record_names = tuple(self.learned)
        self.history = {name: values.detach().cpu().clone()[None] for name, values in self.learned.items()}
        self.optimizer = _build_optimizer(list(self.learned.values()), context)

    def mixing(self, progress: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The relaxation's mixing weights of the alphas, and the edges' own. In a step, skips may be dropped."""
        edges = self._weights_of_edges()
        if generator is None:
            evaluated = {kind: self.relaxation.evaluated(alphas, progress) for kind, alphas in self._live().items()}
            return self._placed(evaluated) | edges
        drawn = {kind: self.relaxation.weights(alphas, progress, generator) for kind, alphas in self._live().items()}
        weights = self._placed(drawn)
        if not self.relaxation.gives_zeros:
            weights = {kind: gpu.with_zeros(values, self._left_out(kind)) for kind, values in weights.items()}
        if not self._skip_dropout():
            return weights | edges
        rate = self._skip_dropout() * math.exp(-5 * progress)  # P-DARTS: exp(-0.2 epoch) in each 25 epochs
        skips = [column for column, op in enumerate(self.context.ops) if OPS.get(op).facts.drop_path_exempt]
        return {kind: _drop(values, skips, rate, generator) for kind, values in weights.items()} | edges

    def _live(self) -> dict[str, Tensor]:
        """The alphas of the ops that are candidates, [num_edges, candidates of an edge]."""
        return self.alphas

    def _placed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mixing weights [num_edges, num_ops] from those of the candidates; 0 for others."""
        return weights

    @property
    def ops_change(self) -> bool:
        return self.relaxation.gives_zeros or bool(self._skip_dropout())

    def _left_out(self, kind: str) -> Tensor:
        """Which ops are no candidates, a mask [num_edges, num_ops]."""
        return torch.zeros(self.alphas[kind].shape, dtype=torch.bool)

    def _skip_dropout(self) -> float:
        """The probability at the start that a step leaves out an edge's skip connection."""
        return self.options.skip_dropout

    def _weights_of_edges(self) -> dict[str, Tensor]:
        """The weights of whole edges; with partial channels 1 for each if they are not learned.

        An edge whose only op is dropped still lets channels pass by.
        """
        if self.context.partial_channels > 1 and not self.edges:
            ones = {EDGE_WEIGHTS[kind]: alphas.new_ones(len(alphas)) for kind, alphas in self.alphas.items()}
            return {name: gpu.never_zero(values) for name, values in ones.items()}
        return {name: gpu.never_zero(weights_of_edges(numbers)) for name, numbers in self.edges.items()}

    def update(self, step: SearchStep) -> dict[str, float]:
        """Take an alpha step, except in the warm-up epochs of a stage."""
        if step.epoch - self.stages()[self.stage].first < self.context.warmup_epochs:
            return {}
        learned = list(self.learned.values())
        gradients, loss = self._gradients(step, learned)
        regulariser = self._regulariser(step.progress)
        if regulariser.requires_grad:
            penalties = torch.autograd.grad(regulariser, learned, allow_unused=True)  # it may know nothing of edges
            gradients = [g if penalty is None else g + penalty for g, penalty in zip(gradients, penalties, strict=True)]
        for values, gradient in zip(learned, gradients, strict=True):
            values.grad = gradient
        self.optimizer.step()
        self._check_alphas()
        return {"alpha_loss": loss, "regulariser": gpu.reported(regulariser)}

    def _regulariser(self, progress: float) -> Tensor:
        """The relaxation's regulariser, the penalty of the expected cost, and the decay of beta-DARTS."""
        regulariser = self.relaxation.regulariser(self._live(), progress)
        if self.context.cost is not None:
            live = {kind: self.relaxation.weights(alphas, progress) for kind, alphas in self._live().items()}
            weights = self._placed(live) | {name: weights_of_edges(numbers) for name, numbers in self.edges.items()}
            regulariser = regulariser + self.context.cost.penalty(self._expected_cost(progress), weights)
        if not self.options.beta_decay:
            return regulariser
        edges = torch.cat(list(self._live().values()))
        return regulariser + self.options.beta_decay * progress * torch.logsumexp(edges, dim=-1).mean()

    def _expected_cost(self, progress: float) -> Tensor:
        """The mean cost of architectures that are drawn by the relaxation's probabilities."""
        assert self.context.cost is not None
        chosen = {kind: self.relaxation.probabilities(alphas, progress) for kind, alphas in self._live().items()}
        return self.context.cost.expected(self._placed(chosen))

    def _gradients(self, step: SearchStep, learned: list[Tensor]) -> tuple[list[Tensor], float]:
        """The gradient of L_val with respect to all that is learned, and L_val."""
        mixing = lambda: self.mixing(step.progress, step.generator())
        val_loss = lambda: step.val_loss(mixing())
        with step.held_statistics():
            if self.context.order == 1:
                with _frozen([weight for group in step.weight_groups for weight in group]):
                    return bilevel.first_order(val_loss, learned)
            with step.full_precision():
                train_loss = lambda: step.train_loss(mixing())
                return bilevel.second_order(train_loss, val_loss, step.weight_groups, learned, step.weight_step())

    def _check_alphas(self) -> None:
        if not next(iter(self.learned.values())).is_cpu:
            return  # a GPU is not asked: the next losses tell, and so does the check of every checkpoint
        for kind, values in self.alphas.items():
            if not bool(torch.isfinite(values).all()):
                raise FloatingPointError(f"an alpha of the {kind} cell is no longer finite")
        for kind, numbers in zip(CELL_TYPES, self.edges.values(), strict=False):  # there may be none
            if not bool(torch.isfinite(numbers).all()):
                raise FloatingPointError(f"the weight of an edge of the {kind} cell is no longer finite")

    def end_epoch(self) -> dict[str, float]:
        """Add what has been learned to the history."""
        for name, values in self.learned.items():
            self.history[name] = torch.cat([self.history[name], values.detach().cpu()[None]])
        facts = {"alpha_lr": self.optimizer.param_groups[0]["lr"]}
        if self.context.cost is not None:
            num_epochs = len(self.history[CELL_TYPES[0]]) - 1
            facts["expected_cost"] = self._expected_cost(self._progress_after(num_epochs)).item()
        return facts

    def _progress_after(self, num_epochs: int) -> float:
        """The progress of the stage at the end of so many epochs."""
        return self.stages()[self.stage_of(max(0, num_epochs - 1))].progress(num_epochs)

    def record(self) -> dict[str, Tensor]:
        """The alphas of all epochs, and the numbers that the weights of edges are a softmax of."""
        return self.history

    def weights_at(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """The mixing weights of recorded alphas, without noise, and the learned weights of edges."""
        progress = self._progress_after(epoch)
        return {
            kind: self.relaxation.weights(record[kind][epoch].double(), progress).numpy() for kind in CELL_TYPES
        } | self._edges_at(record, epoch)

    def _edges_at(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """The learned weights of edges, of an epoch of a record."""
        return {name: weights_of_edges(record[name][epoch].double()).numpy() for name in self.edges}

    def tensors(self) -> dict[str, Tensor]:
        """All that is learned, its history and the state of its optimizer."""
        history = {f"history.{name}": history for name, history in self.history.items()}
        return self.averaged() | history | optimizer_tensors("optimizer.alphas", self.optimizer)

    def averaged(self) -> dict[str, Tensor]:
        """The alphas and the numbers of edges. The state of their optimizer stays with each client."""
        return {f"alphas.{name}": values for name, values in self.learned.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, values in self.learned.items():
            values.data.copy_(tensors[f"alphas.{name}"])
            self.history[name] = tensors[f"history.{name}"].clone()
        load_optimizer("optimizer.alphas", self.optimizer, tensors)


def _build_optimizer(alphas: list[Tensor], context: SearchContext) -> Optimizer:
    lr, weight_decay = context.alpha_lr, context.alpha_weight_decay
    if context.alpha_optimizer == "sgd":
        return SGD(alphas, lr=lr, weight_decay=weight_decay)
    return Adam(alphas, lr=lr, betas=context.alpha_betas, weight_decay=weight_decay)


def _drop(weights: Tensor, columns: list[int], rate: float, generator: torch.Generator) -> Tensor:
    """Mixing weights with those of some columns zeroed at a rate; the others grow, so that the means stay."""
    kept = torch.ones(weights.shape)
    kept[:, columns] = (torch.rand(len(weights), len(columns), generator=generator) >= rate).float() / (1 - rate)
    dropped = weights * gpu.placed(kept, weights.device).to(weights.dtype)
    zeros = gpu.known_zeros(weights)
    return dropped if zeros is None else gpu.with_zeros(dropped, zeros | (kept == 0))


@contextlib.contextmanager
def _frozen(weights: list[nn.Parameter]) -> Iterator[None]:
    """Compute no gradients of the weights within this context."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
