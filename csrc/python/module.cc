// The extension module allreduce._C: the torch-free core.
#include "python/register.h"

#ifndef HIER_SOURCE_HASH
#define HIER_SOURCE_HASH "unknown"
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "The core of hier-allreduce: schedules, programs, reductions, transports, groups.";
  m.attr("source_hash") = HIER_SOURCE_HASH;
  hier::register_errors(m);
  hier::register_schedule(m);
  hier::register_program(m);
  hier::register_reduce(m);
  hier::register_transport(m);
  hier::register_device(m);
  hier::register_group(m);
  hier::register_nccl(m);
  hier::register_optimizer(m);
  hier::register_emulation(m);
}
