#!/usr/bin/env bash
# No launcher at all: four variables tell each process who it is and where rank 0 listens.
#
#   bash examples/launch/environment.sh examples/numpy_collectives.py
#
# It needs no torch. torch.distributed reads the same variables.
set -euo pipefail
export WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT="${MASTER_PORT:-29500}"
export ALLREDUCE_NODES=2 # this machine plays two nodes; leave it out where there really are two
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # no rank is left behind when another has failed

for rank in 0 1 2 3; do
  RANK=$rank "${PYTHON:-python3}" "$@" &
done
for rank in 0 1 2 3; do
  wait -n # for any one; it fails if that rank has
done
