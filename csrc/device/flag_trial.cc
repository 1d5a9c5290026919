// One stream and three flags.
#include "device/flag_trial.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "base/clock.h"
#include "base/error.h"

namespace hier {

namespace {

constexpr size_t kPage = 4096;
constexpr double kSeconds = 2;
constexpr auto kPause = std::chrono::microseconds(50);

struct Flags {
  DeviceRuntime::Flag before, host, behind;
};

bool reaches(const DeviceRuntime::Flag& flag) {
  const Clock::time_point deadline = after(kSeconds);
  while (!DeviceRuntime::has_reached(flag, 1)) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

bool pass(Flags& flags, DeviceRuntime::Stream stream, const FlagOperation& write,
          const FlagOperation& wait) {
  try {
    write(&flags.before, 1, stream);
    wait(&flags.host, 1, stream);
    write(&flags.behind, 1, stream);
  } catch (const Error&) {
    flags.host.store(1, std::memory_order_release);
    return false;
  }
  const bool written = reaches(flags.before) && !DeviceRuntime::has_reached(flags.behind, 1);
  flags.host.store(1, std::memory_order_release);
  return written && reaches(flags.behind);
}

}  // namespace

bool flags_work(DeviceRuntime& runtime, int device, const FlagOperation& write,
                const FlagOperation& wait) {
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kPage, kPage));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, kPage);
  DeviceRuntime::Stream stream = nullptr;
  bool registered = false, good = false;
  try {
    runtime.register_pinned(memory, kPage);
    registered = true;
    stream = runtime.create_stream(device);
    good = pass(*reinterpret_cast<Flags*>(memory), stream, write, wait);
  } catch (const Error&) {
    // Not usable, for whatever reason.
  }
  if (stream != nullptr) runtime.destroy_stream(stream);
  // What has failed may still be under way: that page is then lost.
  if (good) {
    runtime.unregister_pinned(memory);
    std::free(memory);
  } else if (!registered) {
    std::free(memory);
  }
  return good;
}

}  // namespace hier
