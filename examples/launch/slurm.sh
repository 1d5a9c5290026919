#!/usr/bin/env bash
# SLURM: two nodes of two ranks each, one task for each rank.
#
#   sbatch examples/launch/slurm.sh examples/numpy_collectives.py
#
# The ranks find each other by SLURM's own variables. torch.distributed does not know those: for a
# torch program take slurm_torchrun.sh.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=00:05:00
set -euo pipefail
srun "${PYTHON:-python3}" "$@"
