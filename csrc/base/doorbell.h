// Waking the ranks of one node: a word in shared memory says who sleeps, an eventfd wakes him.
//
// The sleeper sets its word, looks once more for work, and only then sleeps on its eventfd; a peer
// publishes work, then looks at the word. Both do so across a sequentially consistent fence, so one
// of the two always sees the other (Dekker's argument) and no wake-up is lost.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/fd.h"

namespace hier {

struct alignas(64) SleepWord {
  std::atomic<uint32_t> asleep{0};
  // The rank's group has failed, and its callers have their memory back: see LocalStage.
  std::atomic<uint32_t> failed{0};
};

class Doorbells {
 public:
  Doorbells() = default;
  // words[i] and bells[i] belong to local rank i of this node.
  Doorbells(SleepWord* words, std::vector<Fd> bells, int local_rank)
      : words_(words),
        bells_(std::move(bells)),
        me_(local_rank),
        local_size_(static_cast<int>(bells_.size())) {}
  virtual ~Doorbells() = default;
  Doorbells(Doorbells&&) = default;
  Doorbells& operator=(Doorbells&&) = default;

  int fd() const { return bells_.empty() ? -1 : bells_[me_].get(); }

  void ring(int local_rank) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    wake(local_rank);
  }

  void ring_all() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    for (int i = 0; i < local_size_; ++i) {
      if (i != me_) wake(i);
    }
  }

  void prepare_to_sleep() {
    if (!words_) return;
    words_[me_].asleep.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }

  void woke_up() {
    if (!words_) return;
    words_[me_].asleep.store(0, std::memory_order_relaxed);
    if (bells_.empty()) return;
    eventfd_t rings = 0;
    (void)::eventfd_read(bells_[me_].get(), &rings);  // EAGAIN: nobody rang
  }

 protected:
  // Without descriptors: whoever derives from this wakes sleepers in rouse().
  Doorbells(SleepWord* words, int local_size, int local_rank)
      : words_(words), me_(local_rank), local_size_(local_size) {}
  virtual void rouse(int local_rank) { (void)::eventfd_write(bells_[local_rank].get(), 1); }

 private:
  void wake(int local_rank) {
    auto& word = words_[local_rank].asleep;
    if (word.load(std::memory_order_relaxed) && word.exchange(0, std::memory_order_relaxed)) {
      rouse(local_rank);
    }
  }

  SleepWord* words_ = nullptr;
  std::vector<Fd> bells_;
  int me_ = 0, local_size_ = 0;
};

}  // namespace hier
