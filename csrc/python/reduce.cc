// Python bindings of csrc/reduce, for tests and benchmarks: NumPy arrays, bf16 as uint16 arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "reduce/kernels.h"

namespace py = pybind11;

namespace hier {
namespace {

const Kernels& kernels_named(const std::string& name) {
  if (name.empty()) return best_kernels();
  std::string names;
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->name) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw UsageError("instruction set '" + name + "' is not one of this processor's: " + names);
}

// The array's data, once it is known to be what `dtype` says and to hold `count` elements.
void* checked_data(const py::array& array, DType dtype, py::ssize_t count, bool writeable) {
  const std::string expected = dtype == DType::bf16 ? "uint16" : name_of(dtype);
  if (!array.dtype().equal(py::dtype(expected))) {
    throw UsageError("expected an array of dtype " + expected + ", not " +
                     py::str(array.dtype()).cast<std::string>());
  }
  if ((array.flags() & py::array::c_style) == 0) {
    throw UsageError("the array must be C-contiguous");
  }
  if (array.size() != count) {
    throw UsageError("arrays of one reduction must have equal sizes, not " +
                     std::to_string(array.size()) + " and " + std::to_string(count));
  }
  if (writeable && !array.writeable()) throw UsageError("the destination is read-only");
  return const_cast<void*>(array.data());
}

void reduce_arrays(const py::array& dst, const py::array& src, const std::string& dtype,
                   const std::string& op, const std::string& instruction_set) {
  const DType type = parse_dtype(dtype);
  const ReduceOp operation = parse_op(op);
  check_supported(type, operation);
  const ReduceFn pair = kernels_named(instruction_set).at(type, operation).pair;
  void* const to = checked_data(dst, type, dst.size(), true);
  const void* const from = checked_data(src, type, dst.size(), false);
  const auto count = static_cast<size_t>(dst.size());
  const py::gil_scoped_release release;
  pair(to, from, count);
}

void reduce_many_arrays(const std::vector<py::array>& outs, const std::vector<py::array>& sources,
                        const std::string& dtype, const std::string& op, int divisor,
                        const std::string& instruction_set) {
  const DType type = parse_dtype(dtype);
  const ReduceOp operation = parse_op(op);
  const Kernels& kernels = kernels_named(instruction_set);
  const py::ssize_t count = outs.empty() ? 0 : outs[0].size();
  std::vector<void*> to;
  std::vector<const void*> from;
  for (const py::array& out : outs) to.push_back(checked_data(out, type, count, true));
  for (const py::array& source : sources) {
    from.push_back(checked_data(source, type, count, false));
  }
  const py::gil_scoped_release release;
  reduce_many(kernels, type, operation, to, from, static_cast<size_t>(count), divisor);
}

void divide_array(const py::array& data, const std::string& dtype, int divisor,
                  const std::string& instruction_set) {
  const DType type = parse_dtype(dtype);
  const Kernels& kernels = kernels_named(instruction_set);
  void* const at = checked_data(data, type, data.size(), true);
  const auto count = static_cast<size_t>(data.size());
  const py::gil_scoped_release release;
  divide(kernels, type, at, count, divisor);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace

void register_reduce(py::module_& m) {
  m.def("reduce", reduce_arrays, "dst[i] = dst[i] op src[i].", py::arg("dst"), py::arg("src"),
        py::arg("dtype"), py::arg("op") = "sum", py::arg("instruction_set") = "");
  m.def("reduce_many", reduce_many_arrays,
        "Each out = the sources reduced in tree order, divided by divisor.", py::arg("outs"),
        py::arg("sources"), py::arg("dtype"), py::arg("op") = "sum", py::arg("divisor") = 1,
        py::arg("instruction_set") = "");
  m.def("divide", divide_array, "data[i] /= divisor.", py::arg("data"), py::arg("dtype"),
        py::arg("divisor"), py::arg("instruction_set") = "");
  m.def("instruction_set", instruction_set, "The instruction set in use.");
  m.def("instruction_sets", instruction_sets,
        "The instruction sets of this processor that have kernels, best first.");
}

}  // namespace hier
