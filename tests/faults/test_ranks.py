"""Several ranks of one run: who writes, how they stop together, and how all of them end when one fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults_support import DATASET, SHORT, assert_same_end, metrics_of
from PIL import Image
from ranks_support import SEARCH_ON_RANKS, free_port, ranks, said, torchruns

from ssfnas_cli.artifacts.model import load_model


def test_the_environments_of_these_tests_are_those_that_torchrun_gives(tmp_path):
    flags = ["--nproc-per-node", "2", "--master-addr", "localhost", "--master-port", free_port(), "--no-python"]
    told = 'env | grep -E "^(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT)=" >rank-$RANK'
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "sh", "-c", told]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for rank, environ in enumerate(torchruns(2)):
        given = dict(line.split("=", 1) for line in (tmp_path / f"rank-{rank}").read_text().splitlines())
        same = environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": flags[5]}
        assert given == same


def test_the_first_rank_alone_writes_and_prints(zygote, world, undisturbed):
    config = json.loads((undisturbed / "config.json").read_text())
    assert (config["environment"]["ranks"], config["environment"]["batch_stats"]) == (2, "global")
    mine, theirs = metrics_of(undisturbed), metrics_of(world / "search")
    assert {line["steps"] for line in mine} == {line["steps"] for line in theirs}, "every image once an epoch"
    assert all(line["messages_per_step"] > 10 and line["bytes_per_step"] > 1000 for line in mine)
    for name in ("weight_loss", "alpha_loss"):  # the same search, up to the last bits of float32
        assert mine[0][name] == pytest.approx(theirs[0][name], rel=0.02)


def test_a_signal_to_any_rank_stops_all_of_them_at_one_step_and_the_rest_is_exact(zygote, undisturbed, place):
    command = SEARCH_ON_RANKS
    stopped = ranks(zygote, command, place, faults={1: {"signal_at_step": [signal.SIGUSR1, "search", 1, 2, 0]}})
    assert "stopped by SIGUSR1 at epoch 2, step 3" in said(stopped, 75)
    said(ranks(zygote, command, place), 0)
    assert_same_end(place / "run", undisturbed)


def test_a_time_limit_stops_all_ranks(zygote, place):
    command = [*SHORT, "-o", "run", "--max-time", "1:00:00"]
    stopped = ranks(zygote, command, place, faults={0: {"time_is_up_at_step": [0, 2]}})
    assert "--max-time 3600 s" in said(stopped, 75)


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_goes_on_with_another_number_of_ranks(zygote, world, place, size):
    command = [*SHORT, "-o", "run"]
    said(ranks(zygote, command, place, faults={0: {"signal_at_step": [signal.SIGTERM, "search", 0, 2, 0]}}), 75)
    err = said(ranks(zygote, command, place, size=size), 0)
    assert f"ranks (2 then, {size} now)" in err
    assert metrics_of(place / "run")[0]["steps"] == metrics_of(world / "search")[0]["steps"]


def test_a_rank_that_is_killed_ends_all_within_a_minute_and_the_run_goes_on(zygote, undisturbed, place):
    command = SEARCH_ON_RANKS
    began = time.monotonic()
    first, second = ranks(zygote, command, place, faults={1: {"signal_at_step": [signal.SIGKILL, "search", 1, 2, 0]}})
    assert second.code == -signal.SIGKILL and first.code == 5
    assert "rank 1 has ended without a word" in first.err and "the same command goes on" in first.err
    assert time.monotonic() - began < 120
    said(ranks(zygote, command, place), 0)
    assert_same_end(place / "run", undisturbed)


def test_the_first_rank_killed_ends_the_others(zygote, place):
    fault = {0: {"signal_at_step": [signal.SIGKILL, "search", 0, 2, 0]}}
    first, second, third = ranks(zygote, [*SHORT, "-o", "run"], place, size=3, faults=fault)
    assert (first.code, second.code, third.code) == (-signal.SIGKILL, 5, 5)
    last = second.err.splitlines()[-1]
    assert last.startswith("ssfnas: ") and "goes on" in last


def test_the_error_of_another_rank_is_printed_once(zygote, place, tmp_path):
    err = said(ranks(zygote, [*SHORT, "-o", "run"], [place, tmp_path]), 3)
    assert err.splitlines()[-1].startswith("ssfnas: rank 1: data: no such data set folder")
    assert not (place / "run").exists(), "nothing half-written"


def test_ranks_that_see_different_data_sets_end(zygote, place, tmp_path):
    assert zygote.run([*DATASET, "--seed", "1", "-o", "data"], tmp_path).code == 0
    err = said(ranks(zygote, [*SHORT, "-o", "run"], [place, tmp_path]), 3)
    assert "the ranks differ in data set (sha256)" in err.splitlines()[-1]
    assert not (place / "run").exists() and not (tmp_path / "run").exists()


def test_ranks_with_different_code_end(zygote, place):
    err = said(ranks(zygote, [*SHORT, "-o", "run"], place, faults={1: {"another_version": "0.0.1"}}), 3)
    assert "the ranks differ in ssfnas" in err and "0.0.1 on rank 1" in err
    assert len(err.splitlines()) == 1


def test_ranks_with_different_settings_end(zygote, place):
    children = []
    for seed, environ in enumerate(torchruns(2)):
        children.append(zygote.start([*SHORT, "-o", "run", "--seed", seed], place, environ=environ))
    err = said([zygote.wait(child) for child in children], 3)
    assert "the ranks differ in seed: 0 on rank 0, 1 on rank 1" in err


def test_weights_that_differ_stop_the_run_at_the_end_of_the_epoch(zygote, place):
    err = said(ranks(zygote, [*SHORT, "-o", "run"], place, faults={1: {"nudge": [0, 2]}}), 3)
    assert "ranks 0 and 1 no longer hold the same 'model.encoder" in err
    assert json.loads((place / "run" / "status.json").read_text())["state"] != "done"


def test_two_jobs_on_one_folder(zygote, place):
    pause = place / "paused"
    one = zygote.start([*SHORT, "-o", "run"], place, {"pause_at_step": [0, 1, str(pause)]})
    while not pause.exists():
        time.sleep(0.05)
    err = said(ranks(zygote, [*SHORT, "-o", "run"], place), 4)
    assert "is writing here" in err.splitlines()[-1]
    pause.unlink()
    assert zygote.wait(one).code == 0


@pytest.mark.parametrize(
    ("flags", "size", "words"),
    [
        (["--batch-size", "2"], 3, "a batch of the weight half has 2 images, and each of 3 ranks needs an image"),
        (["--batch-size", "3", "--set", "batch_stats=local"], 2, "needs two images (batch_stats=local)"),
        (["--dry-run"], 2, "leave torchrun or srun away"),
    ],
)
def test_what_cannot_be_divided_is_refused(zygote, place, flags, size, words):
    err = said(ranks(zygote, [*SHORT, *flags, "-o", "run"], place, size=size), 2)
    assert words in err.splitlines()[-1]
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MASTER_ADDR", "", "MASTER_ADDR is not set"),
        ("MASTER_PORT", "", "MASTER_PORT is not set"),
        ("MASTER_PORT", "here", "MASTER_PORT is 'here', which is no number"),
        ("RANK", "7", "RANK should be from 0 to 1"),
    ],
)
def test_a_wrong_environment_is_one_line_and_all_ranks_end(zygote, place, name, value, words):
    environs = [{**environ, name: value} for environ in torchruns(2)]
    results = ranks(zygote, [*SHORT, "-o", "run"], place, environs=environs)
    assert [result.code for result in results] == [2, 2]
    assert words in results[0].err and len(results[0].err.splitlines()) == 1


def test_an_interface_that_is_not_there_is_named(zygote, place):
    environs = [{**environ, "GLOO_SOCKET_IFNAME": "nowhere0"} for environ in torchruns(2)]
    results = ranks(zygote, [*SHORT, "-o", "run"], place, environs=environs)
    assert [result.code for result in results] == [5, 5]
    assert "cannot connect to each other" in results[0].err and "set GLOO_SOCKET_IFNAME" in results[0].err
    assert not (place / "run").exists()


def test_local_statistics_on_two_ranks(zygote, place):
    command = [*SHORT, "-o", "run", "--set", "batch_stats=local"]
    said(ranks(zygote, command, place), 0)
    (line,) = metrics_of(place / "run")
    assert line["messages_per_step"] < 20, "no message for each batch normalisation"


def test_other_commands_are_those_of_the_first_rank(zygote, world, place):
    shutil.copytree(world / "search", place / "search")
    first, second = ranks(zygote, ["derive", "search", "--rule", "darts"], place)
    assert json.loads(first.out)["schema"] == "ssfnas.genotype/1" and first.code == 0
    assert (second.code, second.out, second.err) == (0, "", "")


def test_a_command_of_one_process_gives_what_it_gives_alone_and_says_that_the_others_end(zygote, world, place):
    shutil.copytree(world / "retrain", place / "retrain")
    argv = ["adjust", "retrain", "--data", "data", "--method", "logit", "-o"]
    one = zygote.run([*argv, "alone"], place)
    first, second = ranks(zygote, [*argv, "on-ranks"], place)
    assert (one.code, first.code, second.code, second.out, second.err) == (0, 0, 0, "", "")
    assert first.err.splitlines()[0].startswith("ssfnas: adjust is computed by one process: the other ranks (1) end")
    assert first.err.splitlines()[0].count("torchrun") == 1 and "one process" not in one.err
    (mine, card), (theirs, other) = (load_model(place / name / "model.safetensors") for name in ("on-ranks", "alone"))
    assert card == other and all(value.equal(theirs[name]) for name, value in mine.items())


def test_a_prediction_on_ranks_is_that_of_one_process(zygote, world, place):
    shutil.copytree(world / "retrain", place / "retrain")
    (place / "images").mkdir()
    for grey in range(0, 250, 50):
        Image.new("L", (8, 8), grey).save(place / "images" / f"{grey:03}.png")
    (place / "images" / "100.png").write_text("no image")
    paths = place / "paths"
    paths.write_text("".join(f"images/{grey:03}.png\n" for grey in [0, 50, 150, 200] * 300))
    argv = ["predict", "retrain", "images", "-"]
    one = zygote.wait(zygote.start(argv, place, stdin=paths))
    first, second = on_stdin(zygote, argv, place, paths)
    assert len(one.out.splitlines()) == 5 + 1200
    assert (one.code, first.code, first.out) == (3, 3, one.out)
    told = [line for line in one.err.splitlines() if "100.png" in line or "could not be read" in line]
    assert [first.err.count(line) for line in told] == [1, 1]
    assert (second.code, second.out, second.err) == (3, "", "")


def test_an_evaluation_on_ranks_is_that_of_one_process(zygote, world, place):
    shutil.copytree(world / "retrain", place / "retrain")
    one = zygote.run(["evaluate", "retrain", "--data", "data"], place)
    first, second = ranks(zygote, ["evaluate", "retrain", "--data", "data"], place)
    assert (first.code, second.code, second.out) == (0, 0, "")
    for split, facts in one.json["splits"].items():
        assert first.json["splits"][split]["confusion"] == facts["confusion"]


def on_stdin(zygote, argv, place, stdin):
    """Two ranks, the first of which has a file on standard input."""
    children = [
        zygote.start(argv, place, stdin=source, environ=environ)
        for source, environ in zip((stdin, os.devnull), torchruns(2), strict=True)
    ]
    return [zygote.wait(child) for child in children]


def test_the_first_rank_reads_stdin_for_all(zygote, world, place):
    shutil.copytree(world / "retrain", place / "retrain")
    printed = place / "printed.json"
    printed.write_text(json.dumps({"kind": "retrain-run", "path": "retrain"}))
    first, second = on_stdin(zygote, ["evaluate", "-", "--data", "data"], place, printed)
    assert first.code == 0, first.err
    assert first.json["run"] == "retrain"
    assert (second.code, second.out, second.err) == (0, "", "")


def test_a_step_of_slurm_makes_ranks_and_a_lone_allocation_does_not(zygote, place):
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    assert zygote.run([*SHORT, "-o", "alone"], place, environ=job).code == 0
    assert "messages_per_step" not in metrics_of(place / "alone")[0]
    step = {**job, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    environs = [
        {**step, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r), "MASTER_PORT": port}
        for port in [free_port()]
        for r in range(2)
    ]
    said(ranks(zygote, [*SHORT, "-o", "run"], place, environs=environs), 0)
    assert "messages_per_step" in metrics_of(place / "run")[0]
    assert Path(place / "run" / "genotype.json").exists()


FEDERATED = [
    *[*SEARCH_ON_RANKS, "--set", "sync=round", "--set", "clients=3", "--set", "local_steps=3"],
    *["--set", "clients_per_round=2"],
]


def test_clients_on_ranks_are_stopped_within_a_round_and_killed_and_the_rest_is_exact(zygote, world, place, tmp_path):
    """Saved at every step; the clients' momenta lie on different ranks, and all are in the first one's checkpoint."""
    (tmp_path / "data").symlink_to(world / "data")
    said(ranks(zygote, FEDERATED, tmp_path), 0)
    stopped = ranks(zygote, FEDERATED, place, faults={1: {"signal_at_step": [signal.SIGUSR1, "search", 0, 1, 0]}})
    assert "stopped by SIGUSR1 at epoch 1, step 2" in said(stopped, 75)
    killed = ranks(zygote, FEDERATED, place, faults={1: {"signal_at_step": [signal.SIGKILL, "search", 1, 2, 0]}})
    assert [result.code for result in killed] == [5, -signal.SIGKILL]
    said(ranks(zygote, FEDERATED, place), 0)
    assert_same_end(place / "run", tmp_path / "run")
    config = json.loads((place / "run" / "config.json").read_text())
    assert config["environment"]["ranks"] == 2 and "batch_stats" not in config["environment"]


def test_clients_go_on_with_another_number_of_ranks(zygote, place):
    stop = {"signal_at_step": [signal.SIGTERM, "search", 0, 1, 0]}
    said(ranks(zygote, FEDERATED, place, faults={0: stop}), 75)
    err = said(ranks(zygote, FEDERATED, place, size=3), 0)
    assert "ranks (2 then, 3 now)" in err and "batch_stats" not in err
    assert len(metrics_of(place / "run")) == 2
