// Open MPI and MPICH as peers: MPI_Allreduce in place, obeying the pipes in the folder argv[1].
#include <mpi.h>

#include "protocol.h"

static void allreduce(float* data, size_t count) {
  MPI_Allreduce(MPI_IN_PLACE, data, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank, size;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  serve(argv[1], rank, size, allreduce);
  MPI_Finalize();
}
