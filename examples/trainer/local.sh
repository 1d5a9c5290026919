#!/usr/bin/env bash
# The trainer alone: it starts its workers on this machine, which plays two nodes of two.
#
#   bash examples/trainer/local.sh --epochs 2
#
# The same command goes on from the newest checkpoint in --out.
set -euo pipefail
exec "${PYTHON:-python3}" -m trainer.run --workers 4 --nodes 2 --out runs/local "$@"
