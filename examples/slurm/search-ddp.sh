#!/bin/bash
#SBATCH --job-name=ssfnas-ddp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=04:00:00
#SBATCH --mem-per-cpu=2G
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# One search on eight ranks of two nodes, in as many turns as it needs:
#
#   sbatch examples/slurm/search-ddp.sh --data data/lt --relax sigmoid -o runs/ddp
#
# Everything after the script's name goes to `ssfnas search`. Options before it overrule the #SBATCH lines: sbatch
# --nodes=1 --ntasks-per-node=8 … . The data set and the run folder have to be on a file system that all nodes see.
# Submit from the folder that has examples/ in it, or say where requeue.sh is.
#
# MASTER_ADDR  where the ranks meet (default: the first node of the job)
# MASTER_PORT  the port there (default: 20000 and the last digits of the job's number)
# GLOO_SOCKET_IFNAME  the network interface between the nodes, such as ib0 (default: the one that leads to the first node)
# REQUEUE      requeue.sh (default examples/slurm/requeue.sh)
set -euo pipefail

# The job's number keeps two jobs on one node apart. Set here, so that the log says where the ranks met.
nodes=${SLURM_JOB_NODELIST:-localhost}
first=$(scontrol show hostnames "$nodes" 2>/dev/null | head -n 1 || true)
export MASTER_ADDR=${MASTER_ADDR:-${first:-localhost}}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
echo "search-ddp.sh: ${SLURM_NTASKS:-1} ranks meet at $MASTER_ADDR:$MASTER_PORT" >&2

# requeue.sh starts srun, which starts the ranks; it passes the signal on, and puts a job that is not done back.
exec bash "${REQUEUE:-examples/slurm/requeue.sh}" search "$@"
