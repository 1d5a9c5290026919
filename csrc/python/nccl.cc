// Python bindings of csrc/nccl: device addresses and streams are integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "nccl/communicator.h"
#include "python/register.h"

namespace py = pybind11;

namespace hier {
namespace {

using nccl::Call, nccl::Collective, nccl::Communicator, nccl::DataType, nccl::Library;

template <class Value, size_t kCount>
Value named(const std::array<std::pair<const char*, Value>, kCount>& table, const char* what,
            const std::string& name) {
  std::string names;
  for (const auto& [known, value] : table) {
    if (name == known) return value;
    names += (names.empty() ? "" : ", ") + std::string(known);
  }
  throw UsageError(std::string(what) + "='" + name + "' is nothing that NCCL has: " + names);
}

DataType data_type(const std::string& name) {
  static constexpr std::array<std::pair<const char*, DataType>, 10> kTypes = {{
      {"int8", DataType::int8},
      {"uint8", DataType::uint8},
      {"int32", DataType::int32},
      {"uint32", DataType::uint32},
      {"int64", DataType::int64},
      {"uint64", DataType::uint64},
      {"float16", DataType::float16},
      {"float32", DataType::float32},
      {"float64", DataType::float64},
      {"bfloat16", DataType::bfloat16},
  }};
  return named(kTypes, "dtype", name);
}

nccl::ReduceOp reduce_op(const std::string& name) {
  static constexpr std::array<std::pair<const char*, nccl::ReduceOp>, 5> kOps = {{
      {"sum", nccl::ReduceOp::sum},
      {"prod", nccl::ReduceOp::prod},
      {"max", nccl::ReduceOp::max},
      {"min", nccl::ReduceOp::min},
      {"avg", nccl::ReduceOp::avg},
  }};
  return named(kOps, "op", name);
}

auto reducing(Collective collective) {
  return [collective](uintptr_t send, uintptr_t recv, size_t count, const std::string& dtype,
                      const std::string& op) {
    return Call{collective,
                reinterpret_cast<const void*>(send),
                reinterpret_cast<void*>(recv),
                count,
                data_type(dtype),
                reduce_op(op)};
  };
}

Call all_gather(uintptr_t send, uintptr_t recv, size_t count, const std::string& dtype) {
  return {Collective::all_gather, reinterpret_cast<const void*>(send),
          reinterpret_cast<void*>(recv), count, data_type(dtype)};
}

py::bytes unique_id(const Library& library) {
  const nccl::UniqueId id = nccl::unique_id(library);
  return py::bytes(id.bytes.data(), id.bytes.size());
}

// Ctrl-C works while a communicator waits.
void raise_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

std::unique_ptr<Communicator> join(const Library& library, const std::string& unique_id, int rank,
                                   int size, int max_ctas, double timeout) {
  nccl::UniqueId id{};
  if (unique_id.size() != id.bytes.size()) {
    throw UsageError("unique_id has " + std::to_string(unique_id.size()) + " bytes, not the " +
                     std::to_string(id.bytes.size()) + " that nccl_unique_id makes");
  }
  std::copy(unique_id.begin(), unique_id.end(), id.bytes.begin());
  const py::gil_scoped_release release;
  return std::make_unique<Communicator>(library, id, rank, size,
                                        nccl::Options{max_ctas, timeout, &raise_signals, {}});
}

}  // namespace

void register_nccl(py::module_& m) {
  using NoGil = py::call_guard<py::gil_scoped_release>;
  py::class_<Library>(m, "NcclLibrary")
      .def_readonly("path", &Library::path)
      .def_readonly("source", &Library::source)
      .def_property_readonly("version",
                             [](const Library& self) { return nccl::version_name(self.version); });
  m.def("load_nccl", nccl::load, "Loads NCCL from one file.", py::arg("path"), NoGil());
  m.def("find_nccl", nccl::find, "Loads the NCCL that this process should use.",
        py::arg("nccl_lib"), py::arg("wheels"), NoGil());
  m.def("nccl_unique_id", unique_id, "128 bytes that the ranks of a communicator agree on.",
        py::arg("library"));

  const Collective scatter = Collective::reduce_scatter, reduce = Collective::all_reduce;
  py::class_<Call>(m, "NcclCall")
      .def_static("reduce_scatter", reducing(scatter), py::arg("send"), py::arg("recv"),
                  py::arg("count"), py::arg("dtype"), py::arg("op") = "sum")
      .def_static("all_reduce", reducing(reduce), py::arg("send"), py::arg("recv"),
                  py::arg("count"), py::arg("dtype"), py::arg("op") = "sum")
      .def_static("all_gather", all_gather, py::arg("send"), py::arg("recv"), py::arg("count"),
                  py::arg("dtype"));
  py::class_<Communicator>(m, "NcclCommunicator")
      .def(py::init(&join), py::arg("library"), py::arg("unique_id"), py::arg("rank"),
           py::arg("size"), py::kw_only(), py::arg("max_ctas") = 8, py::arg("timeout") = 300.0)
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def(
          "start",
          [](Communicator& self, const Call& call, uintptr_t stream) {
            const py::gil_scoped_release release;
            self.start(call, reinterpret_cast<void*>(stream));
          },
          py::arg("call"), py::arg("stream") = 0)
      .def("check", &Communicator::check, NoGil())
      .def("abort", &Communicator::abort, NoGil())
      .def("close", &Communicator::close, NoGil());
}

}  // namespace hier
