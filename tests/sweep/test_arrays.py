"""The scripts for SLURM, run with stand-ins for sbatch, srun, scontrol and ssfnas on the PATH."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ssfnas_cli.errors import OutputExistsError, UsageError
from ssfnas_cli.sweep import slurm
from ssfnas_cli.sweep.grid import build_cells
from ssfnas_cli.sweep.plan_file import read_plan

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
PLAN = """
seeds = [0, 1]
[data]
root = 'a "root" of $HOME, it`s {id}'
[search.arms]
darts = {}
broken = { alpha_lr = 0.5 }
[derive]
rule = "darts"
[networks]
resnet20 = {}
[retrain]
[adjust]
method = "logit"
"""

# Every task of the array at once, as often as it is requeued, whatever became of the array before.
SBATCH = r"""#!/bin/bash
printf '%s\n' "sbatch $*" >>"$SLURM_STATE/log"
number=$(($(cat "$SLURM_STATE/number" 2>/dev/null || echo 100) + 1))
echo "$number" >"$SLURM_STATE/number"
while [ $# -gt 0 ]; do
    case $1 in
        --array=*) last=${1#--array=0-} last=${last%%\%*} ;;
        --output=*) output=${1#*=} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
for ((task = 0; task <= last; task++)); do
    # The array itself has the number of its last task.
    own=$number$task; [ "$task" = "$last" ] && own=$number
    export SLURM_JOB_ID=$own SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$task SLURM_RESTART_COUNT=0
    said=${output//%a/$task} said=${said//%%/%}
    while true; do
        (cd / && bash "$@") >>"$said" 2>&1 </dev/null
        [ -e "$SLURM_STATE/requeue-${number}_$task" ] || break
        rm "$SLURM_STATE/requeue-${number}_$task"
        SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
    done
done
echo "$number;cluster"
"""
SRUN = '#!/bin/bash\nexec "$@"\n'
SCONTROL = '#!/bin/bash\n[ "$1" = requeue ] && touch "$SLURM_STATE/requeue-$2"\n'
SSFNAS = """#!{python}
import json, os, pathlib, sys
argv = sys.argv[1:]
with open(os.environ["SLURM_STATE"] + "/commands", "a") as log:
    log.write(json.dumps(argv) + "\\n")
if "alpha_lr=0.5" in argv:
    sys.exit(3)
out = pathlib.Path(argv[argv.index("-o") + 1]) if "-o" in argv else pathlib.Path(argv[1])
if argv[0] == "search" and not out.exists():
    out.mkdir()
    sys.exit(75)
if argv[0] == "derive":
    out.write_text("")
else:
    out.mkdir(exist_ok=True)
    for name in ("manifest.json", "alphas.safetensors", "genotype.json", "model.safetensors"):
        (out / name).write_text("")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder whose name needs quotes, with the plan in it, and the stand-ins on the PATH."""
    here = tmp_path / "an ex%perimént's $HOME `id`"
    tools, state = tmp_path / "bin", tmp_path / "state"
    for folder in (here, tools, state, here / "out"):
        folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "ssfnas": SSFNAS}.items():
        (tools / name).write_text(text.replace("{python}", sys.executable))
        (tools / name).chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STATE", str(state))
    (here / "sweep.toml").write_text(PLAN)
    return here


def cells(text=PLAN):
    Path("sweep.toml").write_text(text)
    return build_cells(read_plan(Path("sweep.toml"), output=Path("out")))


def test_shellcheck_has_nothing_to_say(place):
    for text in (PLAN, "[search]", "[networks]\nresnet20 = {}\n[retrain]"):
        slurm.write_scripts(Path("jobs"), cells(text), Path("sweep.toml"), Path("out"))
        for name in (slurm.SUBMIT, slurm.TASK, slurm.REQUEUE):
            done = subprocess.run([SHELLCHECK, f"jobs/{name}"], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
            assert os.access(f"jobs/{name}", os.X_OK)


def test_submitting_ends_at_a_stage_that_the_queue_refuses(place, tmp_path):
    script = slurm.write_scripts(Path("jobs"), cells(), Path("sweep.toml"), Path("out"))
    refusing = tmp_path / "bin" / "sbatch"
    refusing.write_text("#!/bin/bash\necho asked >>$SLURM_STATE/log\necho 'sbatch: invalid option' >&2\nexit 1\n")
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "sbatch: invalid option\n")
    assert (tmp_path / "state" / "log").read_text() == "asked\n"


def test_the_arrays_run_every_cell_after_what_it_needs(place, tmp_path):
    planned = cells()
    script = slurm.write_scripts(Path("jobs"), planned, Path("sweep.toml"), Path("out"))
    environ = {**os.environ, "TASKS": "3", "SHORT": "--time=1 --mem=2", "LONG": "--time=99\n --gres=gpu:1"}
    done = subprocess.run(["bash", script.absolute()], cwd="/", capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    stages = ["data", "search", "derive", "retrain", "adjust", "evaluate"]
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == stages and done.stdout == "106\n"

    submitted = (tmp_path / "state" / "log").read_text().splitlines()
    for number, (stage, line) in enumerate(zip(stages, submitted, strict=True), 101):
        count = sum(cell.stage == stage for cell in planned)
        assert f"--array=0-{count - 1}%3" in line and f"--job-name=ssfnas-{stage}" in line
        assert (f"--dependency=afterany:{number - 1}" in line) == (number > 101)
        assert ("--time=99 --gres=gpu:1" in line) == (stage in ("search", "retrain", "adjust"))
        assert ("--time=1 --mem=2" in line) == (stage in ("data", "derive", "evaluate"))

    ran = [tuple(json.loads(line)) for line in (tmp_path / "state" / "commands").read_text().splitlines()]
    broken = {cell.name for cell in planned if "broken" in cell.name}
    behind = {cell.name for cell in planned if cell.name in broken and cell.stage != "search"}
    expected = [cell.argv for cell in planned if cell.name not in behind]
    assert sorted(set(ran)) == sorted(expected), "the words arrive as they were"
    (searched,) = {ran.count(cell.argv) for cell in planned if cell.stage == "search" and cell.name not in broken}
    assert searched == 2, "a search that was stopped with 75 went back into the queue"
    logs = {path.name: path.read_text() for path in Path("jobs/logs").iterdir()}
    assert len(logs) == len(planned)
    not_run = [text for text in logs.values() if "not run: there is no out/" in text]
    assert len(not_run) == len(behind)


def test_only_what_is_missing_is_written_and_the_folder_is_written_again(place):
    planned = cells()
    slurm.write_scripts(Path("jobs"), planned, Path("sweep.toml"), Path("out"))
    slurm.write_scripts(Path("jobs"), planned[-1:], Path("sweep.toml"), Path("out"))
    text = Path("jobs/task.sh").read_text()
    assert "evaluate-0) cell" in text and "search-0)" not in text
    assert Path("jobs/submit.sh").read_text().count("job=$(submit ") == 1


def test_a_folder_with_other_things_in_it_is_refused(place):
    Path("jobs").mkdir()
    Path("jobs/submit.sh").write_text("mine")
    with pytest.raises(OutputExistsError, match="--slurm jobs: is a folder with other things in it"):
        slurm.write_scripts(Path("jobs"), cells(), Path("sweep.toml"), Path("out"))
    with pytest.raises(OutputExistsError, match=r"--slurm sweep.toml: is a file"):
        slurm.write_scripts(Path("sweep.toml"), cells(), Path("sweep.toml"), Path("out"))
    with pytest.raises(UsageError, match="line break"):
        slurm.write_scripts(Path("two\nlines"), cells(), Path("sweep.toml"), Path("out"))
    assert Path("jobs/submit.sh").read_text() == "mine" and not Path("two\nlines").exists()


@pytest.mark.parametrize("word", ["plain", "", "a b", "it's", "'", "$HOME", "`id`", "a\\b", "-x", "é", "!", "*", "~"])
def test_quoted_words_come_back_from_every_shell(word):
    assert shlex.split(slurm.quote(word)) == [word]
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-c", f"printf %s {slurm.quote(word)}"], capture_output=True, text=True)
        assert done.stdout == word
