"""Rank consistency in a report: whether supernets rank genotypes as their retrained networks do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots import rank_scatter
from ssfnas_cli.plots.report.blocks import Block, Table
from ssfnas_cli.plots.report.material import Material, note_of, picture
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.rank_agreement import described


def table(material: Material) -> list[Block]:
    """A row for each search that was asked; nothing if none was."""
    found = [(run, material.ranks[run.path]) for run in material.runs if run.path in material.ranks]
    rows = [
        [run.path.name, str(facts["num_pairs"]), *(_shown(facts[name]) for name in ("kendall_tau", "spearman_rho"))]
        for run, facts in found
        if not isinstance(facts, InputError)
    ]
    caption = f"Rank consistency: the supernet with a genotype's ops alone, against its network on {material.split}"
    header = ("search", "genotypes", "Kendall's tau (95 %)", "Spearman's rho (95 %)")
    return [Table(caption, header, rows)] if rows else []


def blocks(run: RunFacts, material: Material) -> list[Block]:
    """The scatter of one search, or why there is none; nothing if it was not asked."""
    facts = material.ranks.get(run.path)
    if facts is None:
        return []
    if isinstance(facts, InputError):
        return [note_of("The supernet ranks nothing", facts)]
    caption = "Accuracy of retrained networks against what the supernet says of their genotypes"
    return [picture(caption, partial(_alt, facts), partial(rank_scatter.draw, facts))]


def _alt(facts: Mapping[str, Any]) -> str:
    told = f"Kendall's tau: {described(facts['kendall_tau'], facts['num_pairs'])}"
    return f"Scatter of retrained networks against the supernet's accuracy of their genotypes. {told}"


def _shown(agreement: Mapping[str, Any]) -> str:
    if agreement["value"] is None:
        return "-"
    interval = "" if agreement["low"] is None else f" ({agreement['low']:.2f} to {agreement['high']:.2f})"
    return f"{agreement['value']:.2f}{interval}"
