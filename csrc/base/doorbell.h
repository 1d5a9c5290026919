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
#include <vector>

#include "base/fd.h"

namespace hier {

struct alignas(64) SleepWord {
  std::atomic<uint32_t> asleep{0};
};

class Doorbells {
 public:
  Doorbells() = default;
  // words[i] and bells[i] belong to local rank i of this node.
  Doorbells(SleepWord* words, std::vector<Fd> bells, int local_rank)
      : words_(words), bells_(std::move(bells)), me_(local_rank) {}

  int fd() const { return bells_.empty() ? -1 : bells_[me_].get(); }

  void ring(int local_rank) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    wake(local_rank);
  }

  void ring_all() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    for (int i = 0; i < static_cast<int>(bells_.size()); ++i) {
      if (i != me_) wake(i);
    }
  }

  void prepare_to_sleep() {
    if (bells_.empty()) return;
    words_[me_].asleep.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }

  void woke_up() {
    if (bells_.empty()) return;
    words_[me_].asleep.store(0, std::memory_order_relaxed);
    eventfd_t rings = 0;
    (void)::eventfd_read(bells_[me_].get(), &rings);  // EAGAIN: nobody rang
  }

 private:
  void wake(int local_rank) {
    auto& word = words_[local_rank].asleep;
    if (word.load(std::memory_order_relaxed) && word.exchange(0, std::memory_order_relaxed)) {
      (void)::eventfd_write(bells_[local_rank].get(), 1);
    }
  }

  SleepWord* words_ = nullptr;
  std::vector<Fd> bells_;
  int me_ = 0;
};

}  // namespace hier
