// A barrier that names the ranks that did not come. It goes through the store, not the group: so it
// works while a collective of the group hangs, and a rank that is missing does no harm to the
// group.
#pragma once

#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <string>
#include <vector>

#include "base/clock.h"

namespace hier::torch_backend {

class MonitoredBarrier {
 public:
  MonitoredBarrier(c10::intrusive_ptr<c10d::Store> store, int rank, int size)
      : store_(std::move(store)), rank_(rank), size_(size) {}

  // Throws torch's DistBackendError, in torch's words, that names the first rank missing, or with
  // `name_all` all of them.
  void run(std::chrono::milliseconds timeout, bool name_all) {
    const std::string prefix = "hier/monitored_barrier/" + std::to_string(round_++) + "/";
    const std::string in = " in " + std::to_string(timeout.count()) + " ms";
    if (rank_ == 0) {
      if (timeout.count() == 0) fail("Rank 0 timed out in monitoredBarrier after 0 ms");
      const std::string missing = await_others(prefix, timeout, name_all);
      set(prefix + "result", missing.empty() ? kPassed : missing + " missing");
      if (missing.empty()) return;
      fail(missing + " failed to pass monitoredBarrier" + in);
    }
    set(prefix + std::to_string(rank_), "here");
    const std::string result = result_of_rank_0(prefix, timeout);
    if (result == kPassed) return;
    fail("Rank " + std::to_string(rank_) +
         " successfully reached monitoredBarrier, but received errors while waiting for send/recv "
         "from rank 0: " +
         (result.empty() ? "no word" + in : result));
  }

 private:
  using Time = std::chrono::milliseconds;
  static constexpr const char* kPassed = "passed";

  [[noreturn]] void fail(const std::string& text) const {
    C10_THROW_ERROR(DistBackendError, "[Rank " + std::to_string(rank_) + "]: " + text);
  }

  void set(const std::string& key, const std::string& value) {
    store_->set(key, std::vector<uint8_t>(value.begin(), value.end()));
  }

  bool await(const std::string& key, Clock::time_point until) {
    const auto left = std::chrono::duration_cast<Time>(until - Clock::now());
    try {
      store_->wait({key}, std::max(Time(1), left));
      return true;
    } catch (const std::exception&) {  // a store says only by throwing that time is up
      return store_->check({key});
    }
  }

  std::string await_others(const std::string& prefix, Time timeout, bool name_all) {
    const auto until = Clock::now() + timeout;
    std::string missing;  // "Rank 1", or "Ranks 1, 2"
    for (int rank = 1; rank < size_; ++rank) {
      if (await(prefix + std::to_string(rank), until)) continue;
      missing += missing.empty() ? (name_all ? "Ranks " : "Rank ") : ", ";
      missing += std::to_string(rank);
      if (!name_all) break;
    }
    return missing;
  }

  // "passed", who is missing, or nothing. Rank 0 has the timeout to itself before it can tell.
  std::string result_of_rank_0(const std::string& prefix, Time timeout) {
    if (!await(prefix + "result", Clock::now() + 2 * timeout)) return "";
    const std::vector<uint8_t> value = store_->get(prefix + "result");
    return {value.begin(), value.end()};
  }

  const c10::intrusive_ptr<c10d::Store> store_;
  const int rank_, size_;
  uint64_t round_ = 0;  // barriers so far
};

}  // namespace hier::torch_backend
