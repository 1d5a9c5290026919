// Arrays for the sanitizers: each ends where its allocation ends, at any distance from a 16-byte
// boundary, so that an access beyond it is found.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "cuda/wide.h"

namespace hier::cuda {

class Buffer {
 public:
  Buffer(size_t count, size_t element_size, size_t start)
      : bytes_(static_cast<char*>(std::malloc((start + count) * element_size + (count == 0)))),
        offset_(start * element_size),
        size_(count * element_size) {
    std::memset(bytes_.get(), 0, offset_ + size_);
  }
  void* data() const { return bytes_.get() + offset_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data());
  }
  bool operator==(const Buffer& other) const {
    return size_ == other.size_ && std::memcmp(data(), other.data(), size_) == 0;
  }

 private:
  struct Free {
    void operator()(char* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<char, Free> bytes_;
  size_t offset_, size_;
};

template <class Element>
Buffer random_floats(size_t count, size_t start, unsigned seed) {
  Buffer buffer(count, sizeof(typename Element::Stored), start);
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < count; ++i) store_one<Element>(buffer.data(), i, normal(generator));
  return buffer;
}

}  // namespace hier::cuda
