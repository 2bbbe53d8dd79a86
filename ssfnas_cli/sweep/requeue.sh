#!/bin/bash
#SBATCH --job-name=ssfnas
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --output=%x-%j.log
# A requeued job writes to the same log; without this it would begin the file anew.
#SBATCH --open-mode=append
# The queue may put the job back itself (a node dies, somebody more important comes): the run goes on all the same.
#SBATCH --requeue
# 120 seconds before the time is up, SIGUSR1 to this script. B: means the script only, which is why it passes it on.
# ssfnas then finishes its step, saves, and leaves with 75. Saving takes a second or two; give large networks more.
#SBATCH --signal=B:USR1@120

# Any ssfnas command that trains, for as many turns as it needs, in a queue that gives it four hours at a time:
#
#   sbatch examples/slurm/requeue.sh search --data data/lt --relax sigmoid -o runs/a
#
# The same command on the same folder goes on where it stopped, so a requeued job needs no other arguments. Options
# before the script's name overrule the #SBATCH lines: sbatch --time=24:00:00 --gres=gpu:1 examples/slurm/requeue.sh …
#
# MAX_RESTARTS  give up after so many turns (default 100), so that nothing goes round for ever
set -euo pipefail

# Give torch the cores that the job has, not those that the node has. Results are equal bit for bit only where the
# number of threads stays the same; ssfnas warns when it does not.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

# In the background, because bash attends to a trap only when no command is in the foreground, and `wait` is none.
srun ssfnas "$@" &
child=$!

# srun hands a signal on to what it runs. SIGTERM is what scancel and a preempting queue send.
asked=no
# shellcheck disable=SC2329 # the traps below call it
pass_on() {
    asked=yes
    kill -s "$1" "$child" 2>/dev/null || true
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

# A trapped signal ends `wait` early; then wait again, for the exit code of ssfnas and not of the waiting.
code=0
while true; do
    asked=no
    wait "$child" && code=0 || code=$?
    if [ "$asked" = no ]; then break; fi
done

# 75: stopped on request, saved, to be gone on with. 138: SIGUSR1 came before ssfnas could attend to it, while Python was
# still loading or the ranks had not met; nothing was begun. Anything else is an end, good (0) or bad, that no new turn
# mends. The job keeps its number, so jobs that depend on it (see pipeline.sh) go on waiting.
if [ "$code" -eq 75 ] || [ "$code" -eq 138 ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-100}" ]; then
        echo "requeue.sh: not done yet, back into the queue (turn $((${SLURM_RESTART_COUNT:-0} + 1)))" >&2
        # The number of one task of an array is also that of the array, which would requeue all of its tasks.
        task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
        scontrol requeue "${task:-$SLURM_JOB_ID}"
    else
        echo "requeue.sh: not done after ${SLURM_RESTART_COUNT} restarts; submit it again to go on" >&2
    fi
fi
exit "$code"
