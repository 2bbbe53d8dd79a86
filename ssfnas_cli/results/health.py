"""Search health: whether a search decides, and whether it collapses into ops that learn nothing.

The figures of an epoch follow from its mixing weights and the genotype that they give. They are recorded in the
search's metrics, and a judgement follows from those metrics alone.

References: searches by gradient are known to end in skip connections (Chu et al., FairDARTS; Zela et al., Understanding
and Robustifying Differentiable Architecture Search, who also measure the loss of accuracy by discretisation).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.space import CELL_TYPES, EDGE_WEIGHTS, edges_into_nodes

# Mixing weights [num_edges, num_ops] by cell type, and those of edges [num_edges] by the names of EDGE_WEIGHTS
Weights = Mapping[str, NDArray[np.float64]]
Edges = Mapping[str, Collection[tuple[str, int, int]]]  # (op, from, to) of a genotype's live edges, by cell type
Family = Literal["none", "skip", "pool", "learned"]

NEAR = 0.1  # a sigmoid so close to 0 or 1 counts as decided
AT_START = 0.02  # no mixing weight has moved by more: the search has not begun to decide
PATIENCE = 3  # epochs in which a collapse must last, so that one epoch's chance ends no search
FIGURES = (  # the names of an epoch's figures
    *("weights_moved", "weights_entropy", "weights_decided", "edges_entropy"),
    *("genotype_changes", "genotype_skips", "genotype_pools", "normal_ops_with_weights"),
)


def weight_figures(start: Weights, now: Weights) -> dict[str, float]:
    """How far the mixing weights are from where they began, and how decided they are.

    Args:
        start: at the start of the search.
        now: at the end of an epoch.

    Returns:
        `weights_moved`: the largest distance that a weight has from its start. `weights_entropy`, if the ops of an edge
        compete (their weights add up to 1): the mean entropy of the edges over that of equal weights, from 0 (one op
        has all) to 1. `weights_decided`, if they do not compete: the share of weights within NEAR of 0 or 1.
        `edges_entropy`, if edges have weights of their own: the mean entropy of the inputs of a node, likewise.
    """
    values, before = (np.concatenate([weights[kind] for kind in CELL_TYPES]) for weights in (now, start))
    figures = {"weights_moved": float(np.abs(values - before).max())}
    edges = [now[name] for name in EDGE_WEIGHTS.values() if name in now]
    if edges:
        inputs = [_entropy(of_kind[None, rows]) for of_kind in edges for rows in edges_into_nodes()]
        figures["edges_entropy"] = sum(inputs) / len(inputs)
    if values.shape[1] > 1 and np.allclose(values.sum(1), 1.0, atol=1e-6) and (values >= 0).all():
        return figures | {"weights_entropy": _entropy(values)}
    decided = (np.abs(values) <= NEAR) | (np.abs(values - 1) <= NEAR)
    return figures | {"weights_decided": float(decided.mean())}


def _entropy(shares: NDArray[np.float64]) -> float:
    """The mean entropy of rows of shares [rows, n], over that of n equal ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, -shares * np.log(shares), 0.0)
    return float(terms.sum(1).mean() / np.log(shares.shape[1]))


def genotype_figures(before: Edges | None, now: Edges, families: Mapping[str, Family]) -> dict[str, float | int]:
    """What a genotype is made of, and how much of it is new.

    Args:
        before: the live edges of the genotype of the epoch before; None if it gave none.
        now: the live edges of this epoch's genotype.
        families: of every candidate op.

    Returns:
        `genotype_changes`: the number of edges that the genotype before did not have. `genotype_skips`,
        `genotype_pools`: the shares of skip connections and of other ops without weights. `normal_ops_with_weights`:
        how many ops of the normal cell learn anything, unless no candidate does.
    """
    every = [families[op] for edges in now.values() for op, _, _ in edges]
    new = sum(len(set(edges) - set(() if before is None else before[kind])) for kind, edges in now.items())
    figures: dict[str, float | int] = {
        "genotype_changes": new,
        "genotype_skips": every.count("skip") / len(every),
        "genotype_pools": every.count("pool") / len(every),
    }
    if "learned" in families.values():
        figures["normal_ops_with_weights"] = sum(families[op] == "learned" for op, _, _ in now["normal"])
    return figures


