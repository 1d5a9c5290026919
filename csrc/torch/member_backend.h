// A backend as the member of a group: which one it is in, how it leaves, and what went wrong there.
#pragma once

#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <variant>

#include "torch/device_streams.h"
#include "torch/monitored_barrier.h"
#include "torch/torch_work.h"

namespace hier::torch_backend {

inline constexpr const char* kName = "hier";

inline std::shared_ptr<Group> group_of(const py::capsule& capsule) {
  if (std::string_view(capsule.name()) != "hier::Group") {
    throw UsageError("the capsule holds no hier::Group");
  }
  return *capsule.get_pointer<std::shared_ptr<Group>>();
}

// Of what had ended before it was returned.
class EndedWork final : public c10d::Work {
 public:
  explicit EndedWork(int rank) : Work(rank) { finish(); }
};

// Hidden, as the Python objects in it are.
class [[gnu::visibility("hidden")]] MemberBackend : public DeviceBackend {
 public:
  using StorePtr = c10::intrusive_ptr<c10d::Store>;

  // `handle` is what others know this rank by: see reconfigure().
  MemberBackend(StorePtr store, int rank, int size, Milliseconds timeout, std::string handle)
      : DeviceBackend(rank, size),
        store_(std::move(store)),
        handle_(std::move(handle)),
        options_(c10::make_intrusive<Options>(kName, timeout)) {
    init();
  }

  ~MemberBackend() override {
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
    if (const auto group = group_.load()) group->set_timeout(Seconds(timeout).count());
    options_->timeout = timeout;
  }

  void abort() override {
    const WithoutGil nogil;
    if (const auto group = group_.load())
      group->abort("rank " + std::to_string(getRank()) + " aborted the process group");
  }

  void shutdown() override {
    const auto group = group_.load();
    if (!group || group->inherited()) return;  // a forked child is no member
    const WithoutGil nogil;
    group->drain();  // works outlive their group
    const py::gil_scoped_acquire gil;
    communicator_.attr("close")();  // the group too, behind what connects it
  }

  c10d::ErrorType getError() override {
    const auto group = group_.load();
    try {
      if (const auto error = group ? group->error() : nullptr) std::rethrow_exception(error);
    } catch (const Timeout&) {
      return c10d::ErrorType::TIMEOUT;
    } catch (const PeerError&) {
      return c10d::ErrorType::REMOTE_ERROR;
    } catch (...) {
      return c10d::ErrorType::COMM_ERROR;
    }
    return c10d::ErrorType::SUCCESS;
  }

  const std::string& handle() const { return handle_; }
  py::object communicator() const { return communicator_ ? communicator_ : py::none(); }

  // This rank is a member of the communicator's group from now on, whose store it is.
  void enter(py::object communicator, StorePtr store) {
    const py::object capsule = communicator.attr("_group").attr("capsule")();
    auto group = group_of(capsule.cast<py::capsule>());
    monitored_barrier_ = std::make_shared<MonitoredBarrier>(std::move(store), getRank(), getSize());
    communicator_ = std::move(communicator);
    group_ = std::move(group);
  }

#ifdef C10D_BACKEND_HAS_RECONFIGURE
  // Torch 2.14 on. The ranks of a group change, and the process group stays: those whose handles
  // are given make a group, whatever each was a member of before.
  bool supportsReconfigure() const override { return true; }
  c10d::ReconfigureHandle get_reconfigure_handle() const override { return handle_; }
  WorkPtr reconfigure(const c10d::ReconfigureOptions& options) override {
    const py::gil_scoped_acquire gil;
    if (uuids_.contains(options.uuid)) {
      throw UsageError("reconfigure: the uuid " + std::to_string(options.uuid) +
                       " was already used in this process group; give a fresh one, the same on "
                       "all members");
    }
    const py::object handles = std::visit(
        [](const auto& given) -> py::object { return py::cast(given); }, options.handles);
    const auto self = c10::intrusive_ptr<MemberBackend>::unsafe_reclaim_from_nonowning(this);
    python("reconfigure")(self, store_, options.uuid, handles,
                          options.timeout.value_or(options_->timeout));
    return c10::make_intrusive<EndedWork>(getRank());
  }

  // Leaves the group, as what is about to be rank `rank` of `size` in another, called `uuid`.
  void leave(int64_t uuid, int rank, int size) {
    uuids_.insert(uuid);
    group_ = std::shared_ptr<Group>();
    if (communicator_) communicator_.attr("close")();
    communicator_ = py::object();
    rank_ = rank;
    size_ = size;
    sequence_ = 0;
    device_stage_chosen_ = false;
  }
#endif

  void monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) override {
    group()->check_member();  // the store's connection is the parent's, too
    const auto barrier = monitored_barrier_.load();
    const WithoutGil nogil;
    const bool unset = options.timeout < kNoTimeout;
    barrier->run(unset ? options_->timeout : options.timeout, wait_all_ranks);
  }

 protected:
  static py::object python(const char* name) {
    return py::module_::import("allreduce.torch.backend.process_group").attr(name);
  }

  std::atomic<uint64_t> sequence_{0};  // collectives so far; stands alone
  std::atomic<bool> device_stage_chosen_{false};
  py::object communicator_;  // allreduce.Communicator of the group; touched with the GIL

 private:
  const StorePtr store_;
  const std::string handle_;
  const c10::intrusive_ptr<Options> options_;
  std::set<int64_t> uuids_;  // of the groups that it was a member of; touched with the GIL
  std::atomic<std::shared_ptr<MonitoredBarrier>> monitored_barrier_;  // of the group
};

}  // namespace hier::torch_backend
