// Reduce-scatter and allgather between the devices of a node.
#include "device/peers.h"

#include <limits>
#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace hier {

namespace {

constexpr auto kPause = std::chrono::milliseconds(1);
constexpr auto kPatience = std::chrono::seconds(5);  // at the end, with neighbours that are late

}  // namespace

using Flag = DeviceRuntime::Flag;
using Stream = DeviceRuntime::Stream;

// What a local rank tells the others: how many pieces have reached each state, and what it calls.
struct MappedPeerStage::Counters {
  static constexpr size_t kCalls = 64;  // that are remembered
  static constexpr int kHashBits = 32;

  alignas(64) Flag arrived;
  alignas(64) Flag reduced;
  alignas(64) Flag done;
  std::atomic<bool> abandoned;  // before any counter is released
  MappedMemory::Importer importer;
  alignas(64) std::atomic<uint64_t> calls[kCalls];  // number (from 1), then a hash

  static uint64_t entry(uint32_t call, uint64_t hash) {
    return uint64_t{call + 1} << kHashBits | (hash ^ hash >> kHashBits) << kHashBits >> kHashBits;
  }
};

size_t MappedPeerStage::counter_bytes() { return sizeof(Counters); }

MappedPeerStage::MappedPeerStage(PeersConfig config) : config_(config) {
  const CurrentDevice current(*config_.runtime, config_.device);  // where they are tried
  if (!config_.runtime->waits_are_apart()) {
    throw CudaError(
        "the driver has no stream memory operations that work here, by which streams wait for "
        "another");
  }
  const auto size = static_cast<size_t>(config_.local_size);
  config_.runtime->register_pinned(config_.counters, sizeof(Counters) * size);
  try {
    std::vector<MappedMemory::Importer*> importers;
    for (int rank = 0; rank < config_.local_size; ++rank) {
      importers.push_back(&counters(rank).importer);
    }
    slots_ = std::make_unique<MappedMemory>(*config_.runtime, config_.device, config_.local_rank,
                                            std::move(importers), kSlotBytes * kSlots);
    for (auto& event : emptied_) event = config_.runtime->create_event(config_.device);
  } catch (...) {
    slots_.reset();
    config_.runtime->unregister_pinned(config_.counters);
    throw;
  }
}

// Nobody reads this rank's slots any more, nor writes its counters.
bool MappedPeerStage::all_done() const {
  for (const auto event : emptied_) {
    if (!config_.runtime->finished(event)) return false;
  }
  if (releaser_.joinable()) return true;
  for (int rank = 0; rank < config_.local_size; ++rank) {
    if (!DeviceRuntime::has_reached(counters(rank).done, next_piece_)) return false;
  }
  return true;
}

MappedPeerStage::~MappedPeerStage() {
  const auto until = Clock::now() + kPatience;
  while (!all_done() && Clock::now() < until) std::this_thread::sleep_for(kPause);
  releaser_ = {};  // stops and joins
  for (const auto event : emptied_) config_.runtime->destroy_event(event);
  slots_.reset();  // before the counters, in which the ranks tell what they have closed
  config_.runtime->unregister_pinned(config_.counters);
}

void MappedPeerStage::open(const std::vector<DeviceRuntime::SharedHandle>& handles) {
  slots_->open(handles);
}

MappedPeerStage::Counters& MappedPeerStage::counters(int local_rank) const {
  return reinterpret_cast<Counters*>(config_.counters)[local_rank];
}

MappedPeerStage::Ticket MappedPeerStage::take(uint32_t num_pieces, uint64_t hash) {
  const Ticket ticket{next_call_++, next_piece_.fetch_add(num_pieces), num_pieces};
  counters(config_.local_rank)
      .calls[ticket.call % Counters::kCalls]
      .store(Counters::entry(ticket.call, hash), std::memory_order_relaxed);
  return ticket;
}