def health_in_words(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last epoch's health in sentences without their full stops; none if an earlier ssfnas recorded no health.

    Args:
        lines: the metrics of every epoch.
    """
    last = lines[-1] if lines else {}
    sentences = []
    for name, pruned in last.items():
        if name.startswith("pruned_"):
            whole = last[name.removeprefix("pruned_")]
            sentences.append(
                f"accuracy of the supernet {whole:.1f} %, with the genotype's ops alone {pruned:.1f} % "
                f"(discretisation gap {whole - pruned:.1f} points; smaller is better)"
            )
    told = []
    if "weights_entropy" in last:
        told.append(f"entropy of the mixing weights {last['weights_entropy']:.3f} (1: undecided, 0: decided)")
    if "edges_entropy" in last:
        told.append(f"entropy of the weights of edges {last['edges_entropy']:.3f}")
    if "weights_decided" in last:
        told.append(f"{100 * last['weights_decided']:.0f} % of the mixing weights are within 0.1 of 0 or 1 (decided)")
    if "genotype_skips" in last:
        told.append(f"genotype: {100 * last['genotype_skips']:.0f} % skips, {100 * last['genotype_pools']:.0f} % pools")
        changed, of = changed_lately(lines)
        told += [f"it changed in {changed} of the last {of} epochs"] if of else []
    return [*sentences, "; ".join(told)] if told else sentences


class Finding(NamedTuple):
    """What looks wrong in a search, in a word and in a sentence that names what helps."""

    what: Literal["collapsed", "at_start"]
    sentence: str


def is_collapsed(line: Mapping[str, Any]) -> bool:
    """Whether an epoch's normal cell has only ops without weights, and not just because nothing has moved yet.

    A reduction cell of pools is no collapse: that of the published DARTS_V2 is one.
    """
    return line.get("normal_ops_with_weights") == 0 and line.get("weights_moved", 0.0) > AT_START


def collapsed_since(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch since which the genotype is collapsed, if it has been for PATIENCE epochs; None if it is not.

    Args:
        lines: the metrics of every epoch.
    """
    streak = 0
    for line in reversed(lines):
        if not is_collapsed(line):
            break
        streak += 1
    return lines[-streak]["epoch"] if streak >= PATIENCE else None


def changed_lately(lines: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """In how many of the last epochs the genotype changed, and how many those are: a quarter, at least 5.

    The first epoch does not count: its genotype follows the arbitrary one of the initial weights.
    """
    counted = [line["genotype_changes"] for line in lines[1:] if "genotype_changes" in line]
    last = counted[-max(5, len(lines) // 4) :]
    return sum(changes > 0 for changes in last), len(last)


def find_problems(lines: Sequence[Mapping[str, Any]], path: str = "RUN") -> list[Finding]:
    """What looks wrong at the end of a search.

    Args:
        lines: the metrics of every epoch; those of an earlier ssfnas hold no health, and nothing is found.
        path: the run's folder, for the command that helps.
    """
    if not lines:
        return []
    last = lines[-1]
    if last.get("weights_moved", 1.0) <= AT_START:
        rate = f" (it was {last['alpha_lr']:g})" if "alpha_lr" in last else ""
        return [
            Finding(
                "at_start",
                f"the alphas are still about where they started (no mixing weight moved by more than {AT_START:g}), so "
                f"the genotype is chance: raise --set alpha_lr={rate}, or --epochs",
            )
        ]
    if not is_collapsed(last):
        return []
    return [
        Finding("collapsed", f"the normal cell has only skips and pools, which learn nothing: {_help(lines, path)}")
    ]


def _help(lines: Sequence[Mapping[str, Any]], path: str) -> str:
    """What helps against a collapse: a setting, and the last epoch before it."""
    competing = "weights_entropy" in lines[-1]
    advice = (
        "ops that compete in a softmax are known to end so: try --relax sigmoid, or fewer --epochs"
        if competing
        else "try '--set relax.zero_one_warmup=0.5', or a lower --set alpha_lr="
    )
    sound = [
        line["epoch"]
        for line in lines
        if line.get("normal_ops_with_weights", 0) > 0 and line.get("weights_moved", 0.0) > AT_START
    ]
    return advice + (f"; epoch {sound[-1]} was sound: ssfnas derive {path} --epoch {sound[-1]}" if sound else "")
