// One registration function per directory of the core.
#pragma once

#include <pybind11/pybind11.h>

namespace hier {

void register_errors(pybind11::module_& m);
void register_schedule(pybind11::module_& m);
void register_program(pybind11::module_& m);
void register_reduce(pybind11::module_& m);
void register_transport(pybind11::module_& m);
void register_device(pybind11::module_& m);
void register_group(pybind11::module_& m);
void register_nccl(pybind11::module_& m);
void register_optimizer(pybind11::module_& m);
void register_emulation(pybind11::module_& m);

}  // namespace hier
