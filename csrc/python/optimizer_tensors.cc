// Reads the tensors of an optimizer's step, by DLPack's exchange API: a call of C for each, where
// Python would ask for address, type, sizes and strides one by one, and take longer than the GPU.
#include "python/optimizer_tensors.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "python/dlpack.h"
#include "python/register.h"

namespace py = pybind11;

namespace hier {
namespace {

using dlpack::Tensor;

// The core's name of a gradient's dtype; empty for what the kernels do not take.
std::string_view dtype_of(const Tensor& tensor) {
  if (tensor.type_lanes != 1) return "";
  const auto is = [&](dlpack::TypeCode code, int bits) {
    return tensor.type_code == code && tensor.type_bits == bits;
  };
  if (is(dlpack::floating, 32)) return "float32";
  if (is(dlpack::floating, 16)) return "float16";
  if (is(dlpack::brain_floating, 16)) return "bfloat16";
  return "";
}

bool is_f32(const Tensor& tensor) {
  return tensor.type_code == dlpack::floating && tensor.type_bits == 32 && tensor.type_lanes == 1;
}

size_t count_of(const Tensor& tensor) {
  size_t count = 1;
  for (int i = 0; i < tensor.ndim; ++i) count *= static_cast<size_t>(tensor.shape[i]);
  return count;
}

uintptr_t address_of(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
}

bool on_one_device(const Tensor& a, const Tensor& b) {
  return a.device_type == b.device_type && a.device_id == b.device_id;
}

// Whether two tensors have the same sizes, and elements in the same order.
bool alike(const Tensor& a, const Tensor& b) {
  if (!on_one_device(a, b) || a.ndim != b.ndim) return false;
  for (int i = 0; i < a.ndim; ++i) {
    if (a.shape[i] != b.shape[i]) return false;
    if (a.shape[i] != 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

// Whether the elements fill their memory in the order of the dimensions, the last one fastest.
bool is_contiguous(const Tensor& tensor) {
  int64_t expected = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

// Whether the elements fill their memory in any order of the dimensions.
bool is_dense(const Tensor& tensor) {
  if (is_contiguous(tensor) || count_of(tensor) == 0) return true;
  std::vector<std::pair<int64_t, int64_t>> order;  // stride and size
  for (int i = 0; i < tensor.ndim; ++i) {
    if (tensor.shape[i] != 1) order.emplace_back(tensor.strides[i], tensor.shape[i]);
  }
  std::sort(order.begin(), order.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : order) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Whether a kernel may take a parameter, its gradient of a dtype it knows, and perhaps its
// momentum.
bool fit(const Tensor& param, const Tensor& gradient, const Tensor* momentum) {
  if (!is_f32(param) || !alike(param, gradient) || !is_dense(param)) return false;
  return momentum == nullptr || (is_f32(*momentum) && alike(param, *momentum));
}

class TensorReader {
 public:
  // Tensors are of one of `types`, which have this API.
  TensorReader(const py::capsule& api, std::vector<py::type> types) : types_(std::move(types)) {
    const auto* found = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(api.ptr(), "dlpack_exchange_api"));
    if (found == nullptr) throw py::error_already_set();
    if (found->major != 1 || found->describe == nullptr) {
      throw UsageError("tensors need an exchange API of DLPack 1 that describes them");
    }
    describe_ = found->describe;
  }

  // One row for each parameter, without its numbers; nothing if the kernels do not take them all.
  std::optional<OptimizerTensors> read(const py::list& params, const py::list& gradients,
                                       const py::list& momenta) const {
    const size_t count = params.size();
    if (gradients.size() != count || (!momenta.empty() && momenta.size() != count)) {
      throw UsageError("give a gradient for each parameter, and a momentum for each or none");
    }
    OptimizerTensors result;
    result.rows.reserve(count);
    Tensor first{}, param{}, gradient{}, momentum{};
    const bool moves = !momenta.empty();
    for (size_t i = 0; i < count; ++i) {
      if (!describe(params, i, param) || !describe(gradients, i, gradient)) return std::nullopt;
      if (moves && !describe(momenta, i, momentum)) return std::nullopt;
      const std::string_view dtype = dtype_of(gradient);
      if (i == 0) {
        first = param;
        result.dtype = dtype;
      }
      if (dtype.empty() || dtype != result.dtype || !on_one_device(param, first) ||
          !fit(param, gradient, moves ? &momentum : nullptr)) {
        return std::nullopt;
      }
      result.rows.push_back({address_of(param), moves ? address_of(momentum) : 0,
                             address_of(gradient), count_of(param), 0.0, 0.0});
    }
    return result;
  }

 private:
  // False for what is no plain tensor with an address: of a subclass, or sparse.
  bool describe(const py::list& list, size_t i, Tensor& tensor) const {
    PyObject* object = PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i));
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    const bool plain = std::any_of(types_.begin(), types_.end(),
                                   [&](const py::type& known) { return known.ptr() == type; });
    if (!plain) return false;
    const bool described = describe_(object, &tensor) == 0;
    if (!described) PyErr_Clear();
    return described && (tensor.strides != nullptr || tensor.ndim == 0);
  }

  int (*describe_)(void*, Tensor*);
  std::vector<py::type> types_;
};

using Row = std::tuple<uintptr_t, uintptr_t, uintptr_t, size_t, double, double>;

OptimizerTensors from_rows(const std::vector<Row>& rows) {
  OptimizerTensors result;
  for (const auto& [parameters, momenta, gradients, count, decay, last] : rows) {
    result.rows.push_back({parameters, momenta, gradients, count, decay, last});
  }
  return result;
}

void set_numbers(OptimizerTensors& tensors, double weight_decay, const std::vector<double>& last) {
  if (last.size() != tensors.rows.size()) {
    throw UsageError("last must have a number for each of " + std::to_string(tensors.rows.size()) +
                     " tensors, not " + std::to_string(last.size()));
  }
  for (size_t i = 0; i < last.size(); ++i) {
    tensors.rows[i].weight_decay = weight_decay;
    tensors.rows[i].last = last[i];
  }
}

std::vector<size_t> counts(const OptimizerTensors& tensors) {
  std::vector<size_t> result;
  for (const OptimizerTensor& row : tensors.rows) result.push_back(row.count);
  return result;
}

}  // namespace

void register_optimizer(py::module_& m) {
  py::class_<OptimizerTensors>(m, "OptimizerTensors",
                               "(parameters, momenta, gradients, count, weight_decay, last) of each"
                               " tensor; a list of these converts by itself.")
      .def(py::init(&from_rows), py::arg("rows"))
      .def("__len__", [](const OptimizerTensors& tensors) { return tensors.rows.size(); })
      .def_readonly("dtype", &OptimizerTensors::dtype)
      .def_property_readonly("counts", &counts)
      .def_property_readonly("address",
                             [](const OptimizerTensors& tensors) {
                               return reinterpret_cast<uintptr_t>(tensors.rows.data());
                             })
      .def("set_numbers", &set_numbers, py::arg("weight_decay"), py::arg("last"));
  py::implicitly_convertible<py::list, OptimizerTensors>();
  py::class_<TensorReader>(m, "TensorReader")
      .def(py::init<const py::capsule&, std::vector<py::type>>(), py::arg("api"), py::arg("types"))
      .def("read", &TensorReader::read, py::arg("params"), py::arg("gradients"),
           py::arg("momenta"));
}

}  // namespace hier
