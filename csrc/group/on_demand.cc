// Asking for connections, and getting them.
#include "group/on_demand.h"

#include <sys/eventfd.h>

namespace hier {

std::unique_ptr<TcpChannel> OnDemand::make_channel(int rank, bool checked) {
  auto channel = std::make_unique<TcpChannel>([this, rank] { request(rank); }, checked);
  channels_[rank].push_back(channel.get());
  return channel;
}

void OnDemand::request(int rank) {
  {
    const std::lock_guard lock(mutex_);
    requests_.push_back(rank);
  }
  (void)::eventfd_write(wake_.get(), 1);
}

std::vector<int> OnDemand::take_requests() {
  const std::lock_guard lock(mutex_);
  return std::exchange(requests_, {});
}

void OnDemand::connect(int rank, std::vector<Fd> sockets) {
  const auto& channels = channels_[rank];
  for (size_t i = 0; i < channels.size(); ++i) channels[i]->connect(std::move(sockets[i]));
}

void OnDemand::give_up(int rank, const std::string& reason, bool unanswered, bool closed) {
  for (TcpChannel* channel : channels_[rank]) channel->give_up(reason, unanswered, closed);
}

}  // namespace hier
