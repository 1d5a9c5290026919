// The module allreduce._cuda: device queries and the GPU's reduce table on raw pointers. Kept apart
// from _C, so that _C loads wherever it was built without nvcc.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/reduce.h"
#include "cuda/runtime.h"
#include "python/cuda_kernels.h"

namespace py = pybind11;

namespace hier::cuda {
namespace {

template <class Pointer>
std::vector<Pointer> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<Pointer> result;
  for (const uintptr_t address : addresses) result.push_back(reinterpret_cast<Pointer>(address));
  return result;
}

void reduce_addresses(uintptr_t dst, uintptr_t src, const std::string& dtype, const std::string& op,
                      size_t count, uintptr_t stream) {
  reduce(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), parse_dtype(dtype),
         parse_op(op), count, reinterpret_cast<void*>(stream));
}

void reduce_many_addresses(const std::vector<uintptr_t>& outs,
                           const std::vector<uintptr_t>& sources, const std::string& dtype,
                           const std::string& op, size_t count, int divisor, uintptr_t stream) {
  reduce_many(parse_dtype(dtype), parse_op(op), pointers<void*>(outs),
              pointers<const void*>(sources), count, divisor, reinterpret_cast<void*>(stream));
}

void divide_address(uintptr_t data, const std::string& dtype, size_t count, int divisor,
                    uintptr_t stream) {
  divide(parse_dtype(dtype), reinterpret_cast<void*>(data), count, divisor,
         reinterpret_cast<void*>(stream));
}

py::object reason() {
  const std::string text = why_not();
  return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}

std::vector<py::tuple> device_tuples() {
  std::vector<py::tuple> tuples;
  for (const Device& device : devices()) {
    tuples.push_back(py::make_tuple(device.name, device.major, device.minor, device.memory_bytes));
  }
  return tuples;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  py::module_::import("allreduce._C");  // raises our errors as Python's
  m.def("runtime", &runtime, "The device runtime of the GPUs.", py::arg("callbacks") = false,
        py::return_value_policy::reference);
  m.def("has_memory_operations", has_memory_operations, "Whether the driver has them; untried.");
  m.def("is_available", [] { return why_not().empty(); }, "Whether there is a usable GPU.");
  m.def("why_not", reason, "Why there is none, or None.");
  m.def("device_count", [] { return devices().size(); }, "How many GPUs can be used.");
  m.def("devices", device_tuples, "(name, major, minor, bytes of memory) of each GPU.");
  m.def("can_access_peer", can_access_peer, "Whether a GPU reaches another one's memory.",
        py::arg("device"), py::arg("peer"));
  m.def("driver_version", driver_version, "CUDA version of the driver, 13000 for 13.0; 0: none.");
  m.def("runtime_version", runtime_version, "CUDA version of the runtime linked in.");
  m.def("reduce", reduce_addresses, "dst[i] = dst[i] op src[i], asynchronously on stream.",
        py::arg("dst"), py::arg("src"), py::arg("dtype"), py::arg("op"), py::arg("count"),
        py::arg("stream") = 0);
  m.def("reduce_many", reduce_many_addresses,
        "Each out = the sources reduced in tree order, divided by divisor.", py::arg("outs"),
        py::arg("sources"), py::arg("dtype"), py::arg("op"), py::arg("count"),
        py::arg("divisor") = 1, py::arg("stream") = 0);
  m.def("divide", divide_address, "data[i] /= divisor.", py::arg("data"), py::arg("dtype"),
        py::arg("count"), py::arg("divisor"), py::arg("stream") = 0);
  register_kernels(m);
}

}  // namespace hier::cuda
