// The PyTorch backend "hier": a c10d::Backend over hier::Group.
//
// The translation unit of csrc/torch, and the only one that sees torch: its headers take half a
// minute to compile.
#include <pybind11/chrono.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "torch/maker.h"

#ifndef TORCH_BUILT_FOR
#define TORCH_BUILT_FOR TORCH_VERSION
#endif
#ifndef HIER_SOURCE_HASH
#define HIER_SOURCE_HASH "unknown"
#endif

namespace hier::torch_backend {
namespace {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

constexpr const char* kName = "hier";

class Backend final : public c10d::Backend {
 public:
  Backend(std::shared_ptr<Group> group, int rank, int size, Milliseconds timeout)
      : c10d::Backend(rank, size),
        group_(std::move(group)),
        options_(c10::make_intrusive<Options>(kName, timeout)) {
    init();
  }

  ~Backend() override {
    if (Py_IsInitialized()) {
      const py::gil_scoped_acquire gil;
      communicator_ = py::object();
    } else {
      communicator_.release();
    }
  }

  const std::string getBackendName() const override { return kName; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }
  void setSequenceNumberForGroup() override {}  // each rank counts, from 0
  uint64_t getSequenceNumberForGroup() override { return sequence_; }

  void setTimeout(Milliseconds timeout) override {
    group_->set_timeout(Seconds(timeout).count());
    options_->timeout = timeout;
  }

  void abort() override {
    const WithoutGil nogil;
    group_->abort("rank " + std::to_string(getRank()) + " aborted the process group");
  }

  void shutdown() override {
    const WithoutGil nogil;
    group_->close();
    const py::gil_scoped_acquire gil;
    if (communicator_) communicator_.attr("close")();
  }

  py::object communicator() const { return communicator_ ? communicator_ : py::none(); }
  void set_communicator(py::object communicator) { communicator_ = std::move(communicator); }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    Maker maker(getRank(), OpType::ALLREDUCE, "hier:all_reduce", tensors, tensors);
    maker.require(tensors.size() == 1, "takes one tensor");
    maker.add_in_place(Collective::allreduce, tensors[0], &options.reduceOp);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& options) override {
    Maker maker(getRank(), OpType::ALLREDUCE_COALESCED, "hier:all_reduce", tensors, tensors);
    for (const auto& tensor : tensors) {
      maker.add_in_place(Collective::allreduce, tensor, &options.reduceOp);
    }
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    Maker maker(getRank(), OpType::BROADCAST, "hier:broadcast", tensors, tensors);
    maker.require(tensors.size() == 1, "takes one tensor");
    maker.add_in_place(Collective::broadcast, tensors[0], nullptr, options.rootRank);
    return maker.go(*group_, ++sequence_, options);
  }

