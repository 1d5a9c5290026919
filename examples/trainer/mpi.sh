#!/usr/bin/env bash
# The trainer under Open MPI or MPICH, which only start the processes: MPI is not used.
#
#   bash examples/trainer/mpi.sh --epochs 2           # MPIEXEC=mpiexec.hydra for MPICH
#
# On several hosts pass MASTER_ADDR on: mpirun -x MASTER_ADDR=FIRST, mpiexec -genv MASTER_ADDR FIRST.
set -euo pipefail
exec "${MPIEXEC:-mpirun}" -n 4 "${PYTHON:-python3}" -m trainer.run --out runs/mpi "$@"
