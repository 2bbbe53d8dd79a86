"""Long labels of groups are letters in tables and sentences for people, with a legend; programs get the labels."""

import json

import pytest
from results_support import make_run, split_of

from ssfnas_cli.commands.compare_table import write
from ssfnas_cli.results.comparison import compare
from ssfnas_cli.results.legend import _letter, lettered
from ssfnas_cli.results.selection import select_runs

SETS = {
    "a": ("loss=ldam", "loss.max_margin=0.37", "lr=0.0317", "momentum=0.91", "weight_decay=0.00031"),
    "b": ("loss=focal", "loss.gamma=1.5", "lr=0.0417", "momentum=0.92", "weight_decay=0.00032"),
}
REMARK = "other numbers of steps: A: 30; B: 50"
SHORT = {"a": ("loss=ldam",), "b": ()}


def comparison(folder, arms):
    for name, sets in arms.items():
        for seed in (0, 1):
            splits = {"test": split_of(50.0 + 7 * seed + len(sets))}
            make_run(
                folder / f"{name}{seed}", "retrain", *sets, seed=seed, splits=splits, epochs=5 if name == "b" else 3
            )
    return compare(select_runs([folder], "evaluation"), [], [str(folder / "b0")])


@pytest.mark.parametrize("name", ["text", "markdown"])
def test_a_long_label_stands_in_the_legend_alone(tmp_path, name):
    one = comparison(tmp_path, SETS)
    labels = [group.label for group in one.groups]
    assert max(map(len, labels)) > 40 and any(label in remark.sentence for label in labels for remark in one.remarks)
    said = write(one, name).decode()
    flat = " ".join(said.split())
    begins = {"text": ["A: ", "B: "], "markdown": ["- **A**: ", "- **B**: "]}[name]
    for begin, label in zip(begins, labels, strict=True):
        assert flat.count(label) == 1 and begin + label in flat
    assert "Difference from B, paired by seed" in flat and REMARK in flat


def test_programs_and_other_tables_get_the_labels(tmp_path):
    one = comparison(tmp_path, SETS)
    labels = [group.label for group in one.groups]
    assert [group["label"] for group in json.loads(write(one, "json"))["groups"]] == labels
    assert all(label in write(one, "csv").decode().replace('""', '"') for label in labels)


def test_short_labels_stay_where_they_are(tmp_path):
    one = comparison(tmp_path, SHORT)
    same, legend = lettered(one)
    assert same is one and legend == {}
    assert "Groups:" not in write(one, "text").decode() and "- **A**" not in write(one, "markdown").decode()


def test_letters_go_on_behind_z():
    assert [_letter(place) for place in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
