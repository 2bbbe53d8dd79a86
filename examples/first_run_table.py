"""Print the table of examples/first-run.sh as Markdown: python examples/first_run_table.py OUT [cifar|retina]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ARMS = [(relax, loss) for loss in ("ce", "barlow") for relax in ("softmax", "sigmoid")]
COLUMNS = (
    "arm",
    "search: supernet on the alpha half",
    "weights",
    "top-1, test",
    "balanced acc., test",
    "head / medium / tail thirds, test",
    "top-1, long-tailed test",
    "ECE, test",
    "search s",
    "retrain s",
)


def read(path: Path) -> dict[str, Any]:
    """A JSON file that a stage printed."""
    return json.loads(path.read_text())


def row(out: Path, arm: str) -> list[str]:
    """One arm's figures. A plain network was not searched for."""
    retrain = read(out / f"{arm}-retrain.json")
    searched, seconds = "-", "-"
    if (out / f"{arm}-search.json").exists():
        search = read(out / f"{arm}-search.json")
        name = next(key for key in search if key.endswith("accuracy_alpha_half"))
        searched = f"{search[name]:.1f}{' (probe, uses labels)' if name.startswith('probe') else ''}"
        seconds = f"{search['elapsed_seconds']:.0f}"
    splits = read(out / f"{arm}-metrics.json")["splits"]
    test = splits["test"]
    groups = [test["groups_by_thirds"][group]["accuracy"] for group in ("head", "medium", "tail")]
    return [
        arm,
        searched,
        f"{retrain['num_params']:,}",
        f"{test['top1']:.2f}",
        f"{test['balanced_accuracy']:.2f}",
        " / ".join("-" if value is None else f"{value:.1f}" for value in groups),
        f"{splits['test_longtail']['top1']:.2f}",
        f"{test['ece']:.3f}",
        seconds,
        f"{retrain['elapsed_seconds']:.0f}",
    ]


def main() -> None:
    """Print a table per data set that has a finished arm."""
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or ("cifar", "retina"):
        arms = [*(f"{name}-{relax}-{loss}" for relax, loss in ARMS), f"{name}-resnet32"]
        rows = [row(out, arm) for arm in arms if (out / f"{arm}-metrics.json").exists()]
        if rows:
            lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
            print("\n".join("| " + " | ".join(line) + " |" for line in lines), end="\n\n")


if __name__ == "__main__":
    main()
