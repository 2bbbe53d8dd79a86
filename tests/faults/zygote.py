"""Runs `ssfnas` in forks of one process that has imported torch already, so that an attempt costs no start.

The server reads a request per line on stdin: `{"argv", "cwd", "stdin", "stdout", "stderr", "faults", "environ"}`
starts a child and is answered with its pid, `{"wait": pid}` with its exit code (negative: the signal), either with an
error's text where the system refuses. `faults` names things to do to the child (see injected.py). `{"door": path}`
opens a door (see door.py) and is answered with 0.
"""

import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import injected


def serve() -> None:
    prepare()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "door" in request:
                _open_door(request["door"])  # which answers
                continue
            answer = _wait(request["wait"]) if "wait" in request else _fork(partial(_child, request))
        except OSError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)


def prepare() -> None:
    """Do once what every command would do alike at its start: imports, and the parser of all flags.

    Dry runs time as few steps as they may, where the program takes up to ten seconds for it.
    """
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401  the first optimizer imports it, which takes a second
    import typer

    import ssfnas_cli
    from ssfnas_cli import main
    from ssfnas_cli.engine import dry_run

    dry_run.ENOUGH_SECONDS = 0.0
    for package in ("artifacts", "commands", "data", "deploy", "engine", "nets", "results", "sweep"):
        folders = [str(Path(folder, package)) for folder in ssfnas_cli.__path__]
        for module in pkgutil.walk_packages(folders, f"ssfnas_cli.{package}."):
            importlib.import_module(module.name)
    main.app = typer.main.get_command(main.app)  # which a call of the application begins with
    gc.freeze()  # a child's garbage collections leave the pages alone that it shares with this process


def _wait(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _fork(act) -> int:
    pid = os.fork()
    if pid == 0:
        _end_with(act)
    return pid


def _end_with(act) -> None:
    """Do something, and end this process with the exit code that it returns."""
    code = 1
    try:
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens: this process must not go on as a second server
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _open_door(path: str) -> None:
    """Keep a door in a process of its own, which ends with this one."""
    import door

    theirs, ours = os.pipe()

    def keep() -> int:
        os.close(ours)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        door.keep(path, theirs, lambda request: _end_with(lambda: _visitor(request)))
        return 0

    _fork(keep)
    os.close(theirs)


def _child(request: dict) -> int:
    """Run the command. Returns its exit code."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python begins
    os.chdir(request["cwd"])
    os.environ.update(request["environ"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, number)
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    return _run(request["argv"], request["faults"])


def _visitor(request: dict) -> int:
    """Run the command of somebody at the door, in his environment. Returns its exit code."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python begins
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding, "backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    from ssfnas_cli.sweep import costs, runner

    costs.PROGRAM = runner.PROGRAM = (request["program"],)  # a sweep's cells come through the door, too
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if Path(folder, "sitecustomize.py").is_file():  # what Python does when it starts
            runpy.run_path(str(Path(folder, "sitecustomize.py")))
    return _run(request["argv"], {})


def _run(argv: list[str], faults: dict) -> int:
    from ssfnas_cli import main, stop

    stop.STARTED = time.monotonic()
    sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = ["ssfnas", *argv]
    injected.apply(faults)
    try:
        main.run()
    except SystemExit as error:
        if isinstance(error.code, str):  # from a script
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else 1
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child's handlers are its own
    serve()
