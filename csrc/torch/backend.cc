// The PyTorch backend "hier": a c10d::Backend over hier::Group.
//
// The translation unit of csrc/torch, and the only one that sees torch: its headers take half a
// minute to compile.
#include <pybind11/chrono.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "torch/lists.h"
#include "torch/member_backend.h"
#include "torch/sparse.h"
#include "torch/split_calls.h"

#ifndef TORCH_BUILT_FOR
#define TORCH_BUILT_FOR TORCH_VERSION
#endif
#ifndef HIER_SOURCE_HASH
#define HIER_SOURCE_HASH "unknown"
#endif

namespace hier::torch_backend {
namespace {

class Backend final : public MemberBackend {
 public:
  using MemberBackend::MemberBackend;

  // A subgroup, of the members in `ranks`, whose store it has to itself.
  bool supportsSplitting() const override { return true; }
  c10::intrusive_ptr<c10d::Backend> split(const StorePtr& store, const std::vector<int>& ranks,
                                          const c10::intrusive_ptr<Options>& options) override {
    const py::gil_scoped_acquire gil;
    (void)group();  // there is one
    const py::object made = python("split")(communicator_, store, ranks, options->timeout,
                                            options->group_name, options->global_ranks_in_group);
    if (made.is_none()) return nullptr;
    return made.cast<c10::intrusive_ptr<Backend>>();
  }

  // In memory that the ranks of a node share. Every rank must call it, with the same arguments.
  bool supportsTensorAlloc(c10::DeviceIndex) override { return true; }
  at::Tensor allocateTensor(long size, at::TensorOptions options) override {
    const py::gil_scoped_acquire gil;
    (void)group();  // there is one
    const at::Tensor like = at::empty({0}, options);
    return python("allocate")(communicator_, size, like).cast<at::Tensor>();
  }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    if (!tensors.empty() && tensors[0].is_sparse()) return allreduce_sparse(tensors, options);
    CallBuilder builder(*this, OpType::ALLREDUCE, "hier:all_reduce", tensors, tensors);
    choose_device_stage(tensors);
    add_allreduce(builder, tensors, options.reduceOp);
    return builder.go(++sequence_, options);
  }

