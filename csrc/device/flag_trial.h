// Whether memory operations of streams work here, which only a trial tells: a driver may have them
// and refuse them, or write where no host thread sees it (virtual machines, WSL).
#pragma once

#include <functional>

#include "device/runtime.h"

namespace hier {

// How a runtime enqueues an operation on a flag.
using FlagOperation = std::function<void(DeviceRuntime::Flag*, uint32_t, DeviceRuntime::Stream)>;

// Has a stream of a device write a flag in registered host memory, wait for another, and write a
// third. False where that throws, or takes longer than seconds.
bool flags_work(DeviceRuntime& runtime, int device, const FlagOperation& write,
                const FlagOperation& wait);

}  // namespace hier
