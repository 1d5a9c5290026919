#!/usr/bin/env bash
# SLURM and torchrun: two nodes, one torchrun on each, which starts two ranks.
#
#   sbatch examples/launch/slurm_torchrun.sh examples/ddp.py
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:05:00
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The same as `torchrun`, by the Python that is asked for; the nodes number themselves.
srun "${PYTHON:-python3}" -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node 2 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" "$@"
