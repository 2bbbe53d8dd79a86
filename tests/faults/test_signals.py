"""Requests to stop: the run saves at the next step and leaves with 75, or 130 after an interrupt."""

import json
import os
import pty
import select
import signal
import subprocess
import sys

import pytest
from faults_support import ENVIRON, RETRAIN, SEARCH, SHORT, SSFNAS, assert_same_end, script, wait_for

from ssfnas_cli.artifacts.checkpoint import list_checkpoints, load_checkpoint

NAMES = ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT"]


def number(name):
    return getattr(signal, name)


def code(name):
    return 130 if name == "SIGINT" else 75


def status(run):
    return json.loads((run / "status.json").read_text())


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGINT"])  # all of them in the next test
def test_a_signal_in_a_step_stops_after_it_and_the_rest_is_exact(zygote, world, place, name):
    seldom = [*SEARCH, "--set", "save_minutes=10", "-o", "run"]
    result = zygote.run(seldom, place, {"signal_at_step": [number(name), "search", 1, 2, 0]})
    assert result.code == code(name)
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert name in last and "epoch 2, step 3" in last and "the same command goes on" in last
    assert status(place / "run")["state"] == "stopped"
    saved = load_checkpoint(list_checkpoints(place / "run" / "checkpoints")[-1]).state
    assert (saved["epoch"], saved["step"]) == (1, 3), "the step the signal came in is kept"
    assert not (place / "run" / "lock.json").exists()
    assert zygote.run(seldom, place).code == 0
    assert_same_end(place / "run", world / "search")


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_in_a_save_lets_it_finish(zygote, place, name):
    fault = {"signals_at_file_event": [number(name), 1, "state.json"]}
    result = zygote.run([*SEARCH, "-o", "run"], place, fault)
    assert result.code == code(name), result.err
    kept = [load_checkpoint(path) for path in list_checkpoints(place / "run" / "checkpoints")]
    assert kept[-1].state["step"] == status(place / "run")["step"] == len(kept)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_during_the_import_of_torch_is_kept_for_the_loop(place, name):
    process = script(*SEARCH, "-o", "run", cwd=place, faults={"signal_at_import": [number(name), "torch.nn"]})
    out, err = process.communicate()
    assert (process.returncode, out) == (code(name), ""), err
    assert "epoch 1, step 0" in err.splitlines()[-1]
    assert status(place / "run")["state"] == "stopped"


def test_a_command_that_only_reads_says_that_it_was_interrupted(zygote, world, place):
    argv = ["plot", "alphas", str(world / "search"), "-o", "alphas.svg"]
    result = zygote.run(argv, place, {"signal_at_import": [signal.SIGINT, "matplotlib.figure"]})
    assert (result.code, result.out, result.err) == (130, "", "ssfnas: interrupted\n")
    assert not (place / "alphas.svg").exists()


def making_a_data_set(place, name="d"):
    """A process that makes a data set of gigabytes, and has begun to write."""
    command = [SSFNAS, "make-dataset", "--image-size", "2048", "--set", "shard_mb=16", "-o", name]
    child = subprocess.Popen(command, env=ENVIRON, cwd=place, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(place.glob(f".{name}.ssfnas-*.tmp/*.safetensors*")) or child.poll() is not None)
    assert child.poll() is None, "it had ended already"
    return child


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_data_set_that_is_being_made_is_left_without_a_trace(place, name):
    child = making_a_data_set(place)
    child.send_signal(number(name))
    _, err = child.communicate(timeout=60)
    assert child.returncode == code(name), err
    assert err.splitlines()[-1] == f"ssfnas: stopped by {name} before the end; nothing is left behind"
    assert not list(place.glob(".*")) and not (place / "d").exists()


def test_what_a_killed_command_left_of_a_data_set_is_deleted_by_the_next_one(place):
    child = making_a_data_set(place)
    child.kill()
    child.communicate(timeout=60)
    assert len(list(place.glob(".d.ssfnas-*.tmp"))) == 1
    alive = making_a_data_set(place, "e")
    alive.send_signal(signal.SIGSTOP)
    assert not list(place.glob(".d.*"))
    subprocess.run(
        [SSFNAS, "make-dataset", "-q", "-o", "other"], env=ENVIRON, cwd=place, check=True, capture_output=True
    )
    assert [path.name[:3] for path in place.glob(".*")] == [".e."] and alive.poll() is None, "that one is being made"
    alive.send_signal(signal.SIGCONT)
    alive.terminate()
    alive.communicate(timeout=60)
    assert not list(place.glob(".*")) and (place / "other").is_dir()


