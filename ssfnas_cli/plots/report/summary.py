"""The beginning of a report: which runs it is of, and what they lack."""

from __future__ import annotations

from ssfnas_cli.artifacts.run_list import shown_state
from ssfnas_cli.plots.report.blocks import Block, Note, Part, Section, Table, turned_if_wide
from ssfnas_cli.plots.report.material import Material, is_evaluated
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.selection import LeftOut

HEADER = ("run", "what", "data", "seed", "state", "result")


def section(material: Material) -> Section:
    """A table of the runs, and a list of what is missing."""
    rows = [_row(run, material.split) for run in material.runs]
    blocks: list[Block] = [turned_if_wide(Table("The runs of this report", HEADER, rows, numbers=False), most=1)]
    missing = [*material.left_out, *material.missing]
    if missing:
        blocks.append(Part("What is missing", [_note(one) for one in missing]))
    return Section("summary", "Summary", blocks)


def _row(run: RunFacts, split: str) -> list[str]:
    seeds = ", search ".join(map(str, reversed(run.seeds)))
    return [str(run.path), what_it_is(run), run.data[0], seeds, _state(run), _result(run, split)]


def what_it_is(run: RunFacts) -> str:
    """A search, a derivation by perturbation, a retraining, or a retraining that was corrected."""
    adjustment = run.run.config.get("adjustment")
    if isinstance(adjustment, dict):
        return f"correction ({adjustment.get('method')})"
    derivation = run.run.config.get("derivation")
    if isinstance(derivation, dict):
        return f"derivation ({derivation.get('rule')})"
    return "search" if run.run.kind == "search" else "retraining"


def _state(run: RunFacts) -> str:
    status = run.run.status()
    state = shown_state(run.run, status)
    return state if state == "done" else f"{state} at epoch {status.get('epoch', 0)} of {status.get('epochs') or '?'}"


def _result(run: RunFacts, split: str) -> str:
    """The figure to look at first."""
    if is_evaluated(run, split):
        assert run.evaluation
        facts = run.evaluation["splits"][split]
        return f"balanced accuracy {facts['balanced_accuracy']:.1f} %, top-1 {facts['top1']:.1f} % on {split}"
    last = run.metrics[-1] if run.metrics else {}
    named = {
        "accuracy_alpha_half": "accuracy of the supernet {:.1f} % on the alpha half",
        "probe_accuracy_alpha_half": "accuracy of the linear probe {:.1f} % on the alpha half",
        "train_accuracy": "accuracy {:.1f} % on the training images",
    }
    return next((text.format(last[name]) for name, text in named.items() if name in last), "none yet")


def _note(one: LeftOut) -> Note:
    is_command = one.mend.startswith("ssfnas ")
    return Note(f"{one.path}: {one.why}" if is_command or not one.mend else str(one), one.mend if is_command else "")
