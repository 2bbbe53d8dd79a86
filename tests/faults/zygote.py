"""Runs `ssfnas` in forks of one process that has imported torch already, so that an attempt costs no start.

The server reads a request per line on stdin: `{"argv", "cwd", "stdin", "stdout", "stderr", "faults", "environ"}`
starts a child and is answered with its pid, `{"wait": pid}` with its exit code (negative: the signal), either with an
error's text where the system refuses. `faults` names things to do to the child. `{"door": path}` opens a door (see
door.py) and is answered with 0.
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

AUDITED = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "os.utime"}


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
    """Do once what every command would do alike at its start: imports, and the parser of all flags."""
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401  the first optimizer imports it, which takes a second
    import typer

    import ssfnas_cli
    from ssfnas_cli import main

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
    apply(faults)
    try:
        main.run()
    except SystemExit as error:
        if isinstance(error.code, str):  # from a script
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else 1
    return 1


def apply(faults: dict) -> None:
    """Prepare this process for faults."""
    for fault, value in faults.items():
        globals()[f"fault_{fault}"](value)


def _on_step(act) -> None:
    """Call `act(phase, number)` before every training step; numbers count over epochs and phases of this process."""
    from ssfnas_cli.engine.candidate_trainings import CandidateTrainings
    from ssfnas_cli.engine.federated import FederatedSearch
    from ssfnas_cli.engine.perturbation_phase import PerturbationPhase
    from ssfnas_cli.engine.search_phase import SearchPhase
    from ssfnas_cli.engine.train_phase import TrainPhase

    for phase_class in (SearchPhase, FederatedSearch, TrainPhase, PerturbationPhase, CandidateTrainings):

        def step(self, epoch, step, batch, _original=phase_class.step):
            act(self, epoch, step)
            return _original(self, epoch, step, batch)

        phase_class.step = step


def fault_script(value) -> None:
    """Run the script of that path with the given arguments, not a command; what it would spawn are forks of it."""
    import multiprocessing

    forks = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forks
    sys.argv[0] = value
    sys.path.insert(0, str(Path(value).parent))

    from ssfnas_cli import main

    main.run = lambda: sys.exit(runpy.run_path(value, run_name="__main__") and 0)


def fault_executable(value) -> None:
    """The path that this process takes for Python's, and beside which it finds `ssfnas`."""
    sys.executable = value


def fault_signal_at_step(value) -> None:
    """[signal, phase, epoch, step, calls]: so many function calls after that step (or any after it) has begun.

    Calls are the clock, so that a moment is the same moment on every machine.
    """
    number, name, epoch, step, calls = value
    armed = []

    def act(phase, at_epoch, at_step) -> None:
        if not armed and phase.name == name and (at_epoch, at_step) >= (epoch, step):
            armed.append(True)
            if calls:
                _after_calls(calls, lambda: os.kill(os.getpid(), number))
            else:
                os.kill(os.getpid(), number)

    _on_step(act)


def _after_calls(calls, act) -> None:
    """Call `act` once this thread has called so many functions, C functions among them."""
    left = [calls]

    def count(frame, event, argument) -> None:
        if event in ("call", "c_call"):
            left[0] -= 1
            if left[0] == 0:
                sys.setprofile(None)
                act()

    sys.setprofile(count)


def fault_count_calls(value) -> None:
    """FILE: write there, a line for each step but the last, how many calls lie between its begin and the next's."""
    counted = [0]

    def count(frame, event, argument) -> None:
        counted[0] += event in ("call", "c_call")

    def act(phase, at_epoch, at_step) -> None:
        sys.setprofile(None)
        if counted[0]:
            with Path(value).open("a") as stream:
                stream.write(f"{counted[0]}\n")
        counted[0] = 0
        sys.setprofile(count)

    _on_step(act)


def fault_signals_at_file_event(value) -> None:
    """[signal, how many to let pass, word, kinds...]: at an operation on a file whose name has that word in it."""
    number, let_pass, word, *kinds = value
    left = [let_pass]

    def hook(event, arguments) -> None:
        if event in (kinds or AUDITED) and any(word in str(argument) for argument in arguments[:2]):
            left[0] -= 1
            if left[0] == -1:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def fault_signal_at_import(value) -> None:
    """[signal, module]: when a module is about to be imported."""
    number, module = value
    armed = []

    def hook(event, arguments) -> None:
        if event == "import" and arguments[0] == module and not armed:
            armed.append(True)
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def fault_wait_for_a_request_at_file_event(value) -> None:
    """[word, file]: at the first operation on a file with that word in its name, make `file` and wait for a signal."""
    word, file = value

    def act() -> None:
        from ssfnas_cli import stop

        Path(file).touch()
        while stop.requested_by(None) is None:
            time.sleep(0.01)

    _at_file_event(word, act)


