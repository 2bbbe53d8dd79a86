"""The sections of a report, in their order."""

from __future__ import annotations

from ssfnas_cli.plots.report import data, networks, record, searches, summary
from ssfnas_cli.plots.report.blocks import Section
from ssfnas_cli.plots.report.material import Material
from ssfnas_cli.plots.report.page import render


def write(material: Material) -> bytes:
    """The whole page; the same runs give the same bytes."""
    runs = material.runs
    named = runs[0].path.name if len(runs) == 1 else f"{len(runs)} runs"
    return render(f"Report of {named}", sections(material))


def sections(material: Material) -> list[Section]:
    """What the report says."""
    return [
        summary.section(material),
        data.section(material),
        *([searches.section(material)] if material.searches else []),
        *([networks.section(material)] if material.networks else []),
        record.settings(material),
        record.environment(material),
        record.reproduction(material),
    ]
