// The GPU's optimizers and data movers on raw pointers: addresses of the current device's memory,
// 0 for what there is not.
#include "python/cuda_kernels.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cuda/pack.h"
#include "cuda/sgd.h"

namespace py = pybind11;

namespace hier::cuda {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

SgdForm parse_form(const std::string& name) {
  if (name == "reference") return SgdForm::reference;
  if (name == "absorbed") return SgdForm::absorbed;
  throw UsageError("form must be reference or absorbed, not " + name);
}

void sgd_addresses(uintptr_t parameters, uintptr_t momenta, uintptr_t gradients,
                   const std::string& dtype, const std::vector<std::pair<size_t, double>>& ranges,
                   double lr, double momentum, bool nesterov, const std::string& form,
                   double correction, double scale, uintptr_t copy, uintptr_t stream) {
  std::vector<SgdRange> cut;
  for (const auto& [count, decay] : ranges) cut.push_back({count, decay});
  const SgdArrays arrays{pointer<float>(parameters), pointer<float>(momenta),
                         pointer<const void>(gradients), parse_dtype(dtype),
                         pointer<uint16_t>(copy)};
  const SgdStep step{parse_form(form), lr, momentum, correction, scale, nesterov};
  sgd(arrays, cut, step, pointer<void>(stream));
}

void register_optimizers(py::module_& m) {
  m.def("sgd", sgd_addresses,
        "One step of SGD over flat f32 arrays, in one pass. ranges: (count, weight_decay), one\n"
        "after the other. dtype: of the gradients, which are multiplied by scale. correction:\n"
        "eta / eta_before of the absorbed form. copy: receives the parameters as bf16.",
        py::arg("parameters"), py::arg("momenta"), py::arg("gradients"), py::arg("dtype"),
        py::arg("ranges"), py::kw_only(), py::arg("lr"), py::arg("momentum"), py::arg("nesterov"),
        py::arg("form") = "reference", py::arg("correction") = 1.0, py::arg("scale") = 1.0,
        py::arg("copy") = 0, py::arg("stream") = 0);
}

std::vector<Tensor> tensors_at(const std::vector<std::pair<uintptr_t, size_t>>& tensors) {
  std::vector<Tensor> result;
  for (const auto& [address, count] : tensors) result.push_back({pointer<void>(address), count});
  return result;
}

void pack_addresses(const std::vector<std::pair<uintptr_t, size_t>>& tensors,
                    const std::string& dtype, uintptr_t flat, const std::string& flat_dtype,
                    float scale, uintptr_t stream) {
  pack(tensors_at(tensors), parse_dtype(dtype), pointer<void>(flat), parse_dtype(flat_dtype), scale,
       pointer<void>(stream));
}

void unpack_addresses(const std::vector<std::pair<uintptr_t, size_t>>& tensors,
                      const std::string& dtype, uintptr_t flat, const std::string& flat_dtype,
                      float scale, uintptr_t stream) {
  unpack(tensors_at(tensors), parse_dtype(dtype), pointer<const void>(flat),
         parse_dtype(flat_dtype), scale, pointer<void>(stream));
}

void register_movers(py::module_& m) {
  m.def("pack", pack_addresses,
        "flat = the tensors, (address, count) each, one after the other, times scale.",
        py::arg("tensors"), py::arg("dtype"), py::arg("flat"), py::arg("flat_dtype"), py::kw_only(),
        py::arg("scale") = 1.0f, py::arg("stream") = 0);
  m.def("unpack", unpack_addresses, "The way back: the tensors = flat, times scale.",
        py::arg("tensors"), py::arg("dtype"), py::arg("flat"), py::arg("flat_dtype"), py::kw_only(),
        py::arg("scale") = 1.0f, py::arg("stream") = 0);
}

}  // namespace

void register_kernels(py::module_& m) {
  register_optimizers(m);
  register_movers(m);
}

}  // namespace hier::cuda
