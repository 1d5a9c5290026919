// What a forked child must not touch: objects of its parent's.
//
// In a child only the thread that forked goes on. A lock may be held for good by a thread that the
// child has not, a condition variable counts waiters that are not there, descriptors are closed
// (fd.h), and shared memory is the parent's. So a child neither uses nor destroys such an object.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

namespace hier {

// How many forks lie between this process and the first one.
unsigned fork_depth() noexcept;

// The process that an object was made in: a member of the object.
class Origin {
 public:
  bool inherited() const noexcept { return depth_ != fork_depth(); }
  void check() const;  // throws UsageError where inherited

 private:
  unsigned depth_ = fork_depth();
};

// A shared object whose memory a child leaves as it is: no destructor runs there.
template <class T, class... Args>
std::shared_ptr<T> make_kept_from_children(Args&&... args) {
  return {new T(std::forward<Args>(args)...), [origin = Origin()](T* object) {
            if (!origin.inherited()) delete object;
          }};
}

// One object for each process: a child makes its own. It is never destroyed, for threads may
// outlive main. From any thread.
template <class T>
class PerProcess {
 public:
  T& get() {
    Slot* slot = slot_.load(std::memory_order_acquire);  // pairs with the exchange
    while (!slot || slot->origin.inherited()) {
      auto fresh = std::make_unique<Slot>();
      if (slot_.compare_exchange_strong(slot, fresh.get(), std::memory_order_acq_rel)) {
        slot = fresh.release();
      }
    }
    return slot->object;
  }

 private:
  struct Slot {
    Origin origin;
    T object;
  };
  std::atomic<Slot*> slot_{nullptr};
};

}  // namespace hier