std::optional<int> MappedPeerStage::disagreeing(Ticket ticket, uint64_t hash) const {
  const uint64_t mine = Counters::entry(ticket.call, hash);
  for (int rank = 0; rank < config_.local_size; ++rank) {
    const uint64_t theirs =
        counters(rank).calls[ticket.call % Counters::kCalls].load(std::memory_order_relaxed);
    if (theirs >> Counters::kHashBits == mine >> Counters::kHashBits && theirs != mine) return rank;
  }
  return std::nullopt;
}

bool MappedPeerStage::waits_for(int local_rank, Ticket ticket, bool) const {
  const auto& theirs = counters(local_rank);
  const uint32_t end = ticket.first_piece + ticket.num_pieces;
  return !DeviceRuntime::has_reached(theirs.arrived, end) ||
         !DeviceRuntime::has_reached(theirs.reduced, end);
}

void MappedPeerStage::await(Flag Counters::* counter, uint32_t piece, Stream stream) {
  for (int rank = 0; rank < config_.local_size; ++rank) {
    if (rank == config_.local_rank) continue;
    config_.runtime->wait_flag(&(counters(rank).*counter), piece + 1, stream);
  }
}

void MappedPeerStage::publish(Flag Counters::* counter, uint32_t piece, Stream stream) {
  config_.runtime->write_flag(&(counters(config_.local_rank).*counter), piece + 1, stream);
}

void MappedPeerStage::reduce_scatter(uint32_t piece, const std::byte* data, size_t count,
                                     std::span<const Shard> shards, DType dtype, ReduceOp op,
                                     int divisor, Stream stream) {
  const size_t element = size_of(dtype);
  const Shard own = shards[static_cast<size_t>(config_.local_rank)];
  std::byte* slot = slots_->own() + offset(piece);
  // All have read what is in it. This rank's own streams meet by an event, which nothing releases:
  // they keep their order after a failure, too.
  if (piece >= kSlots) await(&Counters::done, piece - kSlots, stream);
  config_.runtime->wait(stream, emptied_[piece % kSlots]);
  config_.runtime->copy(slot, data, count * element, stream);
  publish(&Counters::arrived, piece, stream);
  await(&Counters::arrived, piece, stream);
  if (own.count == 0) return;
  std::vector<const void*> sources;
  for (std::byte* slots : slots_->all())
    sources.push_back(slots + offset(piece) + own.begin * element);
  void* const out[] = {shard_memory(piece, own, dtype)};
  config_.runtime->reduce_many(dtype, op, out, sources, own.count, divisor, stream);
}

void MappedPeerStage::allgather(uint32_t piece, std::byte* data, size_t,
                                std::span<const Shard> shards, DType dtype, Stream stream) {
  const size_t element = size_of(dtype);
  publish(&Counters::reduced, piece, stream);
  for (size_t rank = 0; rank < shards.size(); ++rank) {
    const auto [begin, count] = shards[rank];
    config_.runtime->wait_flag(&counters(static_cast<int>(rank)).reduced, piece + 1, stream);
    if (count == 0) continue;
    config_.runtime->copy(data + begin * element,
                          slots_->of(static_cast<int>(rank)) + offset(piece) + begin * element,
                          count * element, stream);
  }
  publish(&Counters::done, piece, stream);
  config_.runtime->record(emptied_[piece % kSlots], stream);
}

void MappedPeerStage::release() {
  constexpr uint32_t kFar = std::numeric_limits<int32_t>::max() / 2;
  for (int rank = 0; rank < config_.local_size; ++rank) {
    for (auto counter : {&Counters::arrived, &Counters::reduced, &Counters::done}) {
      (counters(rank).*counter).store(next_piece_ + kFar, std::memory_order_release);
    }
  }
}

// Again and again: streams that go on publish what they were told to, and set counters back.
bool MappedPeerStage::abandoned() const {
  for (int rank = 0; rank < config_.local_size; ++rank) {
    if (counters(rank).abandoned.load(std::memory_order_acquire)) return true;
  }
  return false;
}

void MappedPeerStage::abandon() noexcept {
  if (releaser_.joinable()) return;
  counters(config_.local_rank).abandoned.store(true, std::memory_order_release);
  release();
  releaser_ = std::jthread([this](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      release();
      std::this_thread::sleep_for(kPause);
    }
  });
}

}  // namespace hier
