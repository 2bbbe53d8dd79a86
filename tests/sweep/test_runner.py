"""The queue: order, failures, what depends on them, sharing the cores, stopping. The children are a stand-in script."""

import os
import time
from pathlib import Path

import pytest

from ssfnas_cli import stop
from ssfnas_cli.sweep import runner as running
from ssfnas_cli.sweep.cells import Cell
from ssfnas_cli.sweep.runner import DONE, FAILED, NOT_RUN, STOPPED, WAITING, Runner

STUB = """
echo "$2" >>started
echo "$$" >"pid-$2"
case $1 in
    ok) ;;
    fail) echo 'ssfnas: setting is wrong' >&2; echo 'ssfnas: warning: by the way' >&2; exit 3 ;;
    bug) echo 'Traceback' >&2; echo 'KeyError: 3' >&2; exit 1 ;;
    mute) exit 1 ;;
    killed) kill -KILL $$ ;;
    for) until [ -e "pid-$3" ]; do sleep 0.01; done ;;
    until-asked) trap 'touch saved; exit 75' TERM; touch ready; while :; do sleep 0.01; done ;;
    words) echo "$@ OMP=${OMP_NUM_THREADS:-none}" >words ;;
esac
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """`play({name: (command, needs)}, ...)` runs cells with the stand-in and returns the runner."""
    (tmp_path / "stub.sh").write_text(STUB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "PROGRAM", ("bash", "stub.sh"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def run(plan, jobs=1, threads=0, done=(), stage="retrain"):
        cells = []
        for name, (command, *needs) in plan.items():
            first, *more = command.split()
            cells.append(Cell(stage, name, (first, name, *more), Path(name), tuple(needs)))
        runner = Runner(cells, lambda cell: cell.name in done, Path("out"), jobs, threads)
        runner.asked = runner.run()
        return runner

    return run


def states(runner):
    return {name: progress.state for name, progress in runner.progress.items()}


def started():
    return Path("started").read_text().split() if Path("started").exists() else []


def test_a_cell_runs_once_and_after_what_it_needs(play):
    runner = play({"a": ("ok",), "b": ("ok", "a"), "c": ("ok", "a"), "d": ("ok", "b", "c")}, jobs=2)
    order = started()
    assert sorted(order) == ["a", "b", "c", "d"] and order[0] == "a" and order[-1] == "d"
    assert set(states(runner).values()) == {DONE} and runner.asked is None
    assert Path("out/logs/d.log").read_text() == "$ ssfnas ok d\n"


def test_what_is_done_is_not_run(play):
    runner = play({"a": ("fail",), "b": ("ok", "a")}, done=("a",))
    assert started() == ["b"] and set(states(runner).values()) == {DONE}


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("fail", "setting is wrong"),
        ("bug", "exit code 1: KeyError: 3"),
        ("mute", "exit code 1: it said nothing"),
        ("killed", "it was killed by SIGKILL (out of memory?)"),
    ],
)
def test_a_failure_is_told_and_stops_only_what_needs_it(play, command, why):
    plan = {"a": (command,), "b": ("ok", "a"), "c": ("ok", "b"), "d": ("ok",)}
    runner = play(plan)
    assert states(runner) == {"a": FAILED, "b": NOT_RUN, "c": NOT_RUN, "d": DONE}
    assert [runner.progress[name].why for name in "abc"] == [why, "a has failed", "b was not run"]
    assert started() == ["a", "d"]
    assert runner.progress["a"].facts == {"name": "a", "stage": "retrain", "state": "failed", "error": why}
    again = play({"a": ("mute",)})
    assert again.progress["a"].why == "exit code 1: it said nothing", "what it said before does not count"
    assert Path("out/logs/a.log").read_text().count("$ ssfnas") == 2


def test_so_many_run_at_a_time_and_no_more(play):
    """Two that wait for each other end only if they run at once; a third begins when one of them has ended."""
    play({"a": ("for b",), "b": ("for a",), "c": ("ok",)}, jobs=2)
    assert started()[-1] == "c"


@pytest.mark.parametrize(
    ("stage", "threads", "said"),
    [
        ("retrain", 0, "words a OMP=none"),
        ("retrain", 3, "words a --threads 3 OMP=3"),
        ("data", 3, "words a OMP=3"),
        ("derive", 3, "words a OMP=3"),
    ],
)
def test_the_cores_are_shared(play, stage, threads, said):
    play({"a": ("words",)}, threads=threads, stage=stage)
    assert Path("words").read_text() == f"{said}\n"


def test_threads_that_the_file_names_stay(play):
    play({"a": ("words --threads 5",)}, threads=3)
    assert Path("words").read_text().startswith("words a --threads 5 OMP")


def test_the_share_of_threads():
    cores = running.usable_cores()
    assert running.share_of_threads(1) == 0 and running.share_of_threads(2) == max(1, cores // 2)
    assert running.share_of_threads(10 * cores) == 1


def test_a_stop_ends_the_children_cleanly_and_begins_nothing(play, monkeypatch):
    asked = lambda max_time: "SIGTERM" if Path("ready").exists() else None
    monkeypatch.setattr(stop, "requested_by", asked)
    runner = play({"a": ("until-asked",), "b": ("ok", "a"), "c": ("ok",)})
    assert runner.asked == "SIGTERM" and started() == ["a"]
    assert states(runner) == {"a": STOPPED, "b": WAITING, "c": WAITING}
    assert not is_alive(int(Path("pid-a").read_text()))


def test_a_stop_between_two_cells_is_not_taken_for_the_end(play, monkeypatch):
    answers = iter([None, "SIGTERM"])
    monkeypatch.setattr(stop, "requested_by", lambda max_time: next(answers, "SIGTERM"))
    runner = play({"a": ("ok",)})
    assert runner.asked == "SIGTERM" and states(runner) == {"a": WAITING} and not started()


def test_an_error_of_our_own_leaves_no_child_behind(play, monkeypatch):
    """`is_done` of the second cell fails while the first one runs: the first is asked to save and waited for."""

    class Failing(tuple):
        def __contains__(self, name):
            if name == "b":
                while not Path("ready").exists():
                    time.sleep(0.01)
                raise OSError("no disk")
            return False

    with pytest.raises(OSError, match="no disk"):
        play({"a": ("until-asked",), "b": ("ok",)}, jobs=2, done=Failing())
    assert Path("saved").exists() and not is_alive(int(Path("pid-a").read_text()))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
