// What every CUDA source here starts with: CUDA itself, or the tests' stand-in for it when a plain C++ compiler runs
// the kernels on the CPU, and the few helpers that all kernels use.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SIMFAST_HD __host__ __device__ __forceinline__
// A kernel in parentheses, so that its template arguments may hold commas.
#define SIMFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
// A kernel keeps all its static shared memory in one struct; the stand-in gives each block in flight its own.
#define SIMFAST_SHARED(Type, name) __shared__ Type name
#define SIMFAST_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// A load that other threads' stores may change from one call to the next.
template <typename T>
__device__ __forceinline__ T load_volatile(const T* p) {
    return *const_cast<const volatile T*>(p);
}
#else
#include "host_cuda.h"
#define SIMFAST_HD inline
using std::max;
using std::min;
#endif

#include "kernels.h"

namespace simfast {

SIMFAST_HD constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

constexpr unsigned kFullWarp = 0xFFFFFFFFu;
constexpr int64_t kMaxGrid = 0x7FFFFFFF;  // blocks along x
inline dim3 grid_of(int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); }

__device__ __forceinline__ unsigned bits_below(int lane) { return (1u << lane) - 1; }
__device__ __forceinline__ unsigned bits_upto(int lane) { return kFullWarp >> (31 - lane); }

// A label map whose element type is known.
template <typename T>
struct TypedMap {
    const T* data;
    int64_t stride_b, stride_h, stride_w;

    explicit TypedMap(const LabelMap& map)
        : data(static_cast<const T*>(map.data)),
          stride_b(map.stride_b),
          stride_h(map.stride_h),
          stride_w(map.stride_w) {}
    __device__ __forceinline__ T at(int64_t b, int64_t y, int64_t x) const {
        return __ldg(data + b * stride_b + y * stride_h + x * stride_w);
    }
};

// Calls run(T{}) for the map's element type.
template <typename Run>
const char* for_label_type(Dtype dtype, const Run& run) {
    switch (dtype) {
        case Dtype::u8: return run(uint8_t{});
        case Dtype::i16: return run(int16_t{});
        case Dtype::i32: return run(int32_t{});
        case Dtype::i64: return run(int64_t{});
        default: return "labels are not of an integer dtype";
    }
}

// What a call returned, in words, or nullptr. The runtime also keeps a failure as "the last error", which the next good
// launch would otherwise be blamed for: it is taken back here.
inline const char* error_text(cudaError_t error) {
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();
    switch (error) {
        case cudaErrorInsufficientDriver:
            return "the driver is too old: simfast is built with CUDA 13, which needs driver 580 or newer";
        case cudaErrorNoKernelImageForDevice:
            return "simfast has no machine code for this GPU: it needs compute capability 8.0, 8.6, 8.9, 9.0, 10.0 or "
                   "12.0, or a build with SIMFAST_CUDA_ARCHITECTURES set to this GPU's";
        default: return cudaGetErrorString(error);
    }
}
inline const char* launch_error() { return error_text(cudaGetLastError()); }

// Shared memory that one block of the current device may have, static and dynamic together.
inline int64_t max_shared_bytes() {
    int device = 0, bytes = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
    return bytes;
}

// Lets `kernel`, which has `static_bytes` of static shared memory, be launched with as much dynamic shared memory as
// the device gives a block. Always that much, never a call's own size: two host threads with different sizes would undo
// each other's.
template <typename Kernel>
cudaError_t allow_all_shared(Kernel kernel, int64_t static_bytes) {
    const int64_t bytes = max_shared_bytes() - ceil_div(static_bytes, 128) * 128;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace simfast
