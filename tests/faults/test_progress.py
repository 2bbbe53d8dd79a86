"""Progress for both worlds, and `ssfnas runs`."""

import contextlib
import json
import os
import pty
import re
import select
import shutil
import subprocess

import pytest
from faults_support import ENVIRON, RETRAIN, SEARCH, assert_same_end, wait_for

from ssfnas_cli.artifacts.files import read_sealed_json, write_sealed_json

LINE = re.compile(
    r"search epoch \d/3 step \d/4: (\w+ -?[\d.e-]+, )+.*\d+:\d\d left, \d+ MB$",
)


def test_off_a_terminal_there_is_one_plain_line_per_interval(zygote, place):
    often = zygote.run([*SEARCH, "--set", "log_seconds=0.0001", "-o", "often"], place)
    lines = [line for line in often.err.splitlines() if " step " in line and "s a step" not in line]
    assert len(lines) == 12
    assert sum(bool(LINE.match(line)) for line in lines) >= 10, lines  # the first has no rate to judge the rest by
    assert "\x1b" not in often.err and "\r" not in often.err
    seldom = zygote.run([*SEARCH, "--epochs", "1", "-o", "seldom"], place)
    assert not [line for line in seldom.err.splitlines() if " left, " in line]
    assert len([line for line in seldom.err.splitlines() if "s a step" in line]) == 1
    quiet = zygote.run([*SEARCH, "--epochs", "1", "-q", "-o", "quiet"], place)
    assert quiet.err == "" and quiet.code == 0


@pytest.mark.parametrize("columns", [200, 80])
def test_on_a_terminal_a_live_bar_shows_time_left_epoch_accuracy_and_loss(place, stand_in, columns):
    main, terminal = pty.openpty()
    environ = {**os.environ, **ENVIRON, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"}
    environ.pop("NO_COLOR", None)
    argv = [*RETRAIN, "--pretrain", "none", "-o", "run"]
    process = subprocess.Popen(
        [stand_in, *argv], cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal, env=environ
    )
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal is gone with the process
        while select.select([main], [], [], 60)[0] and (part := os.read(main, 65536)):
            seen += part
    os.close(main)
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0, seen.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    facts = r"\d+:\d\d left, epoch 2/2 step \d+/7, train_accuracy [\d.]+, loss [\d.]+"
    assert re.search(rf"train .*{facts}", text)
    assert max(len(line) for line in re.split(r"[\r\n]+", text) if " left, " in line) <= columns
    assert "\x1b[?25l" in seen.decode()  # it is live: the cursor is hidden
    assert seen.decode().rstrip().endswith("next: ssfnas evaluate run")
    assert json.loads(out)["state"] == "done"


def test_a_resume_at_the_last_step_of_an_epoch_knows_the_steps_before(zygote, world, place):
    stop = {"signal_at_step": [15, "search", 1, 3, 0]}
    assert zygote.run([*SEARCH, "-o", "run"], place, stop).code == 75
    status = json.loads((place / "run" / "status.json").read_text())
    assert (status["epoch"], status["step"]) == (1, 4), "all steps of the epoch are done, its end is not"
    resumed = zygote.run([*SEARCH, "-o", "run"], place)
    assert resumed.code == 0 and "None" not in resumed.err
    assert len(re.findall(r"; [\d.]+ s a step$", resumed.err, re.MULTILINE)) == 2
    lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["step_seconds"] > 0 for line in lines)
    assert_same_end(place / "run", world / "search")


@pytest.fixture
def runs(zygote, world, place):
    """A folder with a run in every state."""
    folder = place / "runs"
    folder.mkdir()
    for name in ("search", "retrain"):
        shutil.copytree(world / name, folder / f"done-{name}")
    stop = {"signal_at_step": [15, "search", 1, 2, 0]}
    assert zygote.run([*SEARCH, "-o", "runs/stopped"], place, stop).code == 75
    assert zygote.run([*SEARCH, "-o", "runs/killed"], place, {"signal_at_step": [9, "search", 1, 2, 0]}).code == -9
    assert zygote.run([*SEARCH, "-o", "runs/diverged"], place, {"poison": ["loss", 0, 1]}).code == 3
    shutil.copytree(folder / "stopped", folder / "damaged")
    (folder / "damaged" / "status.json").write_text("{")
    shutil.copytree(folder / "stopped", folder / "broken")
    (folder / "broken" / "config.json").write_text("[]")
    (folder / "notes.txt").write_text("no run")
    (folder / "empty").mkdir()
    return folder


def test_runs_lists_every_state_with_what_to_do_next(zygote, place, runs):
    flag = place / "paused"
    child = zygote.start([*SEARCH, "-o", "runs/running"], place, {"pause_at_step": [1, 1, str(flag)]})
    wait_for(flag.exists)
    result = zygote.run(["runs", "runs"], place)
    flag.unlink()
    assert zygote.wait(child).code == 0
    assert result.code == 0
    listed = {entry["path"].removeprefix("runs/"): entry for entry in result.json["runs"]}
    assert {name: entry["state"] for name, entry in listed.items()} == {
        "broken": "damaged",
        "damaged": "damaged",
        "diverged": "diverged",
        "done-retrain": "done",
        "done-search": "done",
        "killed": "interrupted",
        "running": "running",
        "stopped": "stopped",
    }
    for name in ("stopped", "killed"):
        assert listed[name]["next"] == listed[name]["command"] and listed[name]["command"].startswith("ssfnas search ")
    assert listed["done-search"]["next"] == "ssfnas derive runs/done-search"
    assert listed["done-retrain"]["next"] == "ssfnas evaluate runs/done-retrain"
    assert listed["running"]["next"] == "wait" and "alpha_lr" in listed["diverged"]["next"]
    assert (listed["stopped"]["epoch"], listed["stopped"]["epochs"]) == (1, 3)
    assert set(listed["stopped"]["figures"]) >= {"weight_loss", "accuracy_alpha_half"}
    assert all(entry["age_seconds"] >= 0 for entry in listed.values())
    several = zygote.run(["runs", "runs/stopped", "runs/done-search"], place)
    assert [entry["path"] for entry in several.json["runs"]] == ["runs/stopped", "runs/done-search"]
    assert zygote.run(["runs", "runs", "gone"], place).code == 3


def test_runs_on_a_terminal_shows_every_run_with_what_to_do_next(place, stand_in, runs):
    status = read_sealed_json(runs / "stopped" / "status.json")
    status["last"] = {"weight_loss": None, "accuracy": "odd"}
    write_sealed_json(runs / "stopped" / "status.json", status)
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [stand_in, "runs", "runs"],
        cwd=place,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRON, "COLUMNS": "160"},
    )
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):
        while part := os.read(main, 65536):
            seen += part
    os.close(main)
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, err
    for word in (b"next: ", b"h ago", b"interrupted", b"diverged", b"damaged", b"1/3", b"ssfnas evaluate"):
        assert word in seen, word
