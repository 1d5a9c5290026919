// What it costs to chain a stream and a host thread, by each of the ways that a device runtime has:
// for benchmarks, which would measure Python instead if they did this by themselves.
#pragma once

#include <vector>

#include "device/runtime.h"

namespace hier {

enum class Chain {
  query,       // asking for an event that has passed
  event,       // record an event on an idle stream, ask until it has passed
  write_flag,  // enqueue a write on an idle stream, look until the thread sees it
  wait_flag,   // the thread lets a waiting stream go on, which then writes: a round trip
};

// Seconds of each round. Throws Timeout where a stream does not come, instead of waiting for ever.
std::vector<double> measure_latency(DeviceRuntime& runtime, int device, Chain chain, int rounds);

}  // namespace hier
