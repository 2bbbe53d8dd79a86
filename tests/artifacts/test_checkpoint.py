import json

import pytest
import torch

from ssfnas_cli.artifacts.checkpoint import list_checkpoints, load_checkpoint, load_newest, save_checkpoint
from ssfnas_cli.artifacts.files import sha256_file
from ssfnas_cli.errors import DiskError, InputError


def save(folder, number, keep=2):
    return save_checkpoint(
        folder, {"x": torch.full((50,), float(number))}, {"step": number, "mean": 0.1 * number}, keep
    )


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path / "checkpoints", number)
    return tmp_path / "checkpoints"


def spoil(path):
    (path / "tensors.safetensors").write_bytes(b"junk")


def test_the_newest_come_back_exactly_and_older_ones_are_pruned(folder):
    assert names(folder) == ["0000000002", "0000000003"]
    newest = load_newest(folder)
    assert newest.state == {"step": 3, "mean": 0.1 * 3}
    assert torch.equal(newest.tensors["x"], torch.full((50,), 3.0))
    save(folder, 4, keep=1)
    assert names(folder) == ["0000000004"]


def test_where_there_never_was_one_there_is_none(tmp_path):
    assert load_newest(tmp_path / "checkpoints") is None


def test_a_manifest_states_sizes_and_sums_and_is_written_last(folder):
    path = list_checkpoints(folder)[-1]
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"tensors.safetensors", "state.json"}
    for name, claim in manifest["files"].items():
        assert claim == {"bytes": (path / name).stat().st_size, "sha256": sha256_file(path / name)}
        assert (path / name).stat().st_mtime_ns <= (path / "manifest.json").stat().st_mtime_ns


def test_damaged_ones_are_passed_over_and_do_not_count_among_those_to_keep(folder, caplog):
    spoil(folder / "0000000003")
    assert load_newest(folder).state["step"] == 2
    assert "0000000003" in caplog.text
    save(folder, 4)
    assert names(folder) == ["0000000002", "0000000003"]
    assert load_newest(folder).state["step"] == 4
    assert (folder / "0000000003.damaged-1").is_dir()


def test_where_all_are_damaged_none_is_renamed_and_the_newest_is_named(folder):
    for path in list_checkpoints(folder):
        spoil(path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"no sound checkpoint.*0000000003/tensors\.safetensors"):
            load_newest(folder)
    assert names(folder) == ["0000000002", "0000000003"]


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b'{"schema": "ssfnas.checkpoint/2"}',
        b'{"schema": "ssfnas.checkpoint/1", "files": {"state.json": {}}}',
        b'{"schema": "ssfnas.checkpoint/1", "files": {"../../x": 1, "state.json": 2}}',
        b'{"schema": "ssfnas.checkpoint/1", "files": {"tensors.safetensors": 1, "state.json": null}}',
    ],
)
def test_a_manifest_that_says_something_else_is_refused(folder, manifest):
    path = list_checkpoints(folder)[-1]
    (path / "manifest.json").write_bytes(manifest)
    with pytest.raises(InputError, match=path.name):
        load_checkpoint(path)


def test_a_failed_save_leaves_what_was_there(folder, monkeypatch):
    from ssfnas_cli.artifacts import checkpoint

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(DiskError, match=r"0000000004.*No space left"):
        save(folder, 4)
    assert sorted(path.name for path in folder.iterdir()) == ["0000000002", "0000000003"]


def test_half_written_ones_are_not_seen(folder):
    (folder / ".0000000009.x.tmp").mkdir()
    (folder / "0000000009.damaged-1").mkdir()
    (folder / "0000000008").write_text("a file")
    assert names(folder) == ["0000000002", "0000000003"]
