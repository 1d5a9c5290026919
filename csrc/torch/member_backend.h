// Membership of a backend: its current group, leaving it, reconfigure, and errors.
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
    if (const auto group = current_group()) group->set_timeout(Seconds(timeout).count());
    options_->timeout = timeout;
  }

  void abort() override {
    const WithoutGil nogil;
    if (const auto group = current_group())
      group->abort("rank " + std::to_string(getRank()) + " aborted the process group");
  }

  void shutdown() override {
    if (origin_.inherited()) return;  // a forked child is no member
    const py::gil_scoped_acquire gil;
    shut_down_ = true;
    const auto group = current_group();
    const py::object communicator = communicator_;  // of this group, whatever comes meanwhile
    if (!group) return;
    {
      const WithoutGil nogil;
      group->drain();  // works outlive their group
    }
    communicator.attr("close")();  // the group too, behind what connects it
  }

  c10d::ErrorType getError() override {
    const auto group = current_group();
    if (!group && has_left_) return c10d::ErrorType::COMM_ERROR;
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

  // Makes the communicator's group the current one; `store` is that group's.
  void enter(py::object communicator, StorePtr store) {
    if (shut_down_) {
      communicator.attr("close")();
      throw AbortedError("the process group was destroyed while it was reconfigured");
    }
    const py::object capsule = communicator.attr("_group").attr("capsule")();
    auto group = group_of(capsule.cast<py::capsule>());
    const auto rank = communicator.attr("rank").cast<int>();
    const auto size = communicator.attr("world_size").cast<int>();
#ifdef C10D_BACKEND_HAS_RECONFIGURE
    rank_ = rank;
    size_ = size;
#endif
    group->set_timeout(Seconds(options_->timeout).count());  // the start may have had another
    monitored_barrier_ = std::make_shared<MonitoredBarrier>(std::move(store), rank, size);
    communicator_ = std::move(communicator);
    set_group(std::move(group));
  }

#ifdef C10D_BACKEND_HAS_RECONFIGURE
  // Torch 2.14 on. The members change and the process group stays: those whose handles are given
  // make a group, whatever each was a member of before. Returns when it is made.
  bool supportsReconfigure() const override { return true; }
  c10d::ReconfigureHandle get_reconfigure_handle() const override { return handle_; }
  WorkPtr reconfigure(const c10d::ReconfigureOptions& options) override {
    origin_.check();
    const py::gil_scoped_acquire gil;
    if (shut_down_) throw AbortedError("reconfigure: the process group was destroyed");
    if (uuids_.contains(options.uuid)) {
      throw UsageError("reconfigure: the uuid " + std::to_string(options.uuid) +
                       " was already used in this process group; give a fresh one, the same on "
                       "all members");
    }
    const py::object handles = std::visit(
        [](const auto& given) -> py::object { return py::cast(given); }, options.handles);
    const auto self = c10::intrusive_ptr<MemberBackend>::unsafe_reclaim_from_nonowning(this);
    const auto timeout = options.timeout.value_or(options_->timeout);
    if (timeout.count() <= 0) throw UsageError("reconfigure: timeout must be positive");
    if (std::exchange(reconfiguring_, true)) {
      throw UsageError("reconfigure: another thread is reconfiguring this process group");
    }
    const auto end = [this](void*) { reconfiguring_ = false; };
    const std::unique_ptr<void, decltype(end)> at_the_end(this, end);
    python("reconfigure")(self, store_, options.uuid, handles, timeout);
    auto future = c10::make_intrusive<Future>(c10::NoneType::get());
    future->markCompleted(c10::IValue());
    return c10d::Work::create_from_future(future);
  }

  // Closes the current group; the next one is called `uuid`.
  void leave(int64_t uuid) {
    uuids_.insert(uuid);
    has_left_ = true;
    set_group(nullptr);
    if (communicator_) std::exchange(communicator_, py::object()).attr("close")();
    sequence_ = 0;
    device_stage_chosen_ = false;
  }
#endif

  void monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) override {
    std::shared_ptr<MonitoredBarrier> barrier;
    {
      const py::gil_scoped_acquire gil;
      (void)group();  // there is one; a child must not use the parent's connection to the store
      barrier = monitored_barrier_;
    }
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
  std::atomic<bool> has_left_{false};  // a group that it was a member of
  // Touched with the GIL:
  std::set<int64_t> uuids_;  // of the groups that it was to be a member of
  bool reconfiguring_ = false;
  bool shut_down_ = false;
  std::shared_ptr<MonitoredBarrier> monitored_barrier_;  // of the current group
};

}  // namespace hier::torch_backend
