"""A sweep as jobs of SLURM: an array for each stage, and a script that submits them one behind the other.

An array waits until the one before has ended, however it ended, and a task whose input is not there says so and ends.
So a cell that fails takes with it only what needs it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ssfnas_cli.artifacts.dataset import MANIFEST
from ssfnas_cli.artifacts.files import atomic_path
from ssfnas_cli.artifacts.model import MODEL
from ssfnas_cli.errors import OutputExistsError, UsageError
from ssfnas_cli.sweep.cells import TRAINING, Cell
from ssfnas_cli.sweep.plan_file import STAGES

MARK = "# Written by ssfnas sweep"
SUBMIT, TASK, REQUEUE = "submit.sh", "task.sh", "requeue.sh"
LONG = (*TRAINING, "adjust")  # the stages that take the options of LONG; the others take those of SHORT

_SUBMIT = """#!/bin/bash
{mark} from {plan}: {count} tasks. It takes no time itself:
#
#   bash {submit}
#   squeue --me; ssfnas runs {out}
#
# When all has ended, run 'ssfnas sweep ... --slurm' again: it writes only what is missing.
#
# SHORT, LONG  sbatch options for the stages that take minutes and for those that train; words between spaces
# TASKS        how many tasks of a stage run at a time (default: as many as the queue lets)
# shellcheck disable=SC2016 # a name with $ in it means itself
set -euo pipefail

cd -- {here}
read -r -d '' -a short <<<"${{SHORT:---time=00:30:00 --cpus-per-task=2 --mem=4G}}" || true
read -r -d '' -a long <<<"${{LONG:---time=04:00:00 --cpus-per-task=4 --mem=8G}}" || true

# `|| exit`: set -e ends no command substitution, and submit runs in one.
# afterany: when every task of the array before has ended, well or not. A task put back into the queue has not.
submit() {{
    local stage=$1 last=$2 after=$3
    local options=(--parsable --job-name="ssfnas-$stage" --array="0-$last${{TASKS:+%$TASKS}}")
    case $stage in
        {long}) options+=("${{long[@]}}") ;;
        *) options+=("${{short[@]}}") ;;
    esac
    if [ -n "$after" ]; then options+=(--dependency="afterany:$after"); fi
    local number
    number=$(sbatch "${{options[@]}}" --output={log}"/$stage-%a.log" {task} "$stage") || exit
    echo "$stage: job ${{number%%;*}}, $((last + 1)) tasks" >&2
    echo "${{number%%;*}}" # on a federation the number comes with the cluster's name
}}

job=
{submissions}
echo "$job"
"""

_TASK = """#!/bin/bash
{mark} from {plan}. Each task is a cell: the stage is the first argument, the task's index the second.
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# shellcheck disable=SC2016 # a name with $ in it means itself
set -euo pipefail

cd -- {here}

# The input that the stage before should have made, and then the command of this cell.
cell() {{
    if [ -n "$1" ] && [ ! -e "$1" ]; then
        echo "task.sh: not run: there is no $1" >&2
        exit 3
    fi
    shift
    echo "\\$ ssfnas $*" >&2
    # exec: requeue.sh takes this script's process number, and with it the signal meant for the batch script.
    exec bash {requeue} "$@"
}}

case $1-$SLURM_ARRAY_TASK_ID in
{cases}
    *)
        echo "task.sh: there is no task $1-$SLURM_ARRAY_TASK_ID" >&2
        exit 2
        ;;
esac
"""


def write_scripts(folder: Path, cells: Sequence[Cell], plan: Path, output: Path) -> Path:
    """Write the scripts of the cells into a folder, and return the one that submits them.

    Args:
        folder: a new folder, or one that was written before; on a file system that the nodes share.
        cells: what is missing.
        plan: the file of the sweep, for comments.
        output: the folder of the sweep.

    Raises:
        UsageError: a name holds a line break, which a comment or log's name cannot.
        OutputExistsError: the folder holds something else.
        DiskError: it cannot be written.
    """
    here, place = Path.cwd(), folder.absolute()
    if any("\n" in str(path) for path in (here, place, plan, output)):
        raise UsageError(f"--slurm {folder}: a folder's name has a line break in it: take another")
    _refuse_other(folder)
    stages = {stage: [cell for cell in cells if cell.stage == stage] for stage in STAGES}
    stages = {stage: members for stage, members in stages.items() if members}
    words = {"mark": MARK, "plan": plan, "here": quote(here), "out": quote(output), "count": len(cells)}
    submit = _SUBMIT.format(
        **words,
        long=" | ".join(LONG),
        submit=quote(place / SUBMIT),
        task=quote(place / TASK),
        log=quote(str(place / "logs").replace("%", "%%")),
        submissions="\n".join(f'job=$(submit {stage} {len(members) - 1} "$job")' for stage, members in stages.items()),
    )
    cases = [
        f"    {stage}-{number}) cell {quote(_input(cell))} {' '.join(map(quote, cell.argv))} ;; # {cell.name}"
        for stage, members in stages.items()
        for number, cell in enumerate(members)
    ]
    task = _TASK.format(**words, requeue=quote(place / REQUEUE), cases="\n".join(cases))
    requeue = (resources.files("ssfnas_cli") / "sweep" / REQUEUE).read_text()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, text in {REQUEUE: requeue, TASK: task, SUBMIT: submit}.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(text.encode("utf-8", "surrogateescape"))
        (folder / name).chmod(0o755)
    return folder / SUBMIT


def quote(word: object) -> str:
    """A word in single quotes, which every sh gives back as it was; a plain one as it is."""
    text = str(word)
    if re.fullmatch(r"[A-Za-z0-9_./:=+,@%-]+", text):
        return text
    return "'" + text.replace("'", "'\\''") + "'"


def _input(cell: Cell) -> str:
    """The file that must be there before a cell can run; empty if there is none.

    A search that has not ended yet has alphas and no genotype, and nothing is to be derived from it.
    """
    made = {"derive": "genotype.json", "adjust": MODEL, "evaluate": MODEL}.get(cell.stage)
    if cell.source is not None:
        return str(cell.source / made if made else cell.source)
    return "" if cell.data is None else str(cell.data / MANIFEST)


def _refuse_other(folder: Path) -> None:
    """Only scripts that were written by an earlier sweep are replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputExistsError(f"--slurm {folder}: is a file: name a folder")
    submit = folder / SUBMIT
    ours = submit.is_file() and MARK in submit.read_text(errors="replace")
    if not ours and any(folder.iterdir()):
        raise OutputExistsError(f"--slurm {folder}: is a folder with other things in it: name another")
