"""Print the tables of docs/longtail.md as Markdown: python experiments/longtail/table.py OUT, where OUT is run.sh's."""

from __future__ import annotations

import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.run import RunFolder

NAME = re.compile(r"(?P<network>.+)-mu(?P<mu>[\d.]+)-(?P<method>.+)-seed(?P<seed>\d+)")
THIRDS = ("head", "medium", "tail")
COLUMNS = ("method", "seeds", "top-1", *(f"{third} third" for third in THIRDS), "macro-F1", "ECE", "minutes")


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and from two values on their standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def row(method: str, runs: Sequence[RunFolder]) -> list[str]:
    """One method's figures on the balanced test split, over its seeds."""
    tests: list[dict[str, Any]] = [run.evaluation()["splits"]["test"] for run in runs]  # type: ignore[index]

    def over_seeds(read: Callable[[dict[str, Any]], float], digits: int) -> str:
        return spread([read(test) for test in tests], digits)

    seconds = [run.status()["result"].get("elapsed_seconds", 0) for run in runs]  # 0: nothing was trained
    return [
        method,
        str(len(runs)),
        over_seeds(lambda test: test["top1"], 2),
        *(over_seeds(lambda test, third=third: test["groups_by_thirds"][third]["accuracy"], 1) for third in THIRDS),
        over_seeds(lambda test: test["macro_f1"], 3),
        over_seeds(lambda test: test["ece"], 3),
        f"{statistics.fmean(seconds) / 60:.0f}",
    ]


def main() -> None:
    """One table for each network and imbalance factor, the methods in the order of their accuracy."""
    groups: dict[tuple[str, str], dict[str, list[RunFolder]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(Path(sys.argv[1]).iterdir()):
        name = NAME.fullmatch(path.name)
        if name and (path / "evaluation.json").is_file():
            groups[name["network"], name["mu"]][name["method"]].append(RunFolder.open(path))
    for (network, mu), methods in groups.items():
        rows = [row(method, runs) for method, runs in methods.items()]
        rows.sort(key=lambda cells: -float(cells[2].split()[0]))
        print(f"{network}, mu {mu}:\n")
        print(
            "\n".join("| " + " | ".join(line) + " |" for line in [COLUMNS, ["---"] * len(COLUMNS), *rows]), end="\n\n"
        )


if __name__ == "__main__":
    main()
