// Connections to other nodes that are made at their first use. Somebody outside makes them, in a
// thread of his own: allreduce/rendezvous/on_demand.py.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "transport/tcp.h"

namespace hier {

class OnDemand {
 public:
  // `wake` is an eventfd, on which the other thread hears of requests; empty: everything is
  // connected from the beginning.
  OnDemand(Fd wake, size_t world_size) : wake_(std::move(wake)), channels_(world_size) {}
  explicit operator bool() const { return static_cast<bool>(wake_); }

  // A channel to that rank, which asks for all channels to it once.
  std::unique_ptr<TcpChannel> make_channel(int rank, bool checked);

  std::vector<int> take_requests();  // by the other thread: ranks to connect with

  // By the thread that drives:
  void connect(int rank, std::vector<Fd> sockets);  // in the order in which channels were made
  void give_up(int rank, const std::string& reason, bool unanswered, bool closed);

 private:
  void request(int rank);

  const Fd wake_;
  std::vector<std::vector<TcpChannel*>> channels_;  // by rank; lanes and messages own them
  std::mutex mutex_;                                // guards what follows
  std::vector<int> requests_;
};

}  // namespace hier
