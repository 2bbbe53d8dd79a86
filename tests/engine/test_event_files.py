"""Event files for TensorBoard: what is in them, once each, also after a resume, and what happens without the extra."""

import importlib.util
import os
import struct

import pytest

from ssfnas_cli.engine.event_files import EventFile, refuse_without_tensorboard
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import SearchSettings, load_settings

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="needs tensorboardX: pip install 'ssfnas[tensorboard]'"
)
LINES = [
    {"phase": "search", "epoch": 1, "loss": 2.5, "steps": 4, "elapsed_seconds": 3.0},
    {"phase": "search", "epoch": 2, "loss": 1.5, "steps": 4, "elapsed_seconds": 6.0},
]


def read(folder):
    """(step, tag, value) of every scalar, and the times of the events, by the format of TFRecord."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, times = [], []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            scalars += [(event.step, value.tag, round(value.simple_value, 5)) for value in event.summary.value]
            times += [event.wall_time] if event.summary.value else []
    return scalars, times


@needs_extra
def test_each_epoch_is_there_once_at_its_step_and_time(tmp_path):
    with EventFile.begin(tmp_path, LINES) as file:
        file.add({"phase": "search", "epoch": 3, "loss": 0.5, "word": "no number"})
    scalars, times = read(tmp_path / "tensorboard")
    assert [one for one in scalars if one[1] == "search/loss"] == [
        (1, "search/loss", 2.5),
        (2, "search/loss", 1.5),
        (3, "search/loss", 0.5),
    ]
    assert (2, "search/steps", 4.0) in scalars and not [tag for _, tag, _ in scalars if "word" in tag or "epoch" in tag]
    assert times[1] - times[0] == pytest.approx(3.0, abs=1.0), "the seconds between the epochs, not between the writes"


@needs_extra
def test_a_resume_replaces_the_file_and_leaves_what_is_not_ours(tmp_path):
    for epochs in (1, 2):
        with EventFile.begin(tmp_path, LINES[:epochs]):
            pass
        (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
    scalars, _ = read(tmp_path / "tensorboard")
    assert [step for step, tag, _ in scalars if tag == "search/loss"] == [1, 2]
    assert (tmp_path / "tensorboard" / "notes.txt").read_text() == "mine"


@needs_extra
def test_a_folder_that_cannot_be_written_costs_the_event_file_alone(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(Exception, match="tensorboard: is not a folder"), EventFile.begin(tmp_path, LINES):
        pass
    (tmp_path / "tensorboard").unlink()
    (tmp_path / "tensorboard").mkdir(mode=0o500)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    with EventFile.begin(tmp_path, LINES) as file:
        assert file is None
    assert "no event files" in caplog.text


@needs_extra
def test_a_search_writes_them_and_a_resumed_one_has_no_epoch_twice(tiny_digits, tmp_path):
    flags = {"channels": 2, "layers": 3, "batch_size": 64, "kernels": "torch", "data": str(tiny_digits.path)}
    flags |= {"epochs": 2, "ops": ("none", "skip_connect", "max_pool_3x3"), "tensorboard": True}
    settings = load_settings(SearchSettings, flags=flags)
    run_search(settings, tmp_path / "run", False)
    folder = tmp_path / "run" / "tensorboard"
    before, _ = read(folder)
    assert {step for step, _, _ in before} == {1, 2} and len(before) == len(set(before))
    assert "search/accuracy_alpha_half" in {tag for _, tag, _ in before}
    for path in (tmp_path / "run" / "status.json", *folder.iterdir()):
        path.unlink()  # as if it had been killed before it was done
    run_search(settings, tmp_path / "run", False)
    after, _ = read(folder)
    assert after == before


def test_without_the_extra_one_line_names_it_before_anything_is_begun(tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ssfnas\[tensorboard\]'"):
        refuse_without_tensorboard()
    flags = {"data": str(tiny_digits.path), "tensorboard": True, "kernels": "torch", "channels": 2, "layers": 3}
    with pytest.raises(UsageError, match="tensorboardX"):
        run_search(load_settings(SearchSettings, flags=flags), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
