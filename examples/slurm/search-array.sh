#!/bin/bash
#SBATCH --job-name=ssfnas-search
# One task per seed; %2 lets two of them run at a time. The index is the seed: --array=0-9%2, --array=3,7, …
#SBATCH --array=0-3%2
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
# %A is the array's number, %a the task's index: a log for each seed.
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# The same search with several seeds, each in a folder of its own, each requeued until it is done:
#
#   ssfnas make-dataset --source folder --root images -o data/lt
#   DATA=data/lt sbatch examples/slurm/search-array.sh --relax sigmoid --loss barlow
#   ssfnas runs runs/array        # where they stand
#
# Everything after the script's name goes to `ssfnas search`. Submit from the folder that has examples/ in it, or say
# where requeue.sh is: SLURM copies this script to a spool folder, so it cannot find its neighbours by its own path.
#
# DATA     the data set folder (default data/lt)
# OUT      where the run folders go, on a file system that outlives the job (default runs/array)
# REQUEUE  requeue.sh (default examples/slurm/requeue.sh)
set -euo pipefail

data=${DATA:-data/lt}
out=${OUT:-runs/array}
requeue=${REQUEUE:-examples/slurm/requeue.sh}
seed=$SLURM_ARRAY_TASK_ID

# A folder on the node's own disk that only we can write. $SLURM_TMPDIR, where a cluster has it, is emptied by the
# cluster; /tmp is shared, and somebody else may have made a folder or a link of that name before us.
scratch=${SLURM_TMPDIR:-/tmp}/ssfnas-$(id -u)
mkdir -m 700 -- "$scratch" 2>/dev/null || true # there already, or checked in the next line
if [ -L "$scratch" ] || [ ! -d "$scratch" ] || [ ! -O "$scratch" ]; then
    echo "search-array.sh: $scratch is not a folder of yours: set SLURM_TMPDIR to one that is" >&2
    exit 1
fi
chmod 700 -- "$scratch"

# What a folder holds: its manifest, and the name and size of every file. Their sha256 are in the manifest, and ssfnas
# checks them before it trains.
listing() {
    sha256sum <"$1/manifest.json"
    (cd -- "$1" && find -L . -type f -printf '%P %s\n' | sort)
}

# Stage the data set there, once for all tasks of this node: copy under another name, then rename, so that nobody meets
# half a copy. A copy that differs is staged again. Moving the data is no difference to ssfnas: it knows them by their
# sha256.
sum=$(sha256sum <"$data/manifest.json")
staged=$scratch/data-${sum:0:12}
if [ "$(listing "$staged" 2>/dev/null)" != "$(listing "$data")" ]; then
    copy=$(mktemp -d "$scratch/copying.XXXXXX")
    trap 'rm -rf -- "$copy"' EXIT
    cp -RL -- "$data/." "$copy"
    if [ -e "$staged" ] && [ "$(listing "$staged" 2>/dev/null)" != "$(listing "$data")" ]; then rm -rf -- "$staged"; fi
    mv -T -- "$copy" "$staged" 2>/dev/null || rm -rf -- "$copy" # another task was faster
fi

# exec: requeue.sh takes this script's place and process number, and with it the signal meant for "B:", the batch
# script. The run folder is on the shared file system, where the next turn, on another node perhaps, finds it.
exec bash "$requeue" search --data "$staged" --seed "$seed" -o "$out/seed-$seed" "$@"
