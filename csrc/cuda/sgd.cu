// The SGD kernels, and the function of sgd.h.
#include "cuda/sgd.h"

#include "cuda/grid.h"
#include "cuda/sgd_body.h"

namespace hier::cuda {

template <class Form, class Element>
__global__ void __launch_bounds__(kThreads) sgd_kernel(const __grid_constant__ SgdArgs args) {
  sgd_block<Form, Element>(DeviceCtx{}, args);
}

namespace {

struct LaunchSgd {
  const SgdArgs& args;
  SgdForm form;
  cudaStream_t stream;

  template <class Element>
  void operator()() const {
    const unsigned blocks = args.ranges.num_chunks;
    if (form == SgdForm::absorbed) {
      sgd_kernel<Absorbed, Element><<<blocks, kThreads, 0, stream>>>(args);
    } else {
      sgd_kernel<Reference, Element><<<blocks, kThreads, 0, stream>>>(args);
    }
    check_cuda(cudaGetLastError(), "launching SGD");
  }
};

}  // namespace

void sgd(std::span<const SgdTensor> tensors, DType gradient_dtype, const SgdStep& step,
         uint16_t* copy, void* stream) {
  for (const SgdArgs& args : plan_sgd(tensors, gradient_dtype, step, copy)) {
    if (args.ranges.num_chunks == 0) continue;
    visit_float_element(gradient_dtype,
                        LaunchSgd{args, step.form, static_cast<cudaStream_t>(stream)});
  }
}

}  // namespace hier::cuda
