// The block bodies under the sanitizers: every dtype, odd sizes, arrays that start anywhere. What
// one block computes is what several threads compute, to the bit. The numbers are tested elsewhere.
#include <cstdio>

#include "host_buffer.h"
#include "host_pack.h"
#include "host_sgd.h"

namespace hier::cuda {
namespace {

constexpr size_t kSizes[] = {0, 1, 7, kChunk - 1, kChunk, kChunk + 1, 2 * kChunk + 13};
constexpr size_t kStarts[] = {0, 1, 5};
int failures = 0;

void expect(bool good, const char* what, size_t count, size_t start) {
  if (good) return;
  std::printf("%s, %zu elements from %zu: blocks change the result\n", what, count, start);
  ++failures;
}

template <class Element>
constexpr DType dtype_of = std::is_same_v<Element, BFloat16>  ? DType::bf16
                           : std::is_same_v<Element, Float16> ? DType::f16
                                                              : DType::f32;

// Parameters, momenta and copy after one step.
template <class Element>
std::vector<Buffer> sgd_result(size_t count, size_t start, size_t skew, const SgdStep& step,
                               size_t blocks) {
  std::vector<Buffer> buffers;
  buffers.push_back(random_floats<Plain<float>>(count, start, 1));
  buffers.push_back(random_floats<Plain<float>>(count, start, 2));
  buffers.push_back(random_floats<BFloat16>(count, start, 3));
  const Buffer gradients = random_floats<Element>(count, start + skew, 4);
  const SgdRange ranges[] = {{count / 3, 1e-4}, {0, 1.0}, {count - count / 3, 0.0}};
  const auto tensors = tensors_of(buffers[0].as<float>(), buffers[1].as<float>(), gradients.data(),
                                  dtype_of<Element>, ranges, 0.5);
  host_sgd(tensors, dtype_of<Element>, step, buffers[2].as<uint16_t>(), blocks, 32);
  return buffers;
}

template <class Element>
void check_sgd_blocks() {
  for (const SgdForm form : {SgdForm::reference, SgdForm::absorbed}) {
    const SgdStep step{form, 0.1, 0.9, 0.25, true};
    for (const size_t count : kSizes) {
      for (const size_t start : kStarts) {
        for (const size_t skew : {0, 3}) {
          expect(sgd_result<Element>(count, start, skew, step, 1) ==
                     sgd_result<Element>(count, start, skew, step, 3),
                 "SGD", count, start);
        }
      }
    }
  }
}

// Parameters and momenta of three tensors, one of which takes a plain step; the workspace is
// exactly as large as it is said to be.
template <class Element>
std::vector<Buffer> lars_result(size_t count, size_t start, size_t skew, size_t blocks) {
  std::vector<Buffer> buffers, gradients;
  std::vector<LarsTensor> tensors;
  std::vector<size_t> counts{count, 3, count};
  for (const size_t size : counts) {
    buffers.push_back(random_floats<Plain<float>>(size, start, 1));
    float* parameters = buffers.back().as<float>();
    buffers.push_back(random_floats<Plain<float>>(size, start, 2));
    gradients.push_back(random_floats<Element>(size, start + skew, 4));
    tensors.push_back({{parameters, buffers.back().as<float>(), gradients.back().data(), size, 0.1},
                       size == 3 ? 0.0 : 0.01});
  }
  const Buffer workspace(lars_workspace_of(counts), sizeof(float), 0);
  host_lars(tensors, dtype_of<Element>, SgdStep{SgdForm::reference, 0.1, 0.9, 0.25, true},
            workspace.as<float>(), blocks, 32);
  return buffers;
}

template <class Element>
void check_lars_blocks() {
  for (const size_t count : kSizes) {
    for (const size_t start : kStarts) {
      for (const size_t skew : {0, 3}) {
        expect(lars_result<Element>(count, start, skew, 1) ==
                   lars_result<Element>(count, start, skew, 3),
               "LARS", count, start);
      }
    }
  }
}

// Three tensors packed and unpacked; flat and the tensors.
template <class Element, class Flat>
std::vector<Buffer> pack_result(size_t count, size_t start, size_t skew, size_t blocks) {
  std::vector<Buffer> buffers;
  buffers.push_back(random_floats<Flat>(2 * count + 1, start, 5));
  std::vector<Tensor> tensors;
  for (const size_t size : {count, size_t{1}, count}) {
    buffers.push_back(random_floats<Element>(size, start + skew, 6));
    tensors.push_back({buffers.back().data(), size});
  }
  for (const bool unpack : {false, true}) {
    host_pack(unpack, tensors, dtype_of<Element>, buffers[0].data(), dtype_of<Flat>, 0.5f, blocks,
              32);
  }
  return buffers;
}

template <class Element>
void check_pack_blocks() {
  for (const DType flat : {DType::f32, DType::bf16, DType::f16}) {
    visit_float_element(flat, [&]<class Flat>() {
      for (const size_t count : kSizes) {
        for (const size_t start : kStarts) {
          for (const size_t skew : {0, 3}) {
            expect(pack_result<Element, Flat>(count, start, skew, 1) ==
                       pack_result<Element, Flat>(count, start, skew, 3),
                   "pack", count, start);
          }
        }
      }
    });
  }
}

template <class Element>
void check_all() {
  check_sgd_blocks<Element>();
  check_lars_blocks<Element>();
  check_pack_blocks<Element>();
}

}  // namespace
}  // namespace hier::cuda

int main() {
  using namespace hier::cuda;
  check_all<Plain<float>>();
  check_all<BFloat16>();
  check_all<Float16>();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