  // Only the root's tensor changes; on the way to it others hold partial results.
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    Maker maker(getRank(), OpType::REDUCE, "hier:reduce", tensors, tensors);
    maker.require(tensors.size() == 1, "takes one tensor");
    if (options.rootRank == getRank()) {
      maker.add_in_place(Collective::reduce, tensors[0], &options.reduceOp, options.rootRank);
    } else {
      const auto scratch = tensors[0].clone(at::MemoryFormat::Contiguous);
      maker.add(Collective::reduce, plain(scratch), &options.reduceOp, options.rootRank);
    }
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& options) override {
    const Quiet quiet;
    const Tensors all = outputs.empty() ? Tensors{} : outputs[0];
    Maker maker(getRank(), OpType::ALLGATHER, "hier:all_gather", inputs, all);
    maker.require(inputs.size() == 1 && outputs.size() == 1 && all.size() == size(),
                  "takes one input tensor and a list of one output tensor per rank");
    gather_into(maker, Collective::allgather, inputs[0], all, all);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs,
                 const c10d::GatherOptions& options) override {
    const Quiet quiet;
    const bool root = options.rootRank == getRank();
    const Tensors all = outputs.empty() ? Tensors{} : outputs[0];
    Maker maker(getRank(), OpType::GATHER, "hier:gather", inputs, all);
    maker.require(inputs.size() == 1, "takes one input tensor");
    maker.require(all.size() == (root ? size() : 0),
                  "takes a list of one output tensor per rank on the destination, none elsewhere");
    const Tensors parts = root ? all : Tensors(size(), inputs[0]);
    gather_into(maker, Collective::gather, inputs[0], parts, all, options.rootRank);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& options) override {
    Maker maker(getRank(), OpType::_ALLGATHER_BASE, "hier:_all_gather_base", {input}, {output});
    add_allgather(maker, output, input);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    Maker maker(getRank(), OpType::_ALLGATHER_BASE, "hier:_all_gather_base", inputs, outputs);
    maker.require(inputs.size() == outputs.size(), "takes as many outputs as inputs");
    for (size_t i = 0; i < inputs.size(); ++i) add_allgather(maker, outputs[i], inputs[i]);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options) override {
    const Quiet quiet;
    const Tensors all = inputs.empty() ? Tensors{} : inputs[0];
    Maker maker(getRank(), OpType::REDUCE_SCATTER, "hier:reduce_scatter", all, outputs);
    maker.require(inputs.size() == 1 && outputs.size() == 1 && all.size() == size(),
                  "takes one output tensor and a list of one input tensor per rank");
    const auto mine = static_cast<size_t>(getRank());
    maker.require(all[mine].numel() == outputs[0].numel(),
                  "the output has not the size of this rank's input");
    Parts parts = parts_like(all, maker.elements().per_element);
    for (size_t i = 0; i < all.size(); ++i) parts.views[i].copy_(all[i]);
    maker.add(Collective::reduce_scatter, parts.flat, &options.reduceOp, 0,
              std::move(parts.bounds));
    maker.copy_back(parts.views[mine].view(outputs[0].sizes()), outputs[0]);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override {
    Maker maker(getRank(), OpType::_REDUCE_SCATTER_BASE, "hier:_reduce_scatter_base", {input},
                {output});
    add_reduce_scatter(maker, output, input, options.reduceOp);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    Maker maker(getRank(), OpType::_REDUCE_SCATTER_BASE, "hier:_reduce_scatter_base", inputs,
                outputs);
    maker.require(inputs.size() == outputs.size(), "takes as many outputs as inputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      add_reduce_scatter(maker, outputs[i], inputs[i], options.reduceOp);
    }
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    const at::Tensor token = at::zeros({1}, at::kByte);
    Maker maker(getRank(), OpType::BARRIER, "hier:barrier", {token}, {});
    const c10d::ReduceOp op = c10d::ReduceOp::MAX;
    maker.add(Collective::barrier, token, &op);
    return maker.go(*group_, ++sequence_, options);
  }

  WorkPtr scatter(Tensors&, std::vector<Tensors>&, const c10d::ScatterOptions&) override {
    refuse("scatter");
  }
  WorkPtr alltoall(Tensors&, Tensors&, const c10d::AllToAllOptions&) override {
    refuse("all_to_all");
  }
  WorkPtr alltoall_base(at::Tensor&, at::Tensor&, std::vector<int64_t>&, std::vector<int64_t>&,
                        const c10d::AllToAllOptions&) override {
    refuse("all_to_all_single");
  }
  WorkPtr send(Tensors&, int, int) override { refuse("send"); }
  WorkPtr recv(Tensors&, int, int) override { refuse("recv"); }
  WorkPtr recvAnysource(Tensors&, int) override { refuse("recv"); }

 private:
  size_t size() const { return static_cast<size_t>(getSize()); }

  [[noreturn]] void refuse(const char* what) const {
    C10_THROW_ERROR(NotImplementedError,
                    std::string(what) +
                        " is not supported yet by hier; use a gloo group for it: "
                        "dist.new_group(backend=\"gloo\")");
  }

  // `parts` give the shapes of all ranks' parts, `outputs` is where they go, if anywhere.
  void gather_into(Maker& maker, Collective collective, const at::Tensor& input,
                   const Tensors& parts, const Tensors& outputs, int64_t root = 0) {
    const auto mine = static_cast<size_t>(getRank());
    maker.require(parts[mine].numel() == input.numel(),
                  "this rank's output has not the size of its input");
    Parts joined = parts_like(parts, maker.elements().per_element);
    joined.views[mine].copy_(input.reshape(joined.views[mine].sizes()));
    maker.add(collective, joined.flat, nullptr, root, std::move(joined.bounds));
    for (size_t i = 0; i < outputs.size(); ++i) maker.copy_back(joined.views[i], outputs[i]);
  }

  void add_allgather(Maker& maker, const at::Tensor& output, const at::Tensor& input) {
    const Quiet quiet;
    maker.require(output.numel() == input.numel() * getSize(),
                  "the output must have world_size times the elements of the input");
    const at::Tensor buffer = plain(output);
    const at::Tensor mine = buffer.view(-1).narrow(0, getRank() * input.numel(), input.numel());
    if (mine.data_ptr() != input.data_ptr()) mine.copy_(input.reshape(-1));
    maker.add(Collective::allgather, buffer);
    if (!buffer.is_same(output)) maker.copy_back(buffer, output);
  }

  void add_reduce_scatter(Maker& maker, const at::Tensor& output, const at::Tensor& input,
                          const c10d::ReduceOp& op) {
    const Quiet quiet;
    maker.require(input.numel() == output.numel() * getSize(),
                  "the input must have world_size times the elements of the output");
    const at::Tensor scratch = plain(input.clone(at::MemoryFormat::Contiguous)).view(-1);
    maker.add(Collective::reduce_scatter, scratch, &op);
    const at::Tensor mine = scratch.narrow(0, getRank() * output.numel(), output.numel());
    maker.copy_back(mine.view(output.sizes()), output);
  }

  const std::shared_ptr<Group> group_;
  const c10::intrusive_ptr<Options> options_;
  std::atomic<uint64_t> sequence_{0};  // collectives so far; stands alone
  py::object communicator_;            // allreduce.Communicator of the group; touched with the GIL
};

std::shared_ptr<Group> group_of(const py::capsule& capsule) {
  if (std::string_view(capsule.name()) != "hier::Group") {
    throw UsageError("the capsule holds no hier::Group");
  }
  return *capsule.get_pointer<std::shared_ptr<Group>>();
}

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
      .def(py::init(
               [](const py::capsule& group, int rank, int size, std::chrono::milliseconds timeout) {
                 return c10::make_intrusive<Backend>(hier::torch_backend::group_of(group), rank,
                                                     size, timeout);
               }),
           py::arg("group"), py::arg("rank"), py::arg("size"), py::arg("timeout"))
      .def_property_readonly("options", &Backend::getBackendOptions)
      .def_property("communicator", &Backend::communicator, &Backend::set_communicator);
  // Callbacks of futures take the GIL: none may run when the interpreter goes.
  py::module_::import("atexit").attr("register")(py::cpp_function(
      [] { hier::torch_backend::pool().stop(); }, py::call_guard<py::gil_scoped_release>()));
}
