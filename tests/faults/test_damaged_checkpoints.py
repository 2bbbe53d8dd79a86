"""Damaged checkpoints: the one before, with a warning; none left, exit 3; never a wrong load."""

import json
import shutil

import pytest
from faults_support import SEARCH, SHORT, assert_same_end

from ssfnas_cli.artifacts.checkpoint import list_checkpoints


def truncate(folder):
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def flip_bit(folder):
    file = folder / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def empty_state(folder):
    (folder / "state.json").write_bytes(b"")


def edit_state(folder):
    file = folder / "state.json"
    file.write_text(file.read_text().replace('"step": 4', '"step": 3'))


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def link_out(folder):
    file = folder / "tensors.safetensors"
    file.rename(folder.parent.parent / "elsewhere")
    file.symlink_to(folder.parent.parent / "elsewhere")


def pickle_with_payload(folder):
    payload = b"cos\nsystem\n(S'touch payload-ran'\ntR."
    (folder / "tensors.safetensors").write_bytes(payload)
    claim(folder)


def claim(folder):
    """Make the manifest agree with whatever the tensors file holds now."""
    from ssfnas_cli.artifacts.files import sha256_file

    manifest, file = json.loads((folder / "manifest.json").read_text()), folder / "tensors.safetensors"
    manifest["files"]["tensors.safetensors"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = [truncate, flip_bit, empty_state, edit_state, lose_manifest, link_out, pickle_with_payload]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(zygote, world, place, run, damage):
    newest = list_checkpoints(run / "checkpoints")[-1]
    damage(newest)
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 0, result.err
    assert f"checkpoint {newest.name} is passed over, it is damaged" in result.err
    assert "Traceback" not in result.err
    assert not (place / "payload-ran").exists()
    assert_same_end(run, world / "search")
    assert (run / "checkpoints" / f"{newest.name}.damaged-1").is_dir()  # renamed, so that the sound ones are kept


def test_no_sound_checkpoint_left_is_exit_3_that_names_the_file(zygote, place, run):
    for checkpoint, damage in zip(list_checkpoints(run / "checkpoints"), (flip_bit, pickle_with_payload), strict=True):
        damage(checkpoint)
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 3
    assert "no sound checkpoint is left" in result.err and "--force" in result.err
    assert str(list_checkpoints(run / "checkpoints")[-1].relative_to(place)) in result.err.splitlines()[-1]
    assert "Traceback" not in result.err and not (place / "payload-ran").exists()
    again = zygote.run([*SHORT, "-o", "run", "--force"], place)
    assert again.code == 0 and len(list_checkpoints(place / "run.old-1" / "checkpoints")) == 2


def test_checkpoints_that_were_deleted_do_not_make_a_run_start_over_in_silence(zygote, place, run):
    shutil.rmtree(run / "checkpoints")
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 3 and "checkpoints" in result.err and "is gone" in result.err


def test_a_damaged_status_is_no_reason_not_to_go_on(zygote, world, place, run):
    (run / "status.json").write_text('{"state": "done", "result": {')
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 0 and "status.json" in result.err
    assert_same_end(run, world / "search")


def test_a_damaged_config_is_exit_3_and_is_not_taken_for_another_run(zygote, place, run):
    (run / "config.json").write_text((run / "config.json").read_text().replace('"epochs": 3', '"epochs": 4', 1))
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 3 and "config.json" in result.err and "sha256" in result.err


def test_a_shard_with_a_flipped_bit_is_found_before_training(zygote, world, place):
    (place / "data").unlink()
    shutil.copytree(world / "data", place / "data")
    shard = next((place / "data").glob("train-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 4
    shard.write_bytes(data)
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 3 and shard.name in result.err
    assert not (place / "run").exists()
