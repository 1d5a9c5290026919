// The GPU's optimizers and data movers on raw pointers: addresses of the current device's memory,
// 0 for what there is not.
#include "python/cuda_kernels.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cuda/lars.h"
#include "cuda/pack.h"
#include "cuda/peer.h"
#include "cuda/sgd.h"
#include "python/optimizer_tensors.h"

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

std::vector<SgdRange> ranges_of(const std::vector<std::pair<size_t, double>>& ranges) {
  std::vector<SgdRange> result;
  for (const auto& [count, decay] : ranges) result.push_back({count, decay});
  return result;
}

SgdTensor sgd_tensor(const OptimizerTensor& tensor) {
  return {pointer<float>(tensor.parameters), pointer<float>(tensor.momenta),
          pointer<const void>(tensor.gradients), tensor.count, tensor.weight_decay};
}

void sgd_addresses(const OptimizerTensors& tensors, const std::string& dtype, double lr,
                   double momentum, bool nesterov, const std::string& form, double scale,
                   uintptr_t copy, uintptr_t stream) {
  std::vector<SgdTensor> at;
  for (const OptimizerTensor& tensor : tensors.rows) {
    at.push_back(sgd_tensor(tensor));
    at.back().correction = tensor.last;
  }
  sgd(at, parse_dtype(dtype), {parse_form(form), lr, momentum, scale, nesterov},
      pointer<uint16_t>(copy), pointer<void>(stream));
}

void lars_addresses(const OptimizerTensors& tensors, const std::string& dtype, uintptr_t workspace,
                    double lr, double momentum, bool nesterov, double scale, uintptr_t stream) {
  std::vector<LarsTensor> at;
  for (const OptimizerTensor& tensor : tensors.rows) {
    at.push_back({sgd_tensor(tensor), tensor.last});
  }
  lars(at, parse_dtype(dtype), {SgdForm::reference, lr, momentum, scale, nesterov},
       pointer<float>(workspace), pointer<void>(stream));
}

void register_optimizers(py::module_& m) {
  m.def("sgd", sgd_addresses,
        "One step of SGD, in one pass. tensors: OptimizerTensors, or a list of (parameters,\n"
        "momenta, gradients, count, weight_decay, correction), f32 but for the gradients, which\n"
        "are of dtype and multiplied by scale; tensors that adjoin in all arrays are handled as\n"
        "one. correction: eta / eta_before of the absorbed form. copy: receives the parameters as\n"
        "bf16, one tensor after the other.",
        py::arg("tensors"), py::arg("dtype"), py::kw_only(), py::arg("lr"), py::arg("momentum"),
        py::arg("nesterov"), py::arg("form") = "reference", py::arg("scale") = 1.0,
        py::arg("copy") = 0, py::arg("stream") = 0);
  m.def(
      "lars_workspace", [](const std::vector<size_t>& counts) { return lars_workspace(counts); },
      "f32 elements of lars's workspace.", py::arg("counts"));
  m.def("lars", lars_addresses,
        "One step of LARS. tensors: (parameters, momenta, gradients, count, weight_decay, trust),\n"
        "as for sgd; trust 0 gives a plain step. workspace: f32, lars_workspace(counts) elements.",
        py::arg("tensors"), py::arg("dtype"), py::arg("workspace"), py::kw_only(), py::arg("lr"),
        py::arg("momentum"), py::arg("nesterov"), py::arg("scale") = 1.0, py::arg("stream") = 0);
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

std::vector<void*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<void*> result;
  for (const uintptr_t address : addresses) result.push_back(pointer<void>(address));
  return result;
}

void reduce_scatter_addresses(const std::vector<uintptr_t>& signals, size_t rank, double timeout,
                              const std::vector<uintptr_t>& inputs, const std::string& dtype,
                              uintptr_t shard, size_t count, float scale, uintptr_t stream) {
  const std::vector<void*> flags = pointers(signals);
  reduce_scatter({flags, rank, timeout}, pointers(inputs), parse_dtype(dtype),
                 pointer<float>(shard), count, scale, pointer<void>(stream));
}

void allgather_addresses(const std::vector<uintptr_t>& signals, size_t rank, double timeout,
                         uintptr_t shard, const std::vector<uintptr_t>& outputs,
                         const std::string& dtype, size_t count, uintptr_t stream) {
  const std::vector<void*> flags = pointers(signals);
  allgather({flags, rank, timeout}, pointer<const float>(shard), pointers(outputs),
            parse_dtype(dtype), count, pointer<void>(stream));
}

void fused_addresses(const std::vector<uintptr_t>& signals, size_t rank, double timeout,
                     const std::vector<uintptr_t>& gradients, const std::vector<uintptr_t>& outputs,
                     const std::string& dtype, uintptr_t parameters, uintptr_t momenta,
                     const std::vector<std::pair<size_t, double>>& ranges, double lr,
                     double momentum, bool nesterov, double scale, uintptr_t stream) {
  const std::vector<void*> flags = pointers(signals);
  const SgdStep step{SgdForm::reference, lr, momentum, scale, nesterov};
  reduce_scatter_sgd_allgather({flags, rank, timeout}, pointers(gradients), pointers(outputs),
                               parse_dtype(dtype), pointer<float>(parameters),
                               pointer<float>(momenta), ranges_of(ranges), step,
                               pointer<void>(stream));
}

py::tuple shard_tuple(size_t count, size_t num_ranks, size_t rank) {
  if (rank >= num_ranks) throw UsageError("rank must be below num_ranks");
  const Shard shard = shard_of(count, num_ranks, rank);
  return py::make_tuple(shard.begin, shard.end);
}

void register_peers(py::module_& m) {
  m.def("signals_bytes", signals_bytes, "Bytes of a rank's signals, zeroed before the first call.");
  m.def("shard_of", shard_tuple, "(begin, end) of the part of an array that a rank owns.",
        py::arg("count"), py::arg("num_ranks"), py::arg("rank"));
  m.def("reduce_scatter", reduce_scatter_addresses,
        "shard (f32) = scale * the sum of this part of all ranks' inputs.", py::arg("signals"),
        py::arg("rank"), py::arg("timeout"), py::arg("inputs"), py::arg("dtype"), py::arg("shard"),
        py::arg("count"), py::arg("scale") = 1.0f, py::arg("stream") = 0);
  m.def("allgather", allgather_addresses, "This part of all ranks' outputs = shard (f32).",
        py::arg("signals"), py::arg("rank"), py::arg("timeout"), py::arg("shard"),
        py::arg("outputs"), py::arg("dtype"), py::arg("count"), py::arg("stream") = 0);
  m.def("reduce_scatter_sgd_allgather", fused_addresses,
        "Sums this part of the gradients, takes a step of SGD on it and writes it to all outputs.",
        py::arg("signals"), py::arg("rank"), py::arg("timeout"), py::arg("gradients"),
        py::arg("outputs"), py::arg("dtype"), py::arg("parameters"), py::arg("momenta"),
        py::arg("ranges"), py::kw_only(), py::arg("lr"), py::arg("momentum"), py::arg("nesterov"),
        py::arg("scale") = 1.0, py::arg("stream") = 0);
}

}  // namespace

void register_kernels(py::module_& m) {
  register_optimizers(m);
  register_movers(m);
  register_peers(m);
}

}  // namespace hier::cuda