  WorkPtr allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    return sparse_allreduce(*this, ++sequence_, tensors, options);
  }

  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& options) override {
    CallBuilder builder(*this, OpType::ALLREDUCE_COALESCED, "hier:all_reduce", tensors, tensors);
    choose_device_stage(tensors);
    add_allreduce_coalesced(builder, tensors, options.reduceOp);
    return builder.go(++sequence_, options);
  }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    CallBuilder builder(*this, OpType::BROADCAST, "hier:broadcast", tensors, tensors);
    add_broadcast(builder, tensors, options.rootRank, options.rootTensor);
    return builder.go(++sequence_, options);
  }

  // Only the root's tensor changes; on the way to it others hold partial results.
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    CallBuilder builder(*this, OpType::REDUCE, "hier:reduce", tensors, tensors);
    c10d::assertRootRank(builder.refusal(), options.rootRank, getSize());
    c10d::assertSingleElement(builder.refusal(), tensors);
    c10d::assertRootTensor(builder.refusal(), options.rootTensor, 1);
    if (options.rootRank == getRank()) {
      builder.add_in_place(Collective::reduce, tensors[0], &options.reduceOp, options.rootRank);
    } else {
      builder.add(Collective::reduce, builder.copy_of(tensors[0]), &options.reduceOp,
                  options.rootRank);
    }
    return builder.go(++sequence_, options);
  }

  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& options) override {
    Tensors all;
    for (const Tensors& list : outputs) all.insert(all.end(), list.begin(), list.end());
    CallBuilder builder(*this, OpType::ALLGATHER, "hier:all_gather", inputs, std::move(all));
    add_allgather(builder, outputs, inputs);
    return builder.go(++sequence_, options);
  }

  // outputs[r][i] is rank r's inputs[i].
  WorkPtr allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& options) override {
    Tensors outs;
    for (const Tensors& list : outputs) outs.insert(outs.end(), list.begin(), list.end());
    CallBuilder builder(*this, OpType::ALLGATHER_COALESCED, "hier:all_gather", inputs,
                        std::move(outs));
    builder.require(outputs.size() == size(), "takes a list of output tensors per rank");
    for (const Tensors& of_rank : outputs) {
      builder.require(of_rank.size() == inputs.size(), "takes as many outputs per rank as inputs");
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      Tensors all;
      for (const Tensors& of_rank : outputs) all.push_back(of_rank[i]);
      add_gather(builder, Collective::allgather, inputs[i], all, all);
    }
    return builder.go(++sequence_, options);
  }

  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs,
                 const c10d::GatherOptions& options) override {
    const bool root = options.rootRank == getRank();
    const Tensors all = outputs.empty() ? Tensors{} : outputs[0];
    CallBuilder builder(*this, OpType::GATHER, "hier:gather", inputs, all);
    c10d::assertRootRank(builder.refusal(), options.rootRank, getSize());
    c10d::assertSingleElementInput(builder.refusal(), inputs);
    if (root) {
      c10d::assertGatherOutputTensorList(builder.refusal(), outputs, getSize());
    } else {
      c10d::assertEmptyOutputTensorList(builder.refusal(), all);
    }
    const Tensors parts = root ? all : Tensors(size(), inputs[0]);
    add_gather(builder, Collective::gather, inputs[0], parts, all, options.rootRank);
    return builder.go(++sequence_, options);
  }

  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                  const c10d::ScatterOptions& options) override {
    const bool root = options.rootRank == getRank();
    const Tensors all = inputs.empty() ? Tensors{} : inputs[0];
    CallBuilder builder(*this, OpType::SCATTER, "hier:scatter", all, outputs);
    c10d::assertRootRank(builder.refusal(), options.rootRank, getSize());
    c10d::assertSingleElementOutput(builder.refusal(), outputs);
    if (root) {
      c10d::assertScatterInputTensorList(builder.refusal(), inputs, getSize());
    } else {
      c10d::assertEmptyInputTensorList(builder.refusal(), all);
    }
    add_scatter(builder, outputs[0], all, options.rootRank);
    return builder.go(++sequence_, options);
  }

  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& options) override {
    CallBuilder builder(*this, OpType::_ALLGATHER_BASE, "hier:_all_gather_base", {input}, {output});
    add_allgather(builder, output, input);
    return builder.go(++sequence_, options);
  }

  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    CallBuilder builder(*this, OpType::_ALLGATHER_BASE, "hier:_all_gather_base", inputs, outputs);
    builder.require(inputs.size() == outputs.size(), "takes as many outputs as inputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      add_allgather(builder, outputs[i], inputs[i]);
    }
    return builder.go(++sequence_, options);
  }

  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options) override {
    const Tensors all = inputs.empty() ? Tensors{} : inputs[0];
    CallBuilder builder(*this, OpType::REDUCE_SCATTER, "hier:reduce_scatter", all, outputs);
    builder.require(inputs.size() == 1 && outputs.size() == 1 && all.size() == size(),
                    "takes one output tensor and a list of one input tensor per rank");
    add_reduce_scatter(builder, outputs[0], all, options.reduceOp);
    return builder.go(++sequence_, options);
  }

  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override {
    CallBuilder builder(*this, OpType::_REDUCE_SCATTER_BASE, "hier:_reduce_scatter_base", {input},
                        {output});
    add_reduce_scatter(builder, output, input, options.reduceOp);
    return builder.go(++sequence_, options);
  }

  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    CallBuilder builder(*this, OpType::_REDUCE_SCATTER_BASE, "hier:_reduce_scatter_base", inputs,
                        outputs);
    builder.require(inputs.size() == outputs.size(), "takes as many outputs as inputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      add_reduce_scatter(builder, outputs[i], inputs[i], options.reduceOp);
    }
    return builder.go(++sequence_, options);
  }

  WorkPtr alltoall(Tensors& outputs, Tensors& inputs,
                   const c10d::AllToAllOptions& options) override {
    CallBuilder builder(*this, OpType::ALLTOALL, "hier:all_to_all", inputs, outputs);
    builder.require(inputs.size() == size() && outputs.size() == size(),
                    "takes a list of one input and one of one output tensor per rank");
    add_alltoall(builder, outputs, inputs);
    return builder.go(++sequence_, options);
  }

  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits,
                        const c10d::AllToAllOptions& options) override {
    CallBuilder builder(*this, OpType::ALLTOALL_BASE, "hier:all_to_all", {input}, {output});
    add_alltoall(builder, output, input, output_splits, input_splits);
    return builder.go(++sequence_, options);
  }

  WorkPtr send(Tensors& tensors, int destination, int tag) override {
    CallBuilder builder(*this, OpType::SEND, "hier:send", tensors, {});
    return message(builder, true, tensors, destination, tag);
  }

  WorkPtr recv(Tensors& tensors, int source, int tag) override {
    CallBuilder builder(*this, OpType::RECV, "hier:recv", tensors, tensors);
    return message(builder, false, tensors, source, tag);
  }

  WorkPtr recvAnysource(Tensors& tensors, int tag) override {
    CallBuilder builder(*this, OpType::RECVANYSOURCE, "hier:recvAnySource", tensors, tensors);
    return message(builder, false, tensors, kAnySource, tag);
  }

  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    const at::Tensor token = at::zeros({1}, at::kByte);
    CallBuilder builder(*this, OpType::BARRIER, "hier:barrier", {token}, {});
    const c10d::ReduceOp op = c10d::ReduceOp::MAX;
    builder.add(Collective::barrier, token, &op);
    if (const auto results = streams().results(); !results.empty()) {
      builder.afterwards({}, [results] {
        for (const auto& event : results) event->synchronize();
      });
    }
    return builder.go(++sequence_, options);
  }

 private:
  size_t size() const { return static_cast<size_t>(getSize()); }

  // Before the first allreduce of GPU memory that is worth a local stage: all ranks come here.
  void choose_device_stage(const Tensors& tensors) {
    for (const auto& tensor : tensors) {
      if (tensor.is_cpu() || tensor.nbytes() <= group()->device_calls().host_path_bytes()) continue;
      if (device_stage_chosen_.exchange(true)) return;
      const py::gil_scoped_acquire gil;
      const py::object communicator = communicator_;  // this thread's, while another changes it
      if (!communicator) return (void)group();        // it says that there is none
      communicator.attr("use_device")(static_cast<int>(tensor.device().index()));
      return;
    }
  }

  WorkPtr message(CallBuilder& builder, bool send, const Tensors& tensors, int peer, int tag) {
    builder.require(tensors.size() == 1, "takes one tensor");
    builder.add_message(send, tensors[0], peer, tag);
    return builder.start();
  }
};

}  // namespace
}  // namespace hier::torch_backend

