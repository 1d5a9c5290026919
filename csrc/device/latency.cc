// Rounds between a stream and this thread.
#include "device/latency.h"

#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/error.h"

namespace hier {

namespace {

constexpr std::chrono::seconds kPatience{10};  // for one round
constexpr std::chrono::microseconds kSpin{50};
constexpr std::chrono::microseconds kUntilItWaits{200};

// A stream, an event, and two flags on lines of their own; given back when no stream needs them.
class Scene {
 public:
  Scene(DeviceRuntime& runtime, int device)
      : runtime(runtime),
        stream(runtime.create_stream(device)),
        event(runtime.create_event(device)),
        memory_(runtime.allocate_pinned(2 * kLine)) {}
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;
  ~Scene() {
    runtime.destroy_event(event);
    runtime.destroy_stream(stream);
    if (!late_) runtime.free_pinned(memory_);  // else a stream may still write to it
  }

  DeviceRuntime::Flag& flag(size_t number) const {
    return *reinterpret_cast<DeviceRuntime::Flag*>(memory_ + number * kLine);
  }

  template <class Condition>
  void until(const Condition& condition, const char* what) {
    const Clock::time_point begin = Clock::now();
    while (!condition()) {
      const Clock::duration waited = Clock::now() - begin;
      if (waited > kSpin) std::this_thread::yield();  // a stream that is a thread may need the core
      if (waited < kPatience) continue;
      late_ = true;
      throw Timeout(std::string(what) + " has not come within 10 s: the GPU may be hung");
    }
  }

  DeviceRuntime& runtime;
  const DeviceRuntime::Stream stream;
  const DeviceRuntime::Event event;

 private:
  static constexpr size_t kLine = 128;
  std::byte* const memory_;
  bool late_ = false;
};

double since(Clock::time_point begin) { return Seconds(Clock::now() - begin).count(); }

double query(Scene& scene) {
  const Clock::time_point begin = Clock::now();
  (void)scene.runtime.finished(scene.event);
  return since(begin);
}

double event(Scene& scene) {
  const Clock::time_point begin = Clock::now();
  scene.runtime.record(scene.event, scene.stream);
  scene.until([&] { return scene.runtime.finished(scene.event); }, "an event");
  return since(begin);
}

double write_flag(Scene& scene, uint32_t round) {
  const Clock::time_point begin = Clock::now();
  scene.runtime.write_flag(&scene.flag(0), round, scene.stream);
  scene.until([&] { return scene.flag(0).load(std::memory_order_acquire) == round; },
              "a stream's write");
  return since(begin);
}

double wait_flag(Scene& scene, uint32_t round) {
  scene.runtime.wait_flag(&scene.flag(1), round, scene.stream);
  scene.runtime.write_flag(&scene.flag(0), round, scene.stream);
  std::this_thread::sleep_for(kUntilItWaits);
  const Clock::time_point begin = Clock::now();
  scene.flag(1).store(round, std::memory_order_release);
  scene.until([&] { return scene.flag(0).load(std::memory_order_acquire) == round; },
              "a stream's answer");
  return since(begin);
}

}  // namespace

std::vector<double> measure_latency(DeviceRuntime& runtime, int device, Chain chain, int rounds) {
  Scene scene(runtime, device);
  std::vector<double> seconds;
  for (int round = 1; round <= rounds; ++round) {
    const auto number = static_cast<uint32_t>(round);
    switch (chain) {
      case Chain::query:
        seconds.push_back(query(scene));
        break;
      case Chain::event:
        seconds.push_back(event(scene));
        break;
      case Chain::write_flag:
        seconds.push_back(write_flag(scene, number));
        break;
      case Chain::wait_flag:
        seconds.push_back(wait_flag(scene, number));
        break;
    }
  }
  return seconds;
}

}  // namespace hier