def read(path):
    try:
        with open(path) as stream:  # noqa: PTH123
            return stream.read()
    except OSError:
        return ""


def test_an_interrupt_during_the_first_imports_is_one_line(tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    command = [SSFNAS, "--help"]
    result = subprocess.run(command, env={**ENVIRON, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "ssfnas: interrupted\n")


def test_a_second_interrupt_leaves_at_once(zygote, place):
    flag = place / "paused"
    child = zygote.start([*SHORT, "-o", "run"], place, {"pause_at_step": [0, 2, str(flag)]})
    wait_for(flag.exists)
    os.kill(child.pid, signal.SIGINT)
    wait_for(lambda: "stopping after this step; Ctrl-C again leaves at once\n" in child.err.read_text())
    os.kill(child.pid, signal.SIGINT)
    assert zygote.wait(child).code == 130
    assert flag.exists(), "the step has not ended: only the second one ended the process"
    assert zygote.run([*SHORT, "-o", "run"], place).code == 0


def test_only_an_interrupt_is_acknowledged_and_only_once(zygote, place):
    """A person waits for the answer; a queue does not read it."""
    for name, times in (("SIGTERM", 0), ("SIGINT", 1)):
        fault = {"signal_at_step": [number(name), "search", 0, 2, 0]}
        assert zygote.run([*SHORT, "-o", name], place, fault).err.count("stopping after this step") == times


LONG_CALL = """
import ctypes, sys, threading
from ssfnas_cli import stop

stop.install_handlers()
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)  # zeros: a mutex that is free
libc.pthread_mutex_lock(mutex)
threading.Thread(target=lambda: (sys.stdin.readline(), libc.pthread_mutex_unlock(mutex)), daemon=True).start()
print("begun", flush=True)
libc.pthread_mutex_lock(mutex)  # sleeps, and no signal ends it, only the thread
print(stop.requested_by(None))
"""


@pytest.fixture
def in_a_long_call():
    """A process with our handlers that is inside a call which no signal ends. A line on its stdin ends it."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", LONG_CALL], **streams) as process:
        assert process.stdout.readline() == "begun\n"
        wait_for(lambda: read(f"/proc/{process.pid}/stat").rpartition(")")[2].split()[:1] == ["S"])
        yield process
        process.kill()


def test_an_interrupt_is_acknowledged_while_one_long_call_holds_the_step(in_a_long_call):
    """A handler waits for a C call to end, a backward pass perhaps; the answer must not."""
    in_a_long_call.send_signal(signal.SIGINT)
    assert in_a_long_call.stderr.readline() == "stopping after this step; Ctrl-C again leaves at once\n"
    assert not select.select([in_a_long_call.stdout], [], [], 0)[0], "the call is over: the test would prove nothing"
    assert in_a_long_call.communicate("let it go\n")[0] == "SIGINT\n"


def test_a_second_interrupt_leaves_at_once_from_one_long_call(in_a_long_call):
    """Python calls the handler once for both, after the call."""
    in_a_long_call.send_signal(signal.SIGINT)
    in_a_long_call.stderr.readline()
    in_a_long_call.send_signal(signal.SIGINT)
    assert in_a_long_call.wait(60) == 130
    assert in_a_long_call.stdout.read() == ""


@pytest.mark.parametrize("phase", ["pretrain", "train"])
def test_a_retraining_stops_in_either_phase(zygote, world, place, phase):
    result = zygote.run([*RETRAIN, "-o", "run"], place, {"signal_at_step": [signal.SIGTERM, phase, 1, 1, 0]})
    assert result.code == 75
    assert status(place / "run")["phase"] == phase
    assert zygote.run([*RETRAIN, "-o", "run"], place).code == 0
    assert_same_end(place / "run", world / "retrain")


def test_the_time_limit_stops_like_a_signal_and_the_next_turn_goes_on(zygote, world, place):
    limited = [*SEARCH, "-o", "run", "--max-time", "9:00:00"]
    for epoch, step in ((0, 2), (0, 3), (2, 0)):
        result = zygote.run(limited, place, {"time_is_up_at_step": [epoch, step]})
        assert result.code == 75 and "--max-time" in result.err.splitlines()[-1]
        assert f"epoch {epoch + 1}, step {step + 1}" in result.err.splitlines()[-1]
    assert zygote.run(limited, place).code == 0
    assert_same_end(place / "run", world / "search")


def test_a_signal_to_every_process_of_the_job_leaves_loaders_out_of_it(zygote, world, place):
    """As a queue does it, or Ctrl-C: the loader processes must not die of it and take the run with them."""
    flag = place / "paused"
    argv = [*SEARCH, "-o", "run", "--workers", "2"]
    for name in ("SIGTERM", "SIGINT"):
        child = zygote.start(argv, place, {"pause_at_step": [1, 2, str(flag)]})
        wait_for(flag.exists)
        loaders = children(child.pid)
        assert len(loaders) == 2 and all(has_signal(loader, "SigIgn", number(name)) for loader in loaders)
        os.killpg(child.pid, number(name))
        flag.unlink()
        result = zygote.wait(child)
        assert result.code == code(name), result.err
        assert "Traceback" not in result.err
        (place / "run").rename(place / f"stopped-by-{name}")
    assert zygote.run([*SEARCH, "-o", "stopped-by-SIGTERM"], place).code == 0
    assert_same_end(place / "stopped-by-SIGTERM", world / "search")


def test_a_stage_that_waits_for_a_pipe_ends_at_once(place):
    process = script("retrain", "-", "-o", "run", cwd=place, stdin=subprocess.PIPE)
    wait_for(lambda: has_signal(process.pid, "SigCgt", signal.SIGTERM))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert "before anything was begun" in process.stderr.read()
    assert not (place / "run").exists()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def has_signal(pid, mask, what):
    """Whether a signal is in one of a process's masks: `SigCgt`, it has a handler; `SigIgn`, it is ignored."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(f"{mask}:"):
            return bool(int(line.split()[1], 16) & 1 << (what - 1))
    return False


def children(pid):
    """The processes that a process has started, whichever of its threads did."""
    lists = [read(f"/proc/{pid}/task/{thread}/children") for thread in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
    return [int(word) for text in lists for word in text.split()]


def test_a_run_is_listed_as_running_again_as_soon_as_it_goes_on(zygote, place):
    zygote.run([*SHORT, "-o", "run"], place, {"signal_at_step": [signal.SIGTERM, "search", 0, 2, 0]})
    flag = place / "paused"
    child = zygote.start([*SHORT, "-o", "run"], place, {"pause_at_step": [0, 3, str(flag)]})
    wait_for(flag.exists)
    assert status(place / "run")["state"] == "running"
    flag.unlink()
    assert zygote.wait(child).code == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_request_after_a_wait_is_over_is_left_to_the_loop_which_saves(name):
    code = (
        "import os, signal\nfrom ssfnas_cli import stop\nstop.install_handlers()\n"
        "with stop.interruptible():\n    pass\n"
        f"os.kill(os.getpid(), signal.{name})\nprint(stop.requested_by(None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_request_ends_code_that_catches_every_exception(name, code):
    """As `Path.is_dir` catches every ValueError: `predict` waited for the next path of its list forever."""
    lines = [
        "import os, signal, contextlib, time",
        "from ssfnas_cli import errors, stop",
        "stop.install_handlers()",
        "try:",
        "    with stop.interruptible('before a step'), stop.interruptible('in a step'):",
        "        with contextlib.suppress(Exception):",
        f"            os.kill(os.getpid(), signal.{name})",
        "            time.sleep(1)",
        "        print('went on')",
        "except errors.Stopped as error:",
        "    print(error, error.exit_code)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"stopped by {name} in a step {code}\n", "")


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored():
    """As under nohup."""
    code = (
        "import os, signal\nfrom ssfnas_cli import stop\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "stop.install_handlers()\nos.kill(os.getpid(), signal.SIGHUP)\nprint(stop.requested_by(None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_costs_nothing(world, place, stand_in, ignored):
    """The connection drops: the kernel sends SIGHUP, and writing to the terminal is an error from then on."""
    disposition = signal.SIG_IGN if ignored else signal.SIG_DFL
    ours, theirs = pty.openpty()
    argv = [stand_in, *SEARCH, "--epochs", "3" if ignored else "500", "-o", "run"]
    process = subprocess.Popen(
        argv,
        cwd=place,
        env={**os.environ, **ENVIRON},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: (os.login_tty(theirs), signal.signal(signal.SIGHUP, disposition)),
    )
    os.close(theirs)
    while not (place / "run" / "metrics.jsonl").exists() or b"left" not in os.read(ours, 65536):
        assert process.poll() is None
    os.close(ours)
    if ignored:
        assert process.wait(120) in (0, 5), "its result has nowhere to go"
        assert_same_end(place / "run", world / "search")
    else:
        assert process.wait(120) == 75
        assert status(place / "run")["state"] == "stopped"
