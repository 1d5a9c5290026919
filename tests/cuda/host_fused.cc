// The fused step of one rank on the CPU, with the functions of allreduce._cuda: by ctypes, for
// ranks that are processes (tests/torch/programs/host_fused.py).
#include "host_peers.h"

namespace hier::cuda {

constexpr size_t kBlocks = 2, kBlockThreads = 16;

extern "C" size_t host_signals_bytes() { return sizeof(Signals); }

extern "C" void host_shard_of(size_t count, size_t num_ranks, size_t rank, size_t* bounds) {
  const Shard shard = shard_of(count, num_ranks, rank);
  bounds[0] = shard.begin, bounds[1] = shard.end;
}

extern "C" void host_fused(void* const* signals, size_t num_ranks, size_t rank, double timeout,
                           void* const* gradients, void* const* outputs, float* parameters,
                           float* momenta, size_t count, double weight_decay, double lr,
                           double momentum, bool nesterov, double scale) {
  const HostRank<HostPeerCtx> host{{{signals, num_ranks}, rank, timeout}, kBlocks, kBlockThreads};
  const SgdRange range{count, weight_decay};
  host.fused({gradients, num_ranks}, {outputs, num_ranks}, DType::f32, parameters, momenta,
             {&range, 1}, {SgdForm::reference, lr, momentum, scale, nesterov});
}

}  // namespace hier::cuda
