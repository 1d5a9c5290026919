#!/usr/bin/env bash
# The trainer under torchrun, four processes on this machine.
#
#   bash examples/trainer/torchrun.sh --epochs 2
#
# On two machines: --nnodes 2 --node-rank 0 (and 1) --master-addr FIRST --master-port 29500.
set -euo pipefail
exec "${PYTHON:-python3}" -m torch.distributed.run --standalone --nproc-per-node 4 \
  -m trainer.run --out runs/torchrun "$@"