PYBIND11_MODULE(_backend, m) {
  using hier::torch_backend::Backend;
  m.doc() = "The PyTorch backend hier.";
  m.attr("built_for") = TORCH_BUILT_FOR;
  m.attr("source_hash") = HIER_SOURCE_HASH;
  py::module_::import("torch.distributed");  // binds the base class
  py::register_exception_translator(&hier::translate_error);
  py::class_<Backend, c10d::Backend, c10::intrusive_ptr<Backend>>(m, "Backend")
      .def(py::init([](Backend::StorePtr store, int rank, int size,
                       std::chrono::milliseconds timeout, std::string handle) {
             return c10::make_intrusive<Backend>(std::move(store), rank, size, timeout,
                                                 std::move(handle));
           }),
           py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("timeout"),
           py::arg("handle"))
      .def("enter", &Backend::enter, py::arg("communicator"), py::arg("store"))
#ifdef C10D_BACKEND_HAS_RECONFIGURE
      .def("leave", &Backend::leave, py::arg("uuid"))
#endif
      .def_property_readonly("handle", &Backend::handle)
      .def_property_readonly("options", &Backend::getBackendOptions)
      .def_property_readonly("communicator", &Backend::communicator);
  // Callbacks of futures take the GIL: none may run when the interpreter goes.
  py::module_::import("atexit").attr("register")(py::cpp_function(
      [] { hier::torch_backend::pool().stop(); }, py::call_guard<py::gil_scoped_release>()));
}
