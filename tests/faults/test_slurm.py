"""The scripts of examples/slurm, run with stand-ins for srun, sbatch and scontrol on the PATH."""

import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from faults_support import ENVIRON, RETRAIN, SEARCH, SSFNAS, assert_same_end, wait_for, with_faults

SLURM = Path(__file__).parents[2] / "examples" / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sh"))

SRUN = """#!/bin/bash
echo "srun $*" >>"$SLURM_LOG"
exec "$@"
"""

SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$SLURM_LOG"
[ "$1" = requeue ] && touch "$SLURM_STATE/requeue-$2"
"""

# Runs the job at once, as often as it is requeued, if the jobs it depends on have ended well.
SBATCH = r"""#!/bin/bash
echo "sbatch $*" >>"$SLURM_LOG"
number=$(($(cat "$SLURM_STATE/number" 2>/dev/null || echo 100) + 1))
echo "$number" >"$SLURM_STATE/number"
output=/dev/null wrap=
while [ $# -gt 0 ]; do
    case $1 in
        --dependency=afterok:*) before=${1##*:}; [ "$(cat "$SLURM_STATE/code-$before")" = 0 ] || failed=yes ;;
        --output=*) output=${1#*=} output=${output//%%/%} ;;
        --wrap) wrap=$2; shift ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
export SLURM_JOB_ID=$number SLURM_RESTART_COUNT=0
code=1
if [ -z "$failed" ]; then
    while true; do
        if [ -n "$wrap" ]; then sh -c "$wrap"; else bash "$@"; fi >>"$output" 2>&1 </dev/null
        code=$?
        [ -e "$SLURM_STATE/requeue-$number" ] || break
        rm "$SLURM_STATE/requeue-$number"
        SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
    done
