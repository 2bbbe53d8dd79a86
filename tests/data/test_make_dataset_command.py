"""What `make-dataset` prints, and how it names its folder."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ssfnas_cli.commands.make_dataset import default_path, describe, show_counts
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.settings import MakeDatasetSettings


def test_the_result_has_the_side_and_the_table_shows_names_as_they_are(make_folder, tmp_path, lines, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long path would be wrapped
    names = ["[red]cat", "dog [new]", "x[", "[bold"]
    root = make_folder(dict.fromkeys(names, 2), dict.fromkeys(names, 1))
    settings = MakeDatasetSettings(source="folder", root=str(root))
    data = build_dataset(settings, Path("out [b]x["), lines.append)
    assert describe(data)["image_size"] == 9 and describe(data)["dist"] == "natural"
    console = Console(file=io.StringIO(), width=200, highlight=False)
    show_counts(data)(console)
    shown = console.file.getvalue()
    assert all(name in shown for name in [*names, "out [b]x["])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "digits-exp-mu0.1-seed0"),
        ({"dist": "balance", "seed": 3, "max_per_class": 9, "image_size": 16}, "digits-balance-n9-16px-seed3"),
        ({"source": "folder", "root": "some/photos"}, "photos-natural-seed0"),
        (
            {"source": "folder", "root": "some/photos/.", "test_share": 0.3, "val_share": 0.1},
            "photos-natural-test0.3-val0.1-seed0",
        ),
    ],
)
def test_the_folder_is_named_after_the_settings(settings, name):
    assert default_path(MakeDatasetSettings(**settings).resolve_plugins()) == Path("data") / name


def test_an_output_that_is_not_utf8_is_refused_before_anything_is_made(tmp_path):
    script = Path(sys.executable).with_name("ssfnas")
    argv = [script, "make-dataset", "-q", "--max-per-class", "20", "-o", os.fsdecode(b"q\xff")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "not named in UTF-8" in done.stderr
    assert list(tmp_path.iterdir()) == []
