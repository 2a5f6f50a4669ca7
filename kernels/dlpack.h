// The part of DLPack that is read here: a tensor as its library describes it, and the table of functions by which a
// library hands tensors over without a Python call (its types' attribute `__dlpack_c_exchange_api__`, a capsule).
//
// The layout is that of DLPack 1.x (https://github.com/dmlc/dlpack, dlpack.h), which does not change within version 1.
#pragma once

#include <cstdint>

namespace sds {
namespace dlpack {

constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr uint32_t kMajor = 1;

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
enum TypeCode : uint8_t { kFloat = 2, kBfloat = 4, kE4m3fn = 10, kE5m2 = 12 };

struct Tensor {
    void* data;
    int32_t device_type, device;
    int32_t dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t* shape;
    int64_t* strides;  // in elements; null: row-major
    uint64_t byte_offset;
};

struct Exchange {
    uint32_t major, minor;
    const Exchange* earlier;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*from_object)(void* object, Tensor* to);  // borrows; may be null; −1 with a Python error set
    void* current_stream;
};

}  // namespace dlpack
}  // namespace sds
