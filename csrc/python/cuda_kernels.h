// The part of the module allreduce._cuda that is not its reduce table.
#pragma once

#include <pybind11/pybind11.h>

namespace hier::cuda {

void register_kernels(pybind11::module_& m);

}  // namespace hier::cuda
