// The part of the CUDA runtime that kernels/ uses, on the processor: "device" memory is host memory, and a launch runs
// the kernel's threads one after the other. With it in front of the include path, kernels/elementwise.cu and
// kernels/bind_cuda.cc compile as C++, so that the tests run them where there is no GPU (tests/helpers/cuda_tools.py). Only
// for kernels whose threads never wait for each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

#define __host__
#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __noinline__
#define __launch_bounds__(n)
#define CUDART_VERSION 13000
#define SDS_DEVICE_TYPE kDLCPU  // of the tensors that are taken for tensors of a GPU

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
struct dim3 {
    dim3(unsigned x = 1) : x(x) {}
    unsigned x, y = 1, z = 1;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the one thread that runs; a launch holds the lock
inline std::mutex fake_launch;
inline uint4 sds_slots[(48 << 10) / 16];

template <class T>
T atomicAdd(T* at, T more) {
    const T before = *at;
    *at += more;
    return before;
}

enum cudaError_t {
    cudaSuccess,
    cudaErrorMemoryAllocation,
    cudaErrorInsufficientDriver,
    cudaErrorNoDevice,
    cudaErrorIllegalAddress,
    cudaErrorMisalignedAddress,
    cudaErrorInvalidAddressSpace,
    cudaErrorInvalidPc,
    cudaErrorIllegalInstruction,
    cudaErrorHardwareStackError,
    cudaErrorAssert,
    cudaErrorLaunchFailure,
    cudaErrorLaunchTimeout,
    cudaErrorECCUncorrectable,
    cudaErrorDevicesUnavailable,
    cudaErrorUnknown
};
enum cudaMemcpyKind { cudaMemcpyDefault };
enum cudaDeviceAttr {
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMultiProcessorCount
};
constexpr unsigned cudaHostAllocPortable = 1, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;
using cudaStream_t = struct FakeStream*;
using cudaEvent_t = struct FakeEvent*;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

// The tests set these in the environment: how many bytes the device has, and after how many launches it fails.
inline int64_t fake_setting(const char* name, int64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr || *text == 0 ? otherwise : std::atoll(text);
}
inline int64_t fake_launches = 0, fake_allocated = 0;

inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "out of memory" : "an illegal memory access was encountered";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = static_cast<int>(fake_setting("FAKE_CUDA_DEVICES", 1));
    return *count ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    std::strcpy(properties->name, "Fake");
    properties->totalGlobalMem = static_cast<size_t>(fake_setting("FAKE_CUDA_MEMORY", 1 << 30));
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 8, cudaSuccess; }
inline cudaError_t cudaMalloc(void** data, size_t bytes) {
    if (static_cast<int64_t>(bytes) > fake_setting("FAKE_CUDA_MEMORY", 1 << 30)) return cudaErrorMemoryAllocation;
    ++fake_allocated;
    *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* data) { return --fake_allocated, std::free(data), cudaSuccess; }
inline cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) { return cudaMalloc(data, bytes); }
inline cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return std::memmove(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
    return std::memset(at, value, bytes), cudaSuccess;
}

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), const Given&... given) {
    const std::lock_guard<std::mutex> lock(fake_launch);
    const int64_t working = fake_setting("FAKE_CUDA_LAUNCHES", -1);
    fake_launches = working < 0 ? 0 : fake_launches + 1;
    if (fake_launches > working && working >= 0) return cudaErrorIllegalAddress;
    if (config->dynamicSmemBytes > sizeof sds_slots) return cudaErrorUnknown;
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    for (unsigned block = 0; block < gridDim.x; ++block) {
        for (unsigned thread = 0; thread < blockDim.x; ++thread) {
            blockIdx.x = block;
            threadIdx.x = thread;
            kernel(given...);
        }
    }
    return cudaSuccess;
}
