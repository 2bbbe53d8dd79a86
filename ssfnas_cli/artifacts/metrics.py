"""The file of an evaluation's metrics, with a large confusion matrix beside it, and the table of a run's epochs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import seal, write_bytes
from ssfnas_cli.json_text import layout_json

EVALUATED = ("train", "val", "test", "test_longtail")  # the splits; the data set's own list would import numpy
MANY, FEW = 100, 20  # ImageNet-LT: "many" is more than 100 training images, "few" is fewer than 20
MAX_CLASSES = 100  # whose matrix the metrics themselves hold; that of 1,000 classes has a million cells


def table_path(metrics_file: Path, split: str) -> Path:
    """The file of a split's matrix beside the file of its metrics: `metrics.json` has `metrics-confusion-test.csv`."""
    return metrics_file.with_name(f"{metrics_file.stem}-confusion-{split}.csv")


def split_off_tables(metrics: Mapping[str, Any], metrics_file: Path | None) -> tuple[dict[str, Any], dict[Path, bytes]]:
    """Metrics in which the name of a file replaces each matrix of more than MAX_CLASSES classes, and those files.

    Args:
        metrics: what `evaluate` measured.
        metrics_file: where they will be; the matrices go beside it. None: they have no file, and the matrices none.
    """
    names = metrics["class_names"]
    splits, tables = {}, {}
    for name, facts in metrics["splits"].items():
        if "confusion" in facts and len(names) > MAX_CLASSES:
            path = None if metrics_file is None else table_path(metrics_file, name)
            if path is not None:
                tables[path] = to_csv(facts["confusion"], names)
            facts = {key: value for key, value in facts.items() if key != "confusion"}
            facts["confusion_file"] = None if path is None else str(path)
        splits[name] = facts
    return {**metrics, "splits": splits}, tables


def write_metrics_file(path: Path, metrics: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Write metrics, sealed, and their large matrices beside them.

    Args:
        before: the metrics of splits that stay if `metrics` has no newer ones.

    Raises:
        DiskError: the files cannot be written.
    """
    kept, tables = split_off_tables(metrics, path)
    for table, data in tables.items():
        write_bytes(table, data)
    whole = {**kept, "splits": {**before, **kept["splits"]}}
    write_bytes(path, f"{layout_json({**whole, 'sha256': seal(whole)})}\n".encode())


def to_csv(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> bytes:
    """A row for each true class, a column for each predicted one, both with their names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *class_names])
    writer.writerows([name, *row] for name, row in zip(class_names, confusion, strict=True))
    return text.getvalue().encode()


def epochs_csv(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The metrics of all epochs as a table with a header; a value that an epoch lacks is an empty cell.

    The columns are in the order in which the epochs name them first.
    """
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()
