import logging

import pytest

from registry import SAMPLERS
from ssfnas_cli.artifacts.claim import finished_result, open_for_writing, set_run_aside
from ssfnas_cli.artifacts.lock import FolderLock
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.artifacts.run_list import DamagedRun, find_runs, seconds_since_update
from ssfnas_cli.console import log
from ssfnas_cli.engine.session import warn_of_a_large_batch, warn_of_differences
from ssfnas_cli.errors import InputError, OutputExistsError
from ssfnas_cli.settings import PluginSection, SearchSettings, build_plugin, load_settings

IDENTITY = {"seed": 0, "ops": ["none", "skip_connect"], "data_sha256": "ab"}
CONFIG = {"settings": {}, "data": {"path": "/data", "sha256": "ab"}, "environment": {}}


def make(path, state="done", kind="search", **facts):
    with open_for_writing(path, kind, CONFIG, IDENTITY) as run:
        if state:
            run.write_status(state, **facts)
    return path


def test_a_done_run_is_finished_and_another_identity_is_refused(tmp_path):
    path = make(tmp_path / "run", result={"kind": "search-run"})
    assert finished_result(path, "search", IDENTITY) == {"kind": "search-run", "path": str(path)}
    with pytest.raises(OutputExistsError, match=r"seed \(0 there, 1 here\), new \(unset there, 2 here\)"):
        finished_result(path, "search", IDENTITY | {"seed": 1, "new": 2})
    with pytest.raises(OutputExistsError, match="holds a search run"):
        finished_result(path, "retrain", IDENTITY)
    assert finished_result(tmp_path / "nowhere", "search", IDENTITY) is None


@pytest.mark.parametrize("state", ["running", "stopped", "diverged", None])
def test_a_run_that_is_not_done_has_no_result(tmp_path, state):
    assert finished_result(make(tmp_path / "run", state), "search", IDENTITY) is None


def test_writing_holds_the_lock_keeps_a_log_and_lets_go_on_errors(tmp_path):
    path = tmp_path / "run"
    log.setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), open_for_writing(path, "search", CONFIG, IDENTITY) as run:
        assert run.is_locked()
        with (
            pytest.raises(OutputExistsError, match="is writing here"),
            open_for_writing(path, "search", CONFIG, IDENTITY),
        ):
            pass
        log.info("said")
        raise ZeroDivisionError
    assert not RunFolder.open(path).is_locked()
    assert "INFO said" in (path / "log.txt").read_text()
    assert not [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]


def test_every_write_checks_the_lock(tmp_path):
    with open_for_writing(tmp_path / "run", "search", CONFIG, IDENTITY) as run:
        run.lock.path.write_text('{"token": "theirs"}')
        for write in (lambda: run.write_status("done"), lambda: run.write_metrics([{}])):
            with pytest.raises(OutputExistsError, match="took this folder over"):
                write()


def test_what_is_no_run_is_named_with_what_it_is(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    (tmp_path / "file").write_text("")
    run = make(tmp_path / "run")
    for path, kind, words in (
        (tmp_path / "data", None, "a data set, not a run"),
        (tmp_path / "file", None, "is a file"),
        (tmp_path / "nowhere", None, "no such run folder"),
        (tmp_path, None, "not a run folder"),
        (run, "retrain", "ssfnas derive"),
    ):
        with pytest.raises(InputError, match=words):
            RunFolder.open(path, kind)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path):
    from ssfnas_cli.artifacts.files import write_sealed_json

    run = make(tmp_path / "run")
    write_sealed_json(run / "config.json", {"schema": "ssfnas.run/9"})
    with pytest.raises(InputError, match="upgrade ssfnas"):
        RunFolder.open(run)


def test_moving_aside_keeps_the_run_and_takes_no_lock_along(tmp_path):
    path = make(tmp_path / "run")
    set_run_aside(path)
    assert not path.exists()
    assert RunFolder.open(tmp_path / "run.old-1").status()["state"] == "done"
    assert not (tmp_path / "run.old-1" / "lock.json").exists()
    set_run_aside(path)  # nothing there: nothing to do


def test_moving_aside_refuses_while_somebody_writes(tmp_path):
    path = make(tmp_path / "run")
    lock = FolderLock(path)
    lock.acquire()
    with pytest.raises(OutputExistsError, match="is writing here"):
        set_run_aside(path)
    lock.release()
    assert path.exists()


def test_runs_are_found_by_name_the_damaged_too_without_the_set_aside(tmp_path):
    for name in ("b", "a", "c"):
        make(tmp_path / name)
    make(tmp_path / "a")
    (tmp_path / "c" / "config.json").write_text("junk")
    (tmp_path / "notes").mkdir()
    set_run_aside(tmp_path / "b")
    make(tmp_path / "b")
    assert [run.path.name for run in find_runs(tmp_path)] == ["a", "b", "c"]
    assert [run.why for run in find_runs(tmp_path) if isinstance(run, DamagedRun)] == [
        f"{tmp_path}/c/config.json: is not whole JSON: Expecting value at line 1, column 1"
    ]
    assert [run.path.name for run in find_runs(tmp_path / "b.old-1")] == ["b.old-1"]
    assert 0 <= seconds_since_update(RunFolder.open(tmp_path / "a")) < 60


def test_differences_of_the_environment_are_one_warning(caplog):
    now = {"processor": "A", "torch": "2", "threads": 1, "kernels": "AVX2", "device": "cpu", "python": "3.11"}
    warn_of_differences(now, now | {"python": "3.12"})
    assert not caplog.records
    warn_of_differences({}, now)
    warn_of_differences(now, now | {"threads": 2, "kernels": "AVX512"})
    assert len(caplog.records) == 2
    assert "threads (1 then, 2 now), kernels (AVX2 then, AVX512 now)" in caplog.records[1].getMessage()


def test_a_batch_beyond_the_images_of_an_epoch_is_a_warning(caplog):
    settings = load_settings(SearchSettings, flags={"batch_size": 64})
    sample = lambda name, *counts: build_plugin(SAMPLERS, PluginSection(name=name), class_counts=list(counts))
    warn_of_a_large_batch(settings, sample("instance", 60, 6))
    assert not caplog.records
    for name, counts, shown in (("instance", (50, 13), 63), ("instance", (50, 14), 64), ("under", (60, 6), 12)):
        caplog.clear()
        warn_of_a_large_batch(settings, sample(name, *counts))
        assert f"--batch-size 64: an epoch has {shown} images, so it is one step" in caplog.text
