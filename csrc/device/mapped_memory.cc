// Mapping device memory, and letting go of it in order.
#include "device/mapped_memory.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string>
#include <thread>
#include <utility>

#include "base/clock.h"

namespace hier {

namespace {

constexpr double kPatience = 1;  // seconds
constexpr auto kPause = std::chrono::milliseconds(1);

// A process that has ended maps nothing, also if nobody has asked for its status yet.
bool has_ended(pid_t process) {
  if (process == 0) return false;
  if (::kill(process, 0) != 0) return errno == ESRCH;
  std::string stat;
  std::getline(std::ifstream("/proc/" + std::to_string(process) + "/stat"), stat);
  const size_t state = stat.rfind(") ");
  return state != std::string::npos && state + 2 < stat.size() && stat[state + 2] == 'Z';
}

}  // namespace

MappedMemory::MappedMemory(DeviceRuntime& runtime, int device, int local_rank,
                           std::vector<Importer*> importers, size_t bytes)
    : runtime_(runtime),
      device_(device),
      own_(static_cast<size_t>(local_rank)),
      importers_(std::move(importers)),
      memory_(importers_.size()) {
  importers_[own_]->process.store(::getpid(), std::memory_order_release);
  try {
    memory_[own_] = runtime_.allocate_shared(device_, bytes, handle_);
  } catch (...) {
    importers_[own_]->closed.store(1, std::memory_order_release);
    throw;
  }
}

MappedMemory::~MappedMemory() {
  for (size_t rank = 0; rank < memory_.size(); ++rank) {
    if (rank != own_ && memory_[rank]) runtime_.close_shared(memory_[rank]);
  }
  importers_[own_]->closed.store(1, std::memory_order_release);
  const Clock::time_point deadline = after(kPatience);
  while (!all_have_closed()) {
    if (Clock::now() > deadline) return;
    std::this_thread::sleep_for(kPause);
  }
  runtime_.free_shared(memory_[own_]);
}

void MappedMemory::open(const std::vector<DeviceRuntime::SharedHandle>& handles) {
  for (size_t rank = 0; rank < memory_.size(); ++rank) {
    if (!memory_[rank]) memory_[rank] = runtime_.open_shared(device_, handles.at(rank));
  }
}

bool MappedMemory::all_have_closed() const {
  return std::all_of(importers_.begin(), importers_.end(), [](const Importer* importer) {
    return importer->closed.load(std::memory_order_acquire) == 1 ||
           has_ended(importer->process.load(std::memory_order_acquire));
  });
}

}  // namespace hier
