// What DLPack's header lays down (dmlc/dlpack, versions 0 and 1), as far as it is read here.
#pragma once

#include <cstdint>

namespace hier::dlpack {

enum TypeCode : uint8_t { floating = 2, brain_floating = 4 };

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

constexpr uint64_t kReadOnly = 1;

// What the capsule `__dlpack_c_exchange_api__` of a type of tensors points to, since DLPack 1.3.
struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* previous;  // of an older version
  int (*allocate)(Tensor*, ManagedVersioned**, void*, void (*)(void*, const char*, const char*));
  int (*managed_of)(void*, ManagedVersioned**);
  int (*object_of)(ManagedVersioned*, void**);
  // Describes the tensor `object`, which owns shape and strides. 0, or -1 with Python's error set.
  int (*describe)(void* object, Tensor*);
  int (*stream)(int32_t device_type, int32_t device_id, void**);
};

}  // namespace hier::dlpack