fi
echo "$code" >"$SLURM_STATE/code-$number"
echo "$number;cluster"
"""


@pytest.fixture
def cluster(place, stand_in):
    """The environment of a cluster; its log is `slurm.log`."""
    tools = place / "bin"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "sbatch": SBATCH}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (place / "state").mkdir()
    (place / "scratch").mkdir()
    return {
        **os.environ,
        **ENVIRON,
        "PATH": f"{tools}:{stand_in.parent}:{SSFNAS.parent}:{os.environ['PATH']}",
        "SLURM_LOG": str(place / "slurm.log"),
        "SLURM_STATE": str(place / "state"),
        "SLURM_TMPDIR": str(place / "scratch"),
        "SLURM_JOB_ID": "77",
    }


def run(cluster, place, name, *argv, **environ):
    return subprocess.Popen(
        ["bash", SLURM / name, *argv],
        cwd=place,
        env=cluster | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def log_of(place):
    file = place / "slurm.log"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    done = subprocess.run([SSFNAS.with_name("shellcheck"), script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


def test_the_scripts_are_there_and_ask_for_what_they_need():
    assert [script.name for script in SCRIPTS] == ["pipeline.sh", "requeue.sh", "search-array.sh", "search-ddp.sh"]
    for name in ("requeue.sh", "search-array.sh", "search-ddp.sh"):
        text = (SLURM / name).read_text()
        for option in ("--signal=B:USR1@120", "--requeue", "--open-mode=append"):
            assert f"#SBATCH {option}\n" in text


def test_a_job_whose_time_is_up_saves_is_requeued_and_its_next_turn_ends_exactly(cluster, world, place):
    argv = [*SEARCH, "-o", "run"]
    reached = place / "reached"
    faults = {"wait_for_a_request_at_file_event": ["checkpoints/0000000003", str(reached)]}
    job = run(cluster, place, "requeue.sh", *argv, **with_faults(faults))
    wait_for(reached.exists)
    job.send_signal(signal.SIGUSR1)  # to the batch script only, as with B:
    _, err = job.communicate()
    assert job.returncode == 75, err
    assert "stopped by SIGUSR1" in err and "back into the queue (turn 1)" in err
    assert log_of(place)[-1] == "scontrol requeue 77"
    turn = run(cluster, place, "requeue.sh", *argv, SLURM_RESTART_COUNT="1")
    out, err = turn.communicate()
    assert turn.returncode == 0, err
    assert json.loads(out)["state"] == "done"
    assert len([line for line in log_of(place) if line.startswith("scontrol")]) == 1
    assert_same_end(place / "run", world / "search")


STUB = """#!/bin/bash
exit {code}
"""


@pytest.mark.parametrize(
    ("code", "restarts", "requeues"), [(0, 0, 0), (3, 0, 0), (130, 0, 0), (75, 4, 1), (75, 5, 0), (138, 0, 1)]
)
def test_what_was_saved_or_not_begun_goes_back_into_the_queue_and_not_for_ever(
    cluster, place, code, restarts, requeues
):
    (place / "bin" / "ssfnas").write_text(STUB.format(code=code))
    (place / "bin" / "ssfnas").chmod(0o755)
    job = run(cluster, place, "requeue.sh", "search", SLURM_RESTART_COUNT=str(restarts), MAX_RESTARTS="5")
    _, err = job.communicate()
    assert job.returncode == code
    assert len([line for line in log_of(place) if line.startswith("scontrol requeue 77")]) == requeues
    assert ("submit it again" in err) == (restarts == 5)


def test_an_array_task_takes_its_index_as_seed_and_its_data_from_scratch(cluster, world, place):
    environ = {"SLURM_ARRAY_TASK_ID": "5", "DATA": "data", "OUT": "runs", "REQUEUE": str(SLURM / "requeue.sh")}
    options = [word for word in SEARCH[1:] if word not in ("--data", "data")]
    job = run(cluster, place, "search-array.sh", *options, "--epochs", "1", **environ)
    out, err = job.communicate()
    assert job.returncode == 0, err
    result = json.loads(out)
    assert result["seed"] == 5 and result["path"] == "runs/seed-5"
    (scratch,) = (place / "scratch").iterdir()
    assert scratch.name == f"ssfnas-{os.getuid()}" and stat.S_IMODE(scratch.stat().st_mode) == 0o700
    (staged,) = scratch.iterdir()
    assert result["data"] == str(staged) and staged.name.startswith("data-")
    assert (staged / "manifest.json").read_bytes() == (world / "data" / "manifest.json").read_bytes()
    assert "srun ssfnas search --data" in log_of(place)[0]


def stage(cluster, place, **environ):
    """An array task that only stages the data set."""
    (place / "bin" / "ssfnas").write_text(STUB.format(code=0))
    (place / "bin" / "ssfnas").chmod(0o755)
    environ = {"SLURM_ARRAY_TASK_ID": "6", "DATA": "data", "REQUEUE": str(SLURM / "requeue.sh"), **environ}
    job = run(cluster, place, "search-array.sh", **environ)
    _, err = job.communicate()
    return job.returncode, err


def test_a_staged_copy_is_used_again_and_one_that_differs_is_staged_again(cluster, world, place):
    assert stage(cluster, place) == (0, "")
    (staged,) = (place / "scratch" / f"ssfnas-{os.getuid()}").iterdir()
    sound = {path.name: path.read_bytes() for path in staged.iterdir()}
    assert sound == {path.name: path.read_bytes() for path in (world / "data").iterdir()}
    before = staged.stat().st_ino
    assert stage(cluster, place) == (0, "") and staged.stat().st_ino == before
    shard = next(staged.glob("train-*"))
    for damage in (
        lambda: (staged / "manifest.json").write_text("{}"),
        lambda: shard.write_bytes(sound[shard.name][:-100]),
        shard.unlink,
        lambda: (staged / "more").write_text(""),
        lambda: (shutil.rmtree(staged), staged.mkdir()),
    ):
        damage()
        assert stage(cluster, place) == (0, "")
        assert {path.name: path.read_bytes() for path in staged.iterdir()} == sound
        assert [path.name for path in staged.parent.iterdir()] == [staged.name]


@pytest.mark.parametrize("kind", ["link", "file", "of another user"])
def test_a_scratch_folder_that_somebody_else_made_is_refused(cluster, place, kind):
    scratch, elsewhere = place / "scratch" / f"ssfnas-{os.getuid()}", place / "elsewhere"
    elsewhere.mkdir(mode=0o777)
    if kind == "link":
        scratch.symlink_to(elsewhere)
    elif kind == "file":
        scratch.write_text("")
    elif os.geteuid() == 0:
        scratch.mkdir()
        os.chown(scratch, 65534, 65534)
    else:
        return  # only root can make a folder of another user
    code, err = stage(cluster, place)
    assert code == 1 and f"{scratch} is not a folder of yours" in err
    assert not list(elsewhere.iterdir()) and not log_of(place)


def test_a_scratch_folder_of_ours_is_closed_to_others(cluster, place):
    scratch = place / "scratch" / f"ssfnas-{os.getuid()}"
    scratch.mkdir()
    scratch.chmod(0o777)
    assert stage(cluster, place) == (0, "")
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_an_array_task_hands_its_signal_on_to_ssfnas_and_requeues_itself_alone(cluster, place, name):
    (place / "bin" / "ssfnas").write_text(
        '#!/bin/bash\ntrap "exit 75" USR1 TERM\ntouch started\nwhile :; do sleep 0.05; done\n'
    )
    (place / "bin" / "ssfnas").chmod(0o755)
    environ = {
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "5",
        "DATA": "data",
        "REQUEUE": str(SLURM / "requeue.sh"),
    }
    job = run(cluster, place, "search-array.sh", **environ)
    wait_for((place / "started").exists)
    job.send_signal(getattr(signal, name))
    job.communicate()
    assert job.returncode == 75 and log_of(place)[-1] == "scontrol requeue 77_5"


OUT = "an ex%perimént's $HOME `id` \"\\ \x07"


def test_the_pipeline_runs_from_images_to_metrics_each_stage_after_the_one_before(cluster, place):
    (place / "data").unlink()
    environ = {
        "OUT": OUT,
        "DATASET_ARGS": "--max-per-class 12\n\t--mu 0.5\n",
        "SEARCH_ARGS": " ".join(SEARCH[3:]) + " --epochs 1",
        "DERIVE_ARGS": "--rule darts",
        "RETRAIN_ARGS": " ".join(RETRAIN[4:]) + " --epochs 1 --pretrain none",
    }
    job = run(cluster, place, "pipeline.sh", **environ)
    out, err = job.communicate()
    logs = {path.name: path.read_text() for path in (place / OUT / "logs").iterdir()}
    assert job.returncode == 0, (err, logs)
    assert out == "105\n"
    metrics = json.loads((place / OUT / "metrics.json").read_text())
    assert metrics["splits"]["test"]["num_images"] > 0
    submitted = [line for line in log_of(place) if line.startswith("sbatch")]
    assert len(submitted) == 5 and "--dependency" not in submitted[0]
    for number, line in enumerate(submitted[1:], 101):
        assert f"--dependency=afterok:{number} --kill-on-invalid-dep=yes" in line
    assert set(logs) == {f"{name}.log" for name in ("dataset", "search", "derive", "retrain", "evaluate")}


def test_a_stage_that_fails_stops_those_behind_it(cluster, place):
    environ = {"OUT": "exp", "DATASET_ARGS": "--source nonsense"}
    job = run(cluster, place, "pipeline.sh", **environ)
    job.communicate()
    codes = [(place / "state" / f"code-{number}").read_text().strip() for number in range(101, 106)]
    assert codes == ["2", "1", "1", "1", "1"]
    assert not (place / "exp" / "search").exists()


def test_a_pipeline_ends_at_a_job_that_the_queue_refuses(cluster, place):
    refusing = place / "bin" / "sbatch"
    refusing.write_text(
        f"#!/bin/bash\necho \"sbatch $*\" >>{place}/slurm.log\necho 'sbatch: invalid option' >&2\nexit 1\n"
    )
    job = run(cluster, place, "pipeline.sh")
    out, err = job.communicate()
    assert job.returncode == 1 and out == "" and err == "sbatch: invalid option\n"
    assert len(log_of(place)) == 1


def test_a_pipeline_whose_folder_has_a_line_break_is_refused(cluster, place):
    job = run(cluster, place, "pipeline.sh", OUT="two\nlines")
    _, err = job.communicate()
    assert job.returncode == 2 and "OUT has a line break" in err and not log_of(place)
    assert not [path for path in place.iterdir() if path.name.startswith("two")]
