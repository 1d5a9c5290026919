// The contexts of block bodies that wait for other GPUs: flags at system scope, and time.
#pragma once

#include <cstdint>

#include "cuda/context.h"
#ifdef __CUDACC__
#include <cuda/atomic>
#else
#include <atomic>
#include <chrono>
#include <thread>
#endif

namespace hier::cuda {

using Flag = uint32_t;

#ifdef __CUDACC__
struct DevicePeerCtx : DeviceCtx {
  using Shared = ::cuda::atomic_ref<Flag, ::cuda::thread_scope_system>;
  HIER_DEVICE static void store_release(Flag* flag, Flag value) {
    Shared(*flag).store(value, ::cuda::memory_order_release);
  }
  HIER_DEVICE static void store_relaxed(Flag* flag, Flag value) {
    Shared(*flag).store(value, ::cuda::memory_order_relaxed);
  }
  HIER_DEVICE static Flag load_acquire(Flag* flag) {
    return Shared(*flag).load(::cuda::memory_order_acquire);
  }
  HIER_DEVICE static Flag load_relaxed(Flag* flag) {
    return Shared(*flag).load(::cuda::memory_order_relaxed);
  }
  HIER_DEVICE static uint64_t now_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
  }
  HIER_DEVICE static void relax() {}
  // A sync that tells all threads whether run(thread) was true for any of them.
  template <class Phase>
  HIER_DEVICE bool any(const Phase& run) const {
    return __syncthreads_or(run(static_cast<size_t>(threadIdx.x))) != 0;
  }
};
#endif

#ifndef __CUDACC__
struct HostPeerCtx : HostCtx {
  using Shared = std::atomic_ref<Flag>;
  static void store_release(Flag* flag, Flag value) {
    Shared(*flag).store(value, std::memory_order_release);
  }
  static void store_relaxed(Flag* flag, Flag value) {
    Shared(*flag).store(value, std::memory_order_relaxed);
  }
  static Flag load_acquire(Flag* flag) { return Shared(*flag).load(std::memory_order_acquire); }
  static Flag load_relaxed(Flag* flag) { return Shared(*flag).load(std::memory_order_relaxed); }
  static uint64_t now_ns() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
  }
  static void relax() { std::this_thread::yield(); }
  template <class Phase>
  bool any(const Phase& run) const {
    bool found = false;
    for (size_t thread = 0; thread < num_threads_; ++thread) found = run(thread) || found;
    return found;
  }
};
#endif

}  // namespace hier::cuda
