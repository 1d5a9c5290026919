#!/usr/bin/env bash
# Two machines, two commands: the number of this one (0 or 1), then HOST:PORT of machine 0.
#
#   bash examples/trainer/two_machines.sh 0 node1:29500 --epochs 2     # on node1
#   bash examples/trainer/two_machines.sh 1 node1:29500 --epochs 2     # on node2
set -euo pipefail
machine=$1 master=$2
shift 2
exec "${PYTHON:-python3}" -m trainer.run --workers 8 --machines 2 --machine "$machine" \
  --master "$master" --out runs/two_machines "$@"
