#!/usr/bin/env bash
# MPICH's mpiexec (hydra; Intel MPI's is the same), which only starts the ranks: MPI is not used.
#
#   bash examples/launch/mpich.sh examples/numpy_collectives.py
#
# On several hosts: mpiexec -n 4 -ppn 2 -hosts first,second -genv MASTER_ADDR first
#   -genv MASTER_PORT 29500 ... without ALLREDUCE_NODES: which ranks share a host is found out.
set -euo pipefail
export ALLREDUCE_NODES=2 # this machine plays two nodes
exec "${MPIEXEC:-mpiexec}" -n 4 "${PYTHON:-python3}" "$@"
