#!/usr/bin/env bash
# torchrun: two nodes of two ranks each, and this machine plays both of them.
#
#   bash examples/launch/torchrun.sh examples/ddp.py
#
# On two machines, run the torchrun line on each, with its own --node-rank and the address of the
# first as --master-addr, and without ALLREDUCE_NODES: which ranks share a machine is found out.
set -euo pipefail
export ALLREDUCE_NODES=2 # the first half of the ranks is one node; the halves talk over TCP
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # no node is left behind when the other has failed

for node in 0 1; do
  # The same as `torchrun`, by the Python that is asked for.
  "${PYTHON:-python3}" -m torch.distributed.run --nnodes 2 --nproc-per-node 2 --node-rank "$node" \
    --master-addr 127.0.0.1 --master-port "${MASTER_PORT:-29500}" "$@" &
done
wait -n # fails if that node has
wait -n
