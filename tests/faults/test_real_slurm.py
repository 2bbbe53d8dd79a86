"""The scripts of examples/slurm under SLURM itself, on a cluster of two nodes that are this machine (`make slurm`).

It needs root and Debian's packages slurm-wlm, slurm-wlm-basic-plugins and munge. The daemons have a configuration,
ports and a folder of their own. test_slurm.py runs the same scripts with stand-ins for SLURM, everywhere.
"""

import json
import os
import shutil
import socket
import subprocess
import time

import pytest
from faults_support import RETRAIN, SEARCH, SSFNAS, TINY, assert_same_end, wait_for
from test_slurm import SLURM

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"/usr/sbin:{os.environ['PATH']}") is None]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed: {' '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the daemons of SLURM need root"),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1
MinJobAge=3600
NodeName=a1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 CoresPerSocket=4 RealMemory=8000
NodeName=a2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 CoresPerSocket=4 RealMemory=8000
PartitionName=main Nodes=a[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


@pytest.fixture(scope="module")
def controller(tmp_path_factory):
    """A cluster of two nodes; returns the environment that its commands need."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "state").mkdir()
    text = CONFIGURATION.format(host=socket.gethostname().split(".")[0], folder=folder, ports=free_ports(3))
    (folder / "slurm.conf").write_text(text)
    environ = {
        **os.environ,
        "PATH": f"{SSFNAS.parent}:{os.environ['PATH']}:/usr/sbin",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    key = folder / "munge.key"
    subprocess.run(["mungekey", "--create", "--keyfile", key], check=True, env=environ)
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "a1"],
        ["slurmd", "-D", "-N", "a2"],
    ]
    running = []
    try:
        for daemon in daemons:
            running.append(subprocess.Popen(daemon, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        wait_for(lambda: ask(environ, "sinfo", "-h", "-o", "%D %t") == "2 idle")
        yield environ
    finally:
        subprocess.run(["scancel", "--user=root"], env=environ)
        for daemon in reversed(running):
            daemon.terminate()
            daemon.wait(timeout=60)


def ask(environ, *command):
    return subprocess.run(command, env=environ, capture_output=True, text=True).stdout.strip()


def state_of(environ, job):
    return next(
        (word[9:] for word in ask(environ, "scontrol", "show", "job", job).split() if word[:9] == "JobState="), ""
    )


def wait_for_job(environ, job):
    """Wait until a job has ended for three seconds: one that is being requeued has failed for a moment.

    A requeued job would be begun after two minutes. It is begun after some seconds: in the second in which it was
    stopped, SLURM would take its credential for the one before, which is revoked.
    """
    ended_at = moved_at = time.monotonic()

    def ended():
        nonlocal ended_at, moved_at
        state = state_of(environ, job)
        if state == "PENDING" and time.monotonic() - moved_at > 10:
            ask(environ, "scontrol", "update", f"jobid={job}", "StartTime=now+4seconds")
            moved_at = time.monotonic()
        if state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            ended_at = time.monotonic()
        return time.monotonic() - ended_at > 3

    wait_for(ended)
    return state_of(environ, job)


def submit(environ, place, *words):
    done = subprocess.run(["sbatch", "--parsable", *words], cwd=place, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ASKED = ("--cpus-per-task=1", "--mem=1G", "--time=10")


def test_a_pipeline_of_five_jobs_ends_in_metrics(controller, place):
    environ = {
        **controller,
        "OUT": "exp",
        "SHORT": " ".join(ASKED),
        "LONG": " ".join(ASKED),
        "DATASET_ARGS": "--max-per-class 8 --mu 0.5",
        "SEARCH_ARGS": " ".join([*SEARCH[3:], "--epochs", "1"]),
        "RETRAIN_ARGS": " ".join(RETRAIN[4:]),
    }
    done = subprocess.run([SLURM / "pipeline.sh"], cwd=place, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = wait_for_job(controller, done.stdout.strip())
    assert state == "COMPLETED", [log.read_text() for log in (place / "exp" / "logs").iterdir()]
    assert json.loads((place / "exp" / "metrics.json").read_text())["splits"]["test"]["top1"] > 0


def test_a_job_is_saved_by_its_signal_requeued_under_its_number_and_ends_exactly(controller, world, place):
    argv = [*SEARCH, "--epochs", "3", "-o", "run"]
    job = submit(controller, place, *ASKED, "--output=log", SLURM / "requeue.sh", *argv)
    wait_for(lambda: (place / "run" / "checkpoints").exists())
    ask(controller, "scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@120 does
    assert wait_for_job(controller, job) == "COMPLETED", (place / "log").read_text()
    assert_same_end(place / "run", world / "search")
    log = (place / "log").read_text()
    assert "back into the queue (turn 1)" in log or "Restarts=0" in ask(controller, "scontrol", "show", "job", job)


def test_ranks_on_two_nodes_are_saved_requeued_and_end_together(controller, place):
    environ = {**controller, "MASTER_ADDR": "127.0.0.1", "REQUEUE": str(SLURM / "requeue.sh")}
    asked = ("--cpus-per-task=1", "--mem-per-cpu=1G", "--time=10", "--nodes=2", "--ntasks-per-node=1", "--output=log")
    argv = [*SEARCH[1:3], "--epochs", "3", *SEARCH[5:], *TINY, "-o", "ddp"]
    job = submit(environ, place, *asked, SLURM / "search-ddp.sh", *argv)
    wait_for(lambda: (place / "ddp" / "checkpoints").exists())
    ask(environ, "scancel", "--batch", "--signal=USR1", job)
    assert wait_for_job(environ, job) == "COMPLETED", (place / "log").read_text()
    assert "2 ranks meet at 127.0.0.1:" in (place / "log").read_text()
    assert json.loads((place / "ddp" / "status.json").read_text())["state"] == "done"


def test_ranks_that_wait_for_a_machine_nobody_knows_say_so(controller, place):
    environ = {**controller, "MASTER_ADDR": "no-such-machine.invalid", "REQUEUE": str(SLURM / "requeue.sh")}
    asked = ("--cpus-per-task=1", "--mem-per-cpu=1G", "--time=10", "--nodes=2", "--ntasks-per-node=1", "--output=log")
    job = submit(environ, place, *asked, SLURM / "search-ddp.sh", *SEARCH[1:], "-o", "ddp")
    assert wait_for_job(environ, job) == "FAILED"
    assert "MASTER_ADDR no-such-machine.invalid, MASTER_PORT" in (place / "log").read_text()
