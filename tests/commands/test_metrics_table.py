"""How metrics look on terminals of different widths, and where a large confusion matrix goes."""

import csv
import io

import numpy as np
import pytest

from ssfnas_cli import console
from ssfnas_cli.artifacts.metrics import split_off_tables
from ssfnas_cli.commands.metrics_table import show_metrics
from ssfnas_cli.engine.evaluate import split_metrics


def metrics_of(names, same_images=(), splits=("test",)):
    num = len(names)
    rng = np.random.default_rng(0)
    labels = np.arange(4 * num) % num
    scores = rng.normal(size=(len(labels), num)).astype(np.float32)
    facts = split_metrics(scores, labels, list(names), [10] * num)
    return {
        **{"run": "runs/a", "class_names": list(names), "train_counts": [10] * num},
        **{"same_images": list(same_images), "splits": {name: facts for name in splits}},
    }


def shown(metrics, width):
    stream = io.StringIO()
    page = console.plain_console(stream)
    page.width = width
    show_metrics(metrics)(page)
    return stream.getvalue()


def test_a_wide_terminal_shows_the_matrix_with_the_names_of_both_axes():
    metrics = metrics_of(["ant", "bee", "cat"])
    text = shown(metrics, 100)
    header = next(line for line in text.splitlines() if "true, down; predicted, across" in line)
    assert header.split()[-3:] == ["ant", "bee", "cat"]
    rows = [line.split() for line in text.splitlines()[text.splitlines().index(header) :]]
    for name, counts in zip(metrics["class_names"], metrics["splits"]["test"]["confusion"], strict=True):
        assert [name, *(str(count) if count else "." for count in counts)] in rows


def test_a_narrower_terminal_numbers_the_columns_and_no_line_is_wider_than_it():
    text = shown(metrics_of([f"a species with a long name {n}" for n in range(12)]), 80)
    assert "12 a species with a long name 11" in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize(("num", "width"), [(21, 200), (20, 40)])
def test_the_worst_confusions_replace_a_matrix_that_does_not_fit(num, width):
    metrics = metrics_of([f"c{n}" for n in range(num)])
    text = shown(metrics, width)
    assert "predicted, across" not in text
    worst = metrics["splits"]["test"]["worst_confusions"][0]
    assert f"{worst['true']} -> {worst['predicted']}: {worst['images']} of {worst['of']}" in text


def test_splits_of_the_same_images_are_one_column():
    text = shown(metrics_of(["ant", "bee"], [("test", "test_longtail")], ("test", "test_longtail")), 100)
    assert "hold the same images" in text
    assert text.count("test_longtail") == 1


@pytest.mark.parametrize(("num", "apart"), [(100, False), (101, True)])
def test_the_matrix_of_more_than_100_classes_is_a_csv_file_beside_the_metrics(tmp_path, num, apart):
    metrics = metrics_of([f"c{n}" for n in range(num)])
    kept, tables = split_off_tables(metrics, tmp_path / "metrics.json")
    facts = kept["splits"]["test"]
    assert ("confusion" in facts) is not apart
    if apart:
        path = tmp_path / "metrics-confusion-test.csv"
        assert facts["confusion_file"] == str(path)
        rows = list(csv.reader(io.StringIO(tables[path].decode())))
        assert rows[0][1:] == [row[0] for row in rows[1:]] == metrics["class_names"]
        assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == metrics["splits"]["test"]["confusion"]
    else:
        assert tables == {}
