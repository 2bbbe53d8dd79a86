"""Search by reinforcement (Zoph and Le, 2017; ENAS, Pham et al., 2018): a policy learns to draw good candidates.

The policy has logits for each edge. ENAS's is an LSTM, which shares its weights over all choices, and learns from many
thousands of candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from registry.core import STRATEGIES, Options
from registry.space import CELL_TYPES, edge_list, edges_into_nodes
from registry.state import load_module, load_optimizer, module_tensors, optimizer_tensors
from registry.strategies.base import SearchContext
from registry.strategies.candidates import CandidateOptions, CandidateStrategy, Genes


class ReinforceOptions(CandidateOptions):
    """Options of `reinforce`."""

    lr: float = Field(0.1, gt=0, description="learning rate of the logits (Adam without momentum)")
    baseline_decay: float = Field(
        0.9, ge=0, lt=1, description="how slowly the moving average follows that rewards are compared with"
    )
    entropy: float = Field(1e-4, ge=0, description="weight of the entropy of the choices beside a reward from 0 to 1")


@STRATEGIES.register("reinforce", options=ReinforceOptions)
class Reinforce(CandidateStrategy):
    """A policy draws the candidates, and their fitness is its reward (REINFORCE, ENAS).

    After each candidate g it takes a step up the gradient of the expected reward and w times the policy's entropy:

        (R(g) + w h(g) - b) d log p(g) + w d h(g)

    R is the fitness from 0 to 1, h the sum of the entropies of the choices that made g, and b a moving average of
    R + w h over the candidates before. The mean of that over all g is the exact gradient.
    """

    options: ReinforceOptions
    minds_cost = False  # drawing again what is too expensive would make the gradient one of another distribution

    def __init__(self, options: Options, context: SearchContext):
        super().__init__(options, context)
        self.policy = Policy(self.columns, self.num_nodes)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), self.options.lr, betas=(0.0, 0.999))  # ENAS's betas
        self.baseline: float | None = None

    def propose(self, numbers: np.random.Generator) -> Genes:
        """A candidate as the policy draws it."""
        return self.policy.draw(numbers)

    def judge(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        """Add the candidate to the list, and let the policy learn from it."""
        values = super().judge(accuracies)
        chosen = self.policy.chosen(self.genes[-1])
        reward = float(self.fitness[-1]) / 100 + self.options.entropy * chosen.entropy.item()
        baseline = reward if self.baseline is None else self.baseline
        self.optimizer.zero_grad()
        self.loss(chosen, reward - baseline).backward()
        self.optimizer.step()
        self.baseline = self.options.baseline_decay * baseline + (1 - self.options.baseline_decay) * reward
        return values | {"policy_entropy": chosen.entropy.item()}

    def loss(self, chosen: Chosen, advantage: float) -> Tensor:
        """What is minimised: its gradient is that of the class, downwards."""
        return -(advantage * chosen.log_probability + self.options.entropy * chosen.entropy)

    def tensors(self) -> dict[str, Tensor]:
        """As for every such strategy; the policy, the state of its optimizer, and the baseline if there is one."""
        baseline = torch.tensor([] if self.baseline is None else [self.baseline], dtype=torch.float64)
        own = module_tensors("policy", self.policy) | optimizer_tensors("optimizer.policy", self.optimizer)
        return super().tensors() | own | {"baseline": baseline}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        super().load(tensors)
        load_module("policy", self.policy, tensors)
        load_optimizer("optimizer.policy", self.optimizer, tensors)
        self.baseline = next(iter(tensors["baseline"].tolist()), None)


class Chosen(NamedTuple):
    """The logarithm of an architecture's probability, and the sum of the entropies of its choices, in nats.

    The mean of that sum over all architectures is the entropy of their distribution.
    """

    log_probability: Tensor
    entropy: Tensor


class Policy(nn.Module):
    """Probabilities of architectures: those of all choices that make one, multiplied.

    The choices are independent: for each node the pair of edges that end in it, whose logit is the sum of theirs, and
    for each edge its op. The logits are float64 and begin at 0, so that all architectures are equally probable.

    Args:
        columns: those of the ops that may stand on an edge.
        num_nodes: the intermediate nodes of a cell.
    """

    def __init__(self, columns: Sequence[int], num_nodes: int):
        super().__init__()
        self.columns = list(columns)
        self.pairs = [list(itertools.combinations(rows, 2)) for rows in edges_into_nodes(num_nodes)]
        shape = (len(CELL_TYPES), len(edge_list(num_nodes)))
        self.of_inputs = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        self.of_ops = nn.Parameter(torch.zeros(*shape, len(self.columns), dtype=torch.float64))

    def _log_pairs(self, cell: int) -> list[Tensor]:
        """The logarithms of the probabilities of the pairs of each node."""
        return [torch.log_softmax(self.of_inputs[cell, pairs].sum(dim=1), dim=0) for pairs in self.pairs]

    def draw(self, numbers: np.random.Generator) -> Genes:
        """Draw an architecture."""
        genes = np.full(self.of_inputs.shape, -1, np.int16)
        with torch.no_grad():
            ops = torch.softmax(self.of_ops, dim=-1).numpy()
            for cell in range(len(genes)):
                for pairs, logs in zip(self.pairs, self._log_pairs(cell), strict=True):
                    for row in pairs[_draw(logs.exp().numpy(), numbers)]:
                        genes[cell, row] = self.columns[_draw(ops[cell, row], numbers)]
        return genes

    def chosen(self, genes: Genes) -> Chosen:
        """What the policy says of an architecture."""
        log_ops = torch.log_softmax(self.of_ops, dim=-1)
        cells, rows = np.nonzero(genes >= 0)
        log_probability = log_ops[cells, rows, [self.columns.index(op) for op in genes[cells, rows]]].sum()
        entropy = _entropy(log_ops[cells, rows])
        for cell in range(len(genes)):
            for pairs, logs in zip(self.pairs, self._log_pairs(cell), strict=True):
                taken = next(number for number, pair in enumerate(pairs) if (genes[cell, list(pair)] >= 0).all())
                log_probability, entropy = log_probability + logs[taken], entropy + _entropy(logs)
        return Chosen(log_probability, entropy)


def _entropy(logs: Tensor) -> Tensor:
    return -(logs.exp() * logs).sum()


def _draw(probabilities: NDArray[np.float64], numbers: np.random.Generator) -> int:
    bounds = np.cumsum(probabilities)
    return int(np.searchsorted(bounds, numbers.random() * bounds[-1], side="right"))
