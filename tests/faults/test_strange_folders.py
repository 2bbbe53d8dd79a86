"""Folders that come from somebody else: links, pipes and devices under our names, other things beside our files."""

import json
import os
import shutil
import struct
import subprocess

import pytest
from faults_support import RETRAIN, SEARCH, SHORT, assert_same_end, wait_for

from ssfnas_cli.artifacts.checkpoint import list_checkpoints
from ssfnas_cli.artifacts.run import FILES


def contents(folder):
    """Every file under a folder, and what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(result, code, *words):
    assert result.code == code, result
    assert len(result.err.splitlines()) == 1 and all(word in result.err for word in words), result.err
    assert result.out == ""


# Links


def lead_out(path, outside):
    """Move what is at a path elsewhere, beside what somebody keeps there, and leave a link to it."""
    outside.mkdir()
    target = outside / path.name
    if path.exists():
        path.rename(target)
    else:
        target.write_text("precious")
    path.symlink_to(target)
    keep = target if target.is_dir() else outside
    (keep / ".mine.tmp").write_text("precious")
    (keep / ".0000000009.ssfnas-0123456789ab.tmp").mkdir()
    (keep / ".0000000009.ssfnas-0123456789ab.tmp" / "precious").write_text("precious")


@pytest.mark.parametrize("name", [*FILES, "checkpoints", "lock.json"])
def test_nothing_is_written_or_deleted_through_a_link_in_a_run_folder(zygote, place, run, name):
    lead_out(run / name, place / "outside")
    before = contents(place / "outside")
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code in (3, 4) and f"run/{name}: is a link" in result.err.splitlines()[-1], result
    assert "remove" in result.err.splitlines()[-1] and "epoch" not in result.err
    assert contents(place / "outside") == before and (run / name).is_symlink()


def test_no_checkpoint_is_read_or_pruned_through_a_link(zygote, place, run):
    oldest = list_checkpoints(run / "checkpoints")[0]
    lead_out(oldest, place / "outside")
    before = contents(place / "outside")
    refused(zygote.run([*SEARCH, "-o", "run"], place), 4, f"{oldest.name}: is a link")
    assert contents(place / "outside") == before


def test_a_log_that_shares_its_content_with_another_file_gets_its_own(zygote, world, place, run):
    os.link(run / "log.txt", place / "notes")
    before = (place / "notes").read_bytes()
    assert zygote.run([*SEARCH, "-o", "run"], place).code == 0
    assert (place / "notes").read_bytes() == before
    assert (run / "log.txt").read_bytes().startswith(before) and b"resuming" in (run / "log.txt").read_bytes()
    assert_same_end(run, world / "search")


def test_files_with_several_names_are_written_as_new_files(zygote, world, place, run):
    """As a backup by hard links leaves them."""
    shutil.copytree(run, place / "backup", copy_function=os.link)
    before = contents(place / "backup")
    assert zygote.run([*SEARCH, "-o", "run"], place).code == 0
    assert contents(place / "backup") == before
    assert_same_end(run, world / "search")


# Other things


def test_only_what_this_program_left_half_written_is_swept_away(zygote, place):
    run, argv = place / "run", [*SHORT, "-o", "run"]
    for word in ("checkpoints/.0000000002.ssfnas", ".status.json.ssfnas", ".lock."):
        assert zygote.run(argv, place, {"signals_at_file_event": [9, 3, word]}).code == -9
        assert [path for path in run.rglob(".*")], word
    mine = [run / ".backup.tmp", run / "checkpoints" / ".backup.tmp", run / ".status.json.k3x.tmp"]
    for path in mine[:2]:
        path.mkdir()
        (path / "chapter.tex").write_text("mine")
    mine[2].write_text("mine")
    assert zygote.run(argv, place).code == 0
    assert sorted(run.rglob(".*")) == sorted(mine)
    assert all((path / "chapter.tex").read_text() == "mine" for path in mine[:2])


def test_a_pruned_checkpoint_with_other_things_in_it_keeps_them(zygote, place, run):
    oldest = list_checkpoints(run / "checkpoints")[0]
    (oldest / "notes.txt").write_text("mine")
    assert zygote.run([*SEARCH, "-o", "run"], place).code == 0
    assert [path.name for path in oldest.iterdir()] == ["notes.txt"]
    assert len(list_checkpoints(run / "checkpoints")) == 3


@pytest.mark.parametrize("name", [".backup.tmp", ".git", ".config.json.k3x.tmp"])
def test_a_folder_with_nothing_but_dot_names_is_not_empty(zygote, place, name):
    (place / "thesis" / name).mkdir(parents=True)
    (place / "thesis" / name / "chapter.tex").write_text("mine")
    refused(zygote.run([*SEARCH, "-o", "thesis"], place), 4, "other things", name)
    assert (place / "thesis" / name / "chapter.tex").read_text() == "mine"


# Pipes and devices


def make_pipe(path):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


SHARD = "train-00000.safetensors"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["describe", "pipe"], "pipe"),
        (["retrain", "pipe", "-o", "new"], "pipe"),
        (["import-genotype", "pipe"], "pipe"),
        (["derive", "search"], "search/config.json"),
        (["derive", "search"], "search/status.json"),
        (["derive", "search"], "search/alphas.safetensors"),
        (["evaluate", "retrain"], "retrain/model.safetensors"),
        ([*SEARCH, "-o", "new"], "data/manifest.json"),
        ([*SEARCH, "-o", "new"], f"data/{SHARD}"),
        ([*SEARCH, "--data", "pipe", "-o", "new"], "pipe"),
    ],
)
def test_a_pipe_in_place_of_a_file_is_refused_at_once(zygote, world, place, argv, name):
    (place / "data").unlink()
    for folder in ("data", "search", "retrain"):
        shutil.copytree(world / folder, place / folder)
    make_pipe(place / name)
    refused(zygote.run(argv, place), 3, name)
    assert not (place / "new").exists()


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("genotype.json", "model.safetensors")])
def test_a_run_with_a_pipe_in_place_of_a_file_is_not_gone_on_with(zygote, place, run, name):
    make_pipe(run / name)
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code in (3, 4) and name in result.err and "epoch" not in result.err, result
    assert (run / name).is_fifo()


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_with_a_pipe_in_it_is_damaged(zygote, world, place, run, name):
    make_pipe(list_checkpoints(run / "checkpoints")[-1] / name)
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 0 and "is passed over, it is damaged" in result.err
    assert_same_end(run, world / "search")


def test_a_genotype_may_come_from_a_stream_or_through_a_link(zygote, place, stand_in):
    describe = ["describe", "--channels", "2", "--layers", "3"]
    (place / "linked.json").symlink_to("genotype.json")
    told = zygote.run([*describe, "genotype.json"], place).out
    assert told and zygote.run([*describe, "linked.json"], place).out == told
    for argument in ("<(cat genotype.json)", "/dev/stdin <genotype.json"):
        command = f"{stand_in} {' '.join(describe)} {argument}"
        done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, told), done.stderr


# Many runs


def test_one_bad_folder_does_not_keep_runs_from_listing_the_others(zygote, world, place, stopped):
    runs = place / "runs"
    shutil.copytree(world / "search", runs / "good")
    for name in ("pipe", "folder", "dangling", "nested", "pipe-status", "forbidden"):
        shutil.copytree(stopped, runs / name)
    for name, file in (("pipe", "config.json"), ("pipe-status", "status.json")):
        make_pipe(runs / name / file)
    (runs / "folder" / "config.json").unlink()
    (runs / "folder" / "config.json").mkdir()
    (runs / "dangling" / "config.json").unlink()
    (runs / "dangling" / "config.json").symlink_to("nowhere")
    (runs / "nested" / "config.json").write_text("[" * 100_000)
    (runs / "forbidden").chmod(0)
    result = zygote.run(["runs", "runs"], place, {"obey_permissions": True})
    (runs / "forbidden").chmod(0o755)
    assert result.code == 0, result.err
    states = {entry["path"]: entry["state"] for entry in result.json["runs"]}
    assert states.pop("runs/good") == "done"
    assert set(states.values()) == {"damaged"} and len(states) == 6
    assert all(entry["next"] for entry in result.json["runs"])


def test_many_readers_at_once_do_not_disturb_a_run_nor_each_other(zygote, world, place):
    reached = place / "reached"
    search = zygote.start([*SEARCH, "-o", "runs/a"], place, {"pause_at_step": [0, 2, str(reached)]})
    wait_for(reached.exists)
    readers = [zygote.start(["runs", "runs"], place) for _ in range(20)]
    reached.unlink()
    readers += [zygote.start(["runs", "runs"], place) for _ in range(20)]
    for reader in readers:
        result = zygote.wait(reader)
        assert result.code == 0, result.err
        (entry,) = result.json["runs"]
        assert entry["state"] in ("running", "done"), entry
    assert zygote.wait(search).code == 0
    assert_same_end(place / "runs" / "a", world / "search")


# Sizes and depths that are only claimed


def test_a_terabyte_that_is_only_claimed_is_refused_at_once(zygote, world, place):
    """A sparse file has any size and takes no room; to read it takes an hour."""
    claimed = 2**39
    header = json.dumps({"x": {"dtype": "U8", "shape": [claimed], "data_offsets": [0, claimed]}}).encode()
    (place / "data").unlink()
    for folder in ("data", "search", "retrain"):
        shutil.copytree(world / folder, place / folder)
    for file in ("search/alphas.safetensors", "retrain/model.safetensors", f"data/{SHARD}"):
        with (place / file).open("r+b") as stream:
            if "data/" not in file:
                stream.write(struct.pack("<Q", len(header)) + header)
            stream.truncate(8 + len(header) + claimed)
    manifest = json.loads((place / "data" / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["bytes"] = 8 + len(header) + claimed
    (place / "data" / "manifest.json").write_text(json.dumps(manifest))
    refused(zygote.run(["derive", "search"], place), 3, "alphas.safetensors", "on the disk")
    refused(zygote.run(["evaluate", "retrain"], place), 3, "model.safetensors", "on the disk")
    refused(zygote.run([*SEARCH, "-o", "new"], place), 3, SHARD, "on the disk")
    assert not (place / "new").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '{"a": ' + "1" * 5000 + "}"])
@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["describe", "genotype.json"], "genotype.json"),
        ([*SHORT, "-o", "new"], "data/manifest.json"),
        (["derive", "search"], "search/config.json"),
        (["derive", "search"], "search/status.json"),
    ],
)
def test_json_without_a_bottom_or_a_number_without_an_end_is_one_line(zygote, world, place, text, argv, name):
    (place / "data").unlink()
    (place / "genotype.json").unlink()
    for folder in ("data", "search"):
        shutil.copytree(world / folder, place / folder)
    (place / name).write_text(text)
    refused(zygote.run(argv, place), 3, name)


# Names


def test_names_that_would_steer_a_terminal_are_shown_escaped(zygote, place):
    name = "run\x1b[31m\u202e\x07\n"
    argv = [*RETRAIN, "--pretrain", "none", "--epochs", "1", "-o", name]
    assert zygote.run(argv, place).code == 0
    assert "run\\x1b[31m\\u202e\\x07\\n is done" in zygote.run(argv, place).err
    log = (place / name / "log.txt").read_text()
    assert "done: run\\x1b[31m\\u202e\\x07\\n" in log and "\x1b" not in log


def test_an_output_whose_name_cannot_be_recorded_is_refused_before_training(zygote, place):
    refused(zygote.run([*SHORT, "-o", "run\udcff"], place), 2, "run\\udcff: is not named in UTF-8")
    assert not [path for path in place.iterdir() if path.name.startswith("run")]


def test_a_run_below_a_name_that_cannot_be_recorded_is_told_from_a_damaged_one(zygote, world, place):
    shutil.copytree(world / "search", place / "own\udcff")
    for argv in (["describe", "own\udcff"], ["derive", "own\udcff", "--force"], ["compare", "own\udcff"]):
        refused(zygote.run(argv, place), 3, "own\\udcff", "not named in UTF-8: rename it")
    listed = zygote.run(["runs", "."], place)
    assert listed.code in (0, 3) and "own\\udcff" in listed.out + listed.err


def test_a_data_set_whose_name_cannot_be_recorded_is_refused_before_training(zygote, place):
    shutil.copytree(place / "data", place / "copy\udcff")
    refused(zygote.run([*SHORT, "--data", "copy\udcff", "-o", "run"], place), 3, "is not UTF-8 text", "copy\\udcff")
