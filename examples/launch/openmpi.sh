#!/usr/bin/env bash
# Open MPI's mpirun, which only starts the ranks: MPI itself is not used.
#
#   bash examples/launch/openmpi.sh examples/numpy_collectives.py
#
# On several hosts: mpirun -n 4 --host first:2,second:2 -x MASTER_ADDR=first ...
# without ALLREDUCE_NODES: which ranks share a host is found out.
set -euo pipefail
export ALLREDUCE_NODES=2 # this machine plays two nodes
# Also on a machine with fewer cores than ranks.
exec "${MPIRUN:-mpirun}" -n 4 --oversubscribe "${PYTHON:-python3}" "$@"
