// A c10d::Work over calls of the core.
//
// A blocking call runs in its caller's thread. An asynchronous one runs on the group's worker,
// which touches no tensor and no Python object: whoever waits, or else a thread of a pool, copies
// results back and completes the future. Its callbacks run there, with no call of the group on the
// stack, and may therefore wait for other collectives. Once wait() has returned, or isCompleted()
// has said so, the future is complete.
#pragma once

#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/ThreadLocalState.h>
#include <c10/core/StreamGuard.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/floating_point.h"
#include "base/fork.h"
#include "torch/call_batch.h"
#include "torch/device_streams.h"
#include "torch/errors.h"
#include "torch/pool.h"

namespace hier::torch_backend {

using Tensors = std::vector<at::Tensor>;
using Milliseconds = std::chrono::milliseconds;
using Future = c10::ivalue::Future;
using c10d::OpType;

inline Pool& pool() {
  static PerProcess<Pool> pool;  // a forked child has none of its parent's threads
  return pool.get();
}

// Nobody waits with the GIL. c10d's bindings have released it already; other callers may not have.
// While the process exits, a thread does not come back to c10d's bindings: they would ask for the
// GIL of an interpreter that ends, and the process would with SIGABRT.
class WithoutGil {
 public:
  WithoutGil() : saved_(Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
  ~WithoutGil() {
    while (exiting_elsewhere()) ::pause();
    if (saved_) PyEval_RestoreThread(saved_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* const saved_;
};

// Staging copies are no business of autograd, nor of a tensor's version counter.
struct NoAutograd {
  at::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
};

// What a future fails with. Stock DDP meets it in the autograd engine, which keeps the Python class
// of torch's own kind of error only.
struct FutureError final : torch::PyTorchError {
  explicit FutureError(const Error& e) : PyTorchError(e.what()), kind(e.kind()) {}
  PyObject* python_type() override { return python_class(kind).ptr(); }  // the module keeps it
  ErrorKind kind;
};

// A call's timeout as the core takes it, where a negative one is the group's.
inline double seconds_of(Milliseconds timeout) {
  return timeout < kNoTimeout ? -1 : Seconds(timeout).count();
}

struct Operation {
  Operation(OpType type, const char* title, Tensors inputs, Tensors outputs)
      : type(type), title(title), inputs(std::move(inputs)), outputs(std::move(outputs)) {}

  const OpType type;
  const char* const title;  // the profiler's name for it: "hier:all_reduce"
  const Tensors inputs;
  Tensors outputs;
  CallBatch batch;
  std::vector<ByteRange> ranges;                          // of inputs and outputs
  std::vector<std::shared_ptr<MemoryUse>> earlier;        // whom this one comes after
  std::vector<std::function<void()>> before;              // behind them: copies of inputs
  std::shared_ptr<MemoryUse> use;                         // for the core, once it is started
  Tensors buffers;                                        // what the calls point into
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // from, to: after the end
  std::function<void()> afterwards;                       // behind them
  Tensors sums_to_divide;                                 // before them, by the number of ranks
  std::shared_ptr<const DeviceStreams> streams;           // null: the tensors are in host memory

  // To be told to the core with its calls.
  void make_use() {
    use = std::make_shared<MemoryUse>();
    use->earlier = std::move(earlier);
    use->delivered.store(streams || !has_copies(),
                         std::memory_order_relaxed);  // nobody else has it
    if (!before.empty()) {
      use->begin = [jobs = std::move(before)] {
        const NoAutograd no_autograd;
        for (const auto& job : jobs) job();
      };
    }
    batch.set_use(use);
  }
  bool has_copies() const {
    return !copies.empty() || afterwards != nullptr || !sums_to_divide.empty();
  }
};

class TorchWork final : public c10d::Work {
 public:
  TorchWork(int rank, int size, std::unique_ptr<Operation> operation, uint64_t sequence)
      : Work(rank, operation->type, operation->title, operation->inputs),
        size_(size),
        operation_(std::move(operation)),
        sequence_(sequence) {}

  void run(Group& group, double timeout) {
    const WithoutGil nogil;
    std::exception_ptr error;
    if (!operation_->earlier.empty()) operation_->make_use();
    try {
      operation_->batch.run(group, timeout);
      copy_back();
    } catch (...) {
      error = std::current_exception();
    }
    finish(error);
    completed_.store(true, std::memory_order_release);
    if (error) std::rethrow_exception(error);
  }

  void start(const std::shared_ptr<Group>& group, double timeout) {
    const WithoutGil nogil;
    state_.emplace();
    pool().prepare();
    auto self = c10::intrusive_ptr<TorchWork>::unsafe_reclaim_from_nonowning(this);
    const auto ranges = std::move(operation_->ranges);  // none: it is a message
    if (!ranges.empty()) operation_->make_use();
    const auto use = operation_->use;
    starting_ = true;
    operation_->batch.start(group, timeout, [self, starter = std::this_thread::get_id()]() mutable {
      // What ends here and now, as a small send does, has no callbacks yet.
      if (std::this_thread::get_id() == starter && self->starting_) return self->deliver();
      if (Waiting::takes(self.get())) return;
      pool().push([self = std::move(self)] { self->deliver(); });
    });
    starting_ = false;
    if (!use) return;
    if (!use->over()) use->set_deliver([self] { self->complete(); });
    group->publish(use, ranges);
  }

  // Enqueues everything, the copies behind the calls too; nobody waits here.
  void start_on_device(const std::shared_ptr<Group>& group, double timeout) {
    const WithoutGil nogil;
    const DeviceStreams& streams = *operation_->streams;
    pool().prepare();
    auto self = c10::intrusive_ptr<TorchWork>::unsafe_reclaim_from_nonowning(this);
    operation_->make_use();
    try {
      operation_->batch.start(group, timeout, [self]() mutable {
        pool().push([self = std::move(self)] { self->finish(self->operation_->batch.error()); });
      });
    } catch (...) {  // a part may be under way
      keep_memory();
      streams.order(streams.in, streams.current());
      streams.order(streams.out, streams.current());
      throw;
    }
    group->publish(operation_->use, operation_->ranges);
    if (size_ == 1) {  // no stage has done so
      streams.order(streams.current(), streams.out);
      streams.order(streams.in, streams.out);
    }
    const c10::StreamGuard on_out(streams.out);
    copy_back();
    keep_memory();
    ready_.emplace(streams.device.type());
    ready_->record(streams.out);
    future_ = c10::make_intrusive<Future>(c10::ListType::create(c10::TensorType::get()),
                                          std::vector<c10::Device>{streams.device});
    future_->markCompleted(c10::IValue(operation_->outputs));  // in stream order, as results are
  }

  bool wait(Milliseconds timeout) override {
    origin_.check();
    const WithoutGil nogil;
    if (ready_) {
      // After an error too: copies of the tensors may be under way.
      ready_->block(operation_->streams->current());
      if (const auto error = operation_->batch.error()) std::rethrow_exception(error);
      return true;
    }
    {
      Waiting here(this);
      if (!operation_->batch.wait(timeout > kNoTimeout ? Seconds(timeout).count() : -1)) {
        throw Timeout(std::string(operation_->title) + ": not ended after " +
                      std::to_string(timeout.count()) + " ms of Work.wait; it goes on");
      }
      here.ends_well();
    }
    deliver();
    // Another thread may be about to complete it.
    if (const auto future = requested_future()) future->wait();
    if (const auto error = exception()) std::rethrow_exception(error);
    return true;
  }

  void synchronize() override { wait(kNoTimeout); }

  bool isCompleted() override {
    origin_.check();
    if (!operation_->batch.done()) return false;
    if (ready_) return operation_->batch.error() || ready_->query();
    complete();
    const auto future = requested_future();
    return !future || future->completed();
  }

  Tensors result() override { return operation_->outputs; }
  uint64_t getSequencenumber() const override { return sequence_; }
  int sourceRank() const override {
    origin_.check();
    return operation_->batch.source();
  }
  bool isSuccess() const override {
    origin_.check();
    return Work::isSuccess();
  }
  std::exception_ptr exception() const override {
    origin_.check();
    return Work::exception();
  }

  c10::intrusive_ptr<Future> getFuture() override {
    origin_.check();
    if (!ready_ && operation_->batch.done()) complete();
    const std::lock_guard lock(future_mutex_);
    if (!future_) {
      future_ = c10::make_intrusive<Future>(c10::ListType::create(c10::TensorType::get()));
      settled_ = completed_.load(std::memory_order_acquire);
      if (settled_) settle(*future_);  // it has no callbacks yet
    }
    return future_;
  }

 private:
  void keep_memory() const {
    const DeviceStreams& streams = *operation_->streams;
    streams.keep(operation_->inputs);
    streams.keep(operation_->outputs);
    streams.keep(operation_->buffers);
  }

  void copy_back() {
    const NoAutograd no_autograd;
    const DefaultFloatingPoint floating_point;  // of sparse sums, that each rank adds up for itself
    for (const auto& sum : operation_->sums_to_divide) sum.div_(size_, "trunc");
    for (const auto& [from, to] : operation_->copies) to.copy_(from);
    if (operation_->afterwards) operation_->afterwards();
  }

  // Copies results back and records the outcome. Whoever comes first does it, the others wait.
  void complete() {
    const std::lock_guard lock(complete_mutex_);
    if (completed_.load(std::memory_order_relaxed)) return;
    auto error = operation_->batch.error();
    try {
      if (!error) copy_back();
    } catch (...) {
      error = std::current_exception();
    }
    if (operation_->use) operation_->use->set_delivered();
    finish(error);
    completed_.store(true, std::memory_order_release);
  }

  c10::intrusive_ptr<Future> requested_future() {
    const std::lock_guard lock(future_mutex_);
    return future_;
  }

  // Of a call that has ended: completes the future that has been asked for, unless another thread
  // has taken that upon itself, and runs its callbacks. One that is asked for later is complete.
  void deliver() {
    complete();
    {
      const std::lock_guard lock(future_mutex_);
      if (!future_ || std::exchange(settled_, true)) return;
    }
    const at::ThreadLocalStateGuard as_in_caller(*state_);
    try {
      settle(*future_);
    } catch (const std::exception& e) {
      TORCH_WARN("a callback of the future of ", operation_->title, " failed: ", e.what());
    }
  }

  void settle(Future& future) {
    try {
      if (const auto error = exception()) std::rethrow_exception(error);
    } catch (const Error& e) {
      return future.setError(std::make_exception_ptr(FutureError(e)));
    } catch (const std::exception&) {
      return future.setError(std::current_exception());
    }
    future.markCompleted(c10::IValue(operation_->outputs));
  }

  // A thread that waits for a work and may drive it to its end meanwhile. It then delivers the work
  // itself, after the wait: no thread of the pool is roused, and no callback runs while it drives.
  class Waiting {
   public:
    explicit Waiting(TorchWork* work) : work_(work), outer_(std::exchange(innermost_, this)) {}
    ~Waiting() {
      innermost_ = outer_;
      if (!ended_) return;  // a signal has broken the wait off just then
      auto work = c10::intrusive_ptr<TorchWork>::unsafe_reclaim_from_nonowning(work_);
      pool().push([work = std::move(work)] { work->deliver(); });
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

    static bool takes(const TorchWork* work) {
      if (!innermost_ || innermost_->work_ != work) return false;
      return innermost_->ended_ = true;
    }
    void ends_well() { ended_ = false; }

   private:
    inline static thread_local Waiting* innermost_ = nullptr;
    TorchWork* const work_;
    Waiting* const outer_;
    bool ended_ = false;
  };

  const Origin origin_;
  const int size_;
  std::unique_ptr<Operation> operation_;  // keeps inputs, outputs and buffers alive
  const uint64_t sequence_;
  std::optional<c10::Event> ready_;            // on a device: behind the last copy
  bool starting_ = false;                      // touched by the thread that starts it
  std::optional<at::ThreadLocalState> state_;  // the caller's, for callbacks
  std::mutex complete_mutex_;                  // held while results are copied back
  std::atomic<bool> completed_{false};         // the outcome is recorded; release, acquire
  std::mutex future_mutex_;                    // guards the next two
  c10::intrusive_ptr<Future> future_;          // set once
  bool settled_ = false;                       // a thread completes the future, or has done so
};

}  // namespace hier::torch_backend
