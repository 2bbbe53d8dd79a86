"""The faults that can be done to a process of ssfnas: signals, full disks, poisoned numbers, other hosts.

A test names them as `{"NAME": value}`; `apply` calls `fault_NAME(value)` in the process before its command runs.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

AUDITED = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "os.utime"}


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
