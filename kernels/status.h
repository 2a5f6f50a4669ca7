// CUDA's status codes as errors.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "launch.h"

namespace sds {
namespace cuda {

inline void check(cudaError_t status) {
    if (status == cudaSuccess) return;
    const char* code = "failed";
    switch (status) {
        case cudaErrorMemoryAllocation: code = "no_memory"; break;
        case cudaErrorIllegalAddress:  // from here on: nothing in this process can use the device any more
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorIllegalInstruction:
        case cudaErrorHardwareStackError:
        case cudaErrorAssert:
        case cudaErrorLaunchFailure:
        case cudaErrorLaunchTimeout:
        case cudaErrorECCUncorrectable:
        case cudaErrorDevicesUnavailable:
        case cudaErrorUnknown: code = "lost"; break;
        default: break;
    }
    cudaGetLastError();  // so that the next call does not report it again
    throw CudaError(code, cudaGetErrorString(status));
}

}  // namespace cuda
}  // namespace sds