def _at_file_event(word, act) -> None:
    """Call `act` at the first operation on a file with that word in its name."""
    armed = []

    def hook(event, arguments) -> None:
        if event in AUDITED and not armed and any(word in str(argument) for argument in arguments[:2]):
            armed.append(True)
            act()

    sys.addaudithook(hook)


def fault_time_is_up_at_step(value) -> None:
    """[epoch, step]: the program seems to have started ages ago once that step (or any after it) has begun."""
    from ssfnas_cli import stop

    def act(phase, at_epoch, at_step) -> None:
        if (at_epoch, at_step) >= tuple(value):
            stop.STARTED = time.monotonic() - 1e9

    _on_step(act)


def fault_poison(value) -> None:
    """[what, epoch, step]: a NaN in the loss, a weight or an alpha at that step."""
    what, epoch, step = value
    import torch

    def act(phase, at_epoch, at_step) -> None:
        if (at_epoch, at_step) != (epoch, step):
            return
        with torch.no_grad():
            if what == "alpha":
                phase.strategy.alphas["normal"][0, 0] = float("nan")
            elif what == "weight":
                next(phase.model.parameters()).view(-1)[0] = float("inf")
            elif what == "buffer":
                dict(phase.model.named_buffers())["encoder.stem.1.running_mean"][0] = float("inf")

    _on_step(act)
    if what == "loss":
        from ssfnas_cli.engine.search_phase import SearchPhase

        original = SearchPhase.step
        SearchPhase.step = lambda self, e, s, batch: {
            **original(self, e, s, batch),
            **({"weight_loss": float("nan")} if (e, s) == (epoch, step) else {}),
        }


def fault_nudge(value) -> None:
    """[epoch, step]: a weight changes a little before that step."""
    import torch

    def act(phase, at_epoch, at_step) -> None:
        if (at_epoch, at_step) == tuple(value):
            with torch.no_grad():
                next(phase.model.parameters()).view(-1)[0] += 1e-3

    _on_step(act)


def fault_another_version(value) -> None:
    """The version that this process says it has."""
    from ssfnas_cli import world

    world.__version__ = value


def fault_file_size_limit(value) -> None:
    """Bytes that a file may have: the disk is full for anything larger."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (value, value))


def fault_descriptors(value) -> None:
    """How many files may be open."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (value, value))


def fault_shared_memory(value) -> None:
    """The size of /dev/shm, as that of a container; it needs the right to mount."""
    import ctypes

    new_namespace, private = 0x20000, 0x4000 | 0x40000
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(new_namespace) == 0
    assert libc.mount(b"none", b"/", None, private, None) == 0
    assert libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={value}".encode()) == 0


def fault_on_host(value) -> None:
    """PID: go into the namespaces of a process, which stands for another host (as nsenter does)."""
    import ctypes

    libc, folder = ctypes.CDLL(None, use_errno=True), Path.cwd()
    files = [os.open(f"/proc/{value}/ns/{kind}", os.O_RDONLY) for kind in ("user", "net", "uts", "mnt")]
    for file in files:
        assert libc.setns(file, 0) == 0, os.strerror(ctypes.get_errno())
        os.close(file)
    os.chdir(folder)  # the mounts are others


def fault_umask(value) -> None:
    os.umask(value)


def fault_obey_permissions(value) -> None:
    """Even root: give up the capabilities to override permissions (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # effective; permitted and inheritable follow
    assert libc.capset(header, sets) == 0


def fault_steal_lock_at_step(value) -> None:
    """[folder, epoch, step]: another host's process takes the folder over."""
    folder, epoch, step = value

    def act(phase, at_epoch, at_step) -> None:
        if (at_epoch, at_step) == (epoch, step):
            content = {"host": "elsewhere", "pid": 1, "token": "theirs"}
            Path(folder, "lock.json").write_text(json.dumps(content))

    _on_step(act)


def fault_pause_at_step(value) -> None:
    """[epoch, step, file]: wait there until the file is gone."""
    epoch, step, file = value

    def act(phase, at_epoch, at_step) -> None:
        if (at_epoch, at_step) == (epoch, step):
            _pause(file)

    _on_step(act)


def fault_pause_at_file_event(value) -> None:
    """[word, file]: at the first operation on a file with that word in its name, make `file`, wait till it is gone."""
    word, file = value
    _at_file_event(word, lambda: _pause(file))


def _pause(file) -> None:
    Path(file).touch()
    while Path(file).exists():
        time.sleep(0.01)


def fault_memory_limit_mb(value) -> None:
    """More address space than the process has now, at most."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + value * 2**20,) * 2)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child's handlers are its own
    serve()
