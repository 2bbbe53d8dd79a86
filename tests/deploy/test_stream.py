"""Any number of files, in their order and in little memory, with a row for each."""

import csv
import itertools
import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ssfnas_cli import load
from ssfnas_cli.deploy.paths import Named
from ssfnas_cli.deploy.rows import columns, csv_format, json_lines
from ssfnas_cli.deploy.stream import AHEAD, Row, Stream, look_ahead


@pytest.fixture(scope="module")
def model(run):
    return load(run.path)


def all_rows(stream, named):
    return [row for rows in stream.rows(named) for row in rows]


def test_the_rows_are_the_predictions_of_the_files_one_by_one(model, photos):
    files = sorted(map(str, photos.glob("*/*"))) * 5  # more than a batch
    got = all_rows(Stream(model, model.shift_to("uniform"), 2), map(Named, files))
    assert [row.path for row in got] == files and not any(row.error for row in got)
    for row, prediction in zip(got, model.predict(files, prior="uniform"), strict=True):
        assert [name for name, _ in row.top] == [name for name, _ in prediction.top(2)]
        assert [p for _, p in row.top] == pytest.approx([p for _, p in prediction.top(2)], rel=1e-4)


def test_a_file_that_cannot_be_read_has_a_row_in_its_place(model, photos, tmp_path, caplog):
    good = str(next(photos.glob("*/*")))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text").write_text("no image")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("L", (20_000, 3)).save(tmp_path / "long.png")
    names = ["dot.png", "empty.png", "long.png", "huge.png", "text", "nowhere.png"]
    named = [Named(good), *(Named(str(tmp_path / name)) for name in names), Named(good)]
    named += [Named(str(tmp_path / "text"), is_found=True), Named("img", "is a folder without images")]
    stream = Stream(model, model.shift_to(None), 1)
    got = all_rows(stream, named)
    assert [row.path for row in got] == [one.path for one in named if not one.is_found]
    errors = {row.path.removeprefix(f"{tmp_path}/"): row.error for row in got}
    assert errors.pop("empty.png") == "is an empty file"
    assert "pixels" in errors.pop("huge.png") and "known format" in errors.pop("text")
    assert errors.pop("nowhere.png") == "cannot be opened: No such file or directory"
    assert errors.pop("img") == "is a folder without images"
    assert errors == {good: "", "dot.png": "", "long.png": ""}
    assert got[0].top == got[7].top and (stream.num_read, stream.num_bad, stream.num_others) == (4, 5, 1)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 5 and f"{tmp_path}/empty.png: is an empty file" in told


def test_a_batch_of_nothing_but_bad_files(model):
    stream = Stream(model, model.shift_to(None), 1)
    got = all_rows(stream, (Named(f"{number}.png") for number in range(100)))
    assert len(got) == 100 and all(row.error and not row.top for row in got)


def test_files_without_an_end_are_read_only_as_far_as_needed(model, photos):
    taken = itertools.count()
    named = (Named(str(path)) for path in itertools.cycle(photos.glob("*/*")) if next(taken) >= 0)
    rows = Stream(model, model.shift_to(None), 1).rows(named)
    for _ in range(3):
        assert len(next(rows)) == 64
    rows.close()
    assert next(taken) <= 3 * 64 + AHEAD


@pytest.mark.parametrize(("num", "said"), [(0, r"0 images in [\d.]+ s$"), (1, r"1 image in [\d.]+ s$")])
def test_the_speed_of_nothing_is_not_told(model, num, said):
    stream = Stream(model, np.zeros(3), 1)
    stream.num_read = num
    assert re.fullmatch(said, stream.describe())
    stream.num_read = 10**9
    assert re.fullmatch(r"1,000,000,000 images in [\d.]+ s, [\d,]+ a second", stream.describe())


def test_order_is_kept_and_work_ahead_is_limited():
    lock, running, most = threading.Lock(), [0], [0]

    def act(number):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02 if number % 7 == 0 else 0.001)
        with lock:
            running[0] -= 1
        return -number

    drawn = []
    items = (drawn.append(number) or number for number in range(60))
    for place, (item, result) in enumerate(look_ahead(act, items, threads=3, ahead=8)):
        assert (item, result) == (place, -place)
        assert len(drawn) <= place + 8
    assert place == 59 and 1 < most[0] <= 3


def test_an_error_of_the_input_ends_it_and_leaves_no_thread():
    def broken():
        yield 1
        raise OSError("the list broke off")

    before = threading.active_count()
    with pytest.raises(OSError, match="broke off"):
        list(look_ahead(lambda item: item, broken(), threads=2, ahead=4))
    assert threading.active_count() == before


ROWS = [
    Row("a,b.png", [("cat", 0.9876543219), ("dog\n", 1e-9)]),
    Row("\udcff.png", [], 'is an "empty" file'),
    Row("x\x1b[31m.png", [("dog\n", 1.0), ("cat", 0.0)]),
]


def test_json_lines():
    lines = json_lines(ROWS).encode("utf-8", "backslashreplace").splitlines()
    first, bad, last = map(json.loads, lines)
    assert first == {
        "path": "a,b.png",
        "class": "cat",
        "probability": 0.987654,
        "top_k": [{"class": "cat", "probability": 0.987654}, {"class": "dog\n", "probability": 1e-9}],
        "error": None,
    }
    assert bad == {
        "path": "\udcff.png",
        "class": None,
        "probability": None,
        "top_k": [],
        "error": 'is an "empty" file',
    }
    assert last["path"] == "x\x1b[31m.png" and first.keys() == bad.keys()


def test_csv():
    header, write = csv_format(2)
    text = header + write(ROWS[:1]) + write(ROWS[1:])
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert list(rows[0]) == ["path", "class", "probability", "error", "class_2", "probability_2"]
    assert rows[0] == dict(zip(rows[0], ["a,b.png", "cat", "0.987654", "", "dog\n", "1e-09"], strict=True))
    assert rows[1]["path"] == "\udcff.png" and rows[1]["class"] == "" and rows[1]["error"] == 'is an "empty" file'
    assert csv_format(1)[0] == "path,class,probability,error\n"


@pytest.mark.parametrize("num_top", [1, 2, 5])
def test_columns_on_a_terminal(num_top):
    header, show = columns(["cat", "dog\n", "猫" * 20], num_top)
    lines = [header, *show(ROWS).splitlines(keepends=True)]
    assert all(line.endswith("\n") and line.count("\n") == 1 and "\x1b" not in line for line in lines)
    assert lines[1].startswith("cat ") and "98.8 %" in lines[1] and lines[1].endswith("  a,b.png\n")
    assert ("dog\\n 0.0 %" in lines[1]) == (num_top > 1)
    assert lines[2].startswith("unreadable") and lines[2].endswith("  \\udcff.png\n")
    starts = {line.index(path) for line, path in zip(lines, ["image", "a,b", "\\udc", "x\\x1b"], strict=True)}
    assert len(starts) == 1, "one column"


def test_of_equally_probable_classes_the_first_comes_first(model, monkeypatch):
    monkeypatch.setattr(model, "logits", lambda arrays: torch.zeros(len(arrays), 3))
    (top,) = Stream(model, np.zeros(3), 3)._top(np.zeros((1, 16, 16, 3), np.uint8))
    assert [name for name, _ in top] == model.class_names
