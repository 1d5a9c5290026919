// Life of a group: opening its channels, what it knows, closing.
#include "group/group.h"

#include <sys/eventfd.h>

#include <array>

#include "base/error.h"
#include "transport/shm.h"
#include "transport/tcp.h"

namespace hier {

namespace {

std::vector<Channel*> pointers(const std::vector<std::unique_ptr<Channel>>& channels) {
  std::vector<Channel*> result;
  for (const auto& channel : channels) result.push_back(channel.get());
  return result;
}

// Closing a socket with unread bytes would destroy what it has still to send.
void discard_unread(Channel& channel) {
  std::array<std::byte, 4096> scrap;
  try {
    while (channel.try_read(scrap) > 0) continue;
  } catch (const ChannelBroken&) {
    return;
  }
}

}  // namespace

Group::Group(GroupConfig config, Wiring wiring)
    : config_(std::move(config)),
      topology_(config_.rank, config_.node_of_rank),
      control_(std::move(wiring.control)),
      wake_(check_errno(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      lanes_(static_cast<size_t>(config_.lanes)),
      timeout_(config_.timeout) {
  for (RunHeader& header : history_) header.run = ~0u;  // no run
  if (topology_.local_size > 1) {
    const auto layout = ArenaLayout::plan(topology_.local_size, config_.lanes);
    arena_ = std::make_shared<Arena>(wiring.arena.get(), layout);
    bells_ = Doorbells(arena_->sleep_words(), std::move(wiring.doorbells), topology_.local_rank);
  }
  const size_t slot_bytes = arena_ ? arena_->layout().slot_bytes : ArenaLayout::kSlotBytes;
  planner_ = std::make_unique<Planner>(config_, topology_, slot_bytes);
  for (int i = 0; i < config_.lanes; ++i) {
    Lane& lane = lanes_[i];
    lane.channels = open_channels(i, wiring);
    lane.engine = std::make_unique<Engine>(pointers(lane.channels));
    if (!arena_) continue;
    lane.local = std::make_unique<LocalStage>(arena_, i, topology_.local_rank, &bells_);
  }
  message_channels_ = open_channels(config_.lanes, wiring);
  messages_ = std::make_unique<Messages>(config_.rank, config_.group_id, config_.generation,
                                         pointers(message_channels_));
}

Group::Channels Group::open_channels(int index, Wiring& wiring) {
  Channels channels(topology_.node_of_rank.size());
  const auto& neighbours = topology_.neighbours();
  for (int local = 0; local < topology_.local_size; ++local) {
    if (local == topology_.local_rank) continue;
    const ArenaLayout& layout = arena_->layout();
    const auto view = [&](int from, int to) {
      auto* ring = reinterpret_cast<ShmRing*>(arena_->raw(layout.ring_at(index, from, to)));
      return ShmRingView{ring, arena_->raw(layout.ring_data_at(index, from, to)),
                         layout.ring_bytes};
    };
    channels[neighbours[local]] = std::make_unique<ShmChannel>(
        view(topology_.local_rank, local), view(local, topology_.local_rank), &bells_, local);
  }
  for (size_t rank = 0; rank < channels.size(); ++rank) {
    Fd& socket = wiring.data[index][rank];
    if (socket) channels[rank] = std::make_unique<TcpChannel>(std::move(socket), config_.checksum);
  }
  return channels;
}

Group::~Group() { close(); }

void Group::set_timeout(double seconds) {
  check_member();
  if (!(seconds > 0)) throw UsageError("timeout: must be a positive number of seconds");
  timeout_.store(seconds, std::memory_order_relaxed);
}

void Group::set_choices(std::vector<Choice> choices) {
  check_member();
  planner_->set_choices(std::move(choices));
}

std::string Group::choose(Collective collective, size_t bytes) const {
  check_member();
  return planner_->choose(collective, bytes);
}

void Group::add_schedule(const std::string& name, Collective collective, Schedule schedule,
                         int root) {
  check_member();
  planner_->add_schedule(name, collective, std::move(schedule), root);
}

void Group::check_usable() const {
  check_member();
  if (failed_.load(std::memory_order_acquire)) throw_failure();
  if (closing_.load(std::memory_order_relaxed))
    throw AbortedError("the group is closed: make a new one");
}

std::shared_ptr<SharedMapping> Group::add_symmetric(int fd, size_t bytes) {
  check_member();
  auto mapping = SharedMapping::open(fd, bytes * static_cast<size_t>(topology_.local_size));
  planner_->add_symmetric(mapping, bytes);
  return mapping;
}

std::byte* Group::symmetric_part(const SharedMapping& mapping, size_t bytes) const {
  return mapping.data() + bytes * static_cast<size_t>(topology_.local_rank);
}

size_t Group::known_symmetric() const {
  check_member();
  return planner_->known_symmetric();
}

Traffic Group::traffic() const {
  check_member();
  return {shared_bytes_.load(std::memory_order_relaxed),
          network_bytes_.load(std::memory_order_relaxed)};
}

void Group::abort(const std::string& reason) {
  check_member();
  fail(std::make_exception_ptr(AbortedError(reason)));
  wake();
}

std::exception_ptr Group::error() const {
  check_member();
  const std::lock_guard lock(mutex_);
  return error_;
}

// All frames are read: unread ones would reset the connection. An error of another rank's may be of
// what this rank has sent last, and no call of its own has met it.
void Group::listen_at_the_end() {
  const auto hear = [this](int rank, const ControlFrame& frame) {
    if (!failed_.load(std::memory_order_relaxed) && error_at_close_.empty()) handle(rank, frame);
  };
  for (bool all_read = false; !all_read;) {
    try {
      control_.receive(hear);
      all_read = true;
    } catch (const Error& error) {
      error_at_close_ = error.what();
    }
  }
}

void Group::close() {
  if (inherited()) return;
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return;
    if (in_flight_ > 0 && !error_) {
      const std::string count = std::to_string(in_flight_);
      error_text_ = "the group was closed with " + count + " collectives in flight";
      error_ = std::make_exception_ptr(AbortedError(error_text_));
      failed_.store(true, std::memory_order_release);
    }
    closing_ = true;
    worker_cv_.notify_one();
  }
  wake();
  {
    std::unique_lock lock(mutex_);
    driving_cv_.wait(lock, [this] { return !driven_; });
    driven_ = true;  // nobody else will any more, and nobody starts a worker
  }
  if (worker_.joinable()) worker_.join();
  ControlFrame goodbye;
  goodbye.type = ControlFrame::Type::goodbye;
  listen_at_the_end();
  control_.broadcast(goodbye);
  control_.close();
  lanes_.clear();
  trailing_.clear();
  device_stage_.reset();
  messages_.reset();
  for (const auto& channel : message_channels_) {
    if (channel) discard_unread(*channel);
  }
  message_channels_.clear();
}

}  // namespace hier
