#!/usr/bin/env bash
# SLURM: two nodes of four processes. Two minutes before the limit all save, and the job queues again.
#
#   sbatch examples/trainer/slurm_requeue.sh --epochs 90
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
srun "${PYTHON:-python3}" -m trainer.run --out "runs/$SLURM_JOB_ID" "$@"
code=$?
if [ "$code" -eq 75 ]; then # saved, but not complete: the same command goes on
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
