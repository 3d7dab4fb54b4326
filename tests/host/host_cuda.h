// CUDA C++ on the CPU: the names with which g++ compiles the kernels' own sources. What runs them is in host_machine.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "host_machine.h"

#define __global__ inline
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (host_cuda::machine.current->thread)
#define blockIdx (host_cuda::machine.current->block->index)
#define blockDim (host_cuda::machine.block)
#define gridDim (host_cuda::machine.grid)

#define SIMFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    (host_cuda::fails() ? void() : host_cuda::launch(grid, block, shared_bytes, stream, [&] { kernel(__VA_ARGS__); }))
#define SIMFAST_SHARED(Type, name) Type& name = *static_cast<Type*>(host_cuda::static_shared(sizeof(Type)))
#define SIMFAST_DYNAMIC_SHARED(name) unsigned char* name = host_cuda::dynamic_shared()

#define __syncthreads() (void)host_cuda::barrier(__LINE__, false)
#define __syncthreads_or(p) (host_cuda::barrier(__LINE__, (p) != 0) != 0)
#define __syncthreads_count(p) host_cuda::barrier(__LINE__, (p) != 0)
#define __syncwarp() (void)host_cuda::exchange(~0u, 0, false, __LINE__)
#define __ballot_sync(m, p) (host_cuda::exchange(m, 0, (p) != 0, __LINE__).predicate)
#define __any_sync(m, p) (__ballot_sync(m, p) != 0)
#define __all_sync(m, p) (__ballot_sync(m, p) == (m))
#define __reduce_add_sync(m, v) host_cuda::reduce_add(m, v, __LINE__)
#define __shfl_sync(m, v, from) host_cuda::shuffle(m, v, from, true, __LINE__)
#define __shfl_up_sync(m, v, by) \
    host_cuda::shuffle(m, v, host_cuda::lane() - (by), host_cuda::lane() >= unsigned(by), __LINE__)
#define __shfl_down_sync(m, v, by) \
    host_cuda::shuffle(m, v, host_cuda::lane() + (by), host_cuda::lane() + (by) < 32, __LINE__)
#define __shfl_xor_sync(m, v, by) host_cuda::shuffle(m, v, host_cuda::lane() ^ (by), true, __LINE__)

inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t{a} * b) >> 32); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t{high} << 32 | low) >> (32 - by % 32));
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t{high} << 32 | low) >> by % 32);
}
inline void __threadfence() {}

// cuda_pipeline_primitives.h.
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
    host_cuda::copy_async(to, from, bytes);
}
inline void __pipeline_commit() { host_cuda::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups) { host_cuda::wait_for_copies(groups); }

template <typename T>
T __ldg(const T* p) {
    return *p;
}
template <typename T>
T __ldcs(const T* p) {
    return *p;
}
template <typename T>
void __stcg(T* p, T v) {
    *p = v;
}
// Giving way after the load: what it read may be stale by the time it is used.
template <typename T>
T __ldcg(const T* p) {
    const T v = *p;
    host_cuda::maybe_give_way();
    return v;
}
template <typename T>
T load_volatile(const T* p) {
    return __ldcg(p);
}
template <typename T, typename F>
T host_atomic(T* p, F change) {
    host_cuda::maybe_give_way();
    const T before = *p;
    *p = change(before);
    return before;
}
template <typename T>
T atomicAdd(T* p, T v) {
    return host_atomic(p, [=](T x) { return T(x + v); });
}
template <typename T>
T atomicSub(T* p, T v) {
    return host_atomic(p, [=](T x) { return T(x - v); });
}
template <typename T>
T atomicMin(T* p, T v) {
    return host_atomic(p, [=](T x) { return v < x ? v : x; });
}
template <typename T>
T atomicMax(T* p, T v) {
    return host_atomic(p, [=](T x) { return v > x ? v : x; });
}
template <typename T>
T atomicAnd(T* p, T v) {
    return host_atomic(p, [=](T x) { return T(x & v); });
}
template <typename T>
T atomicOr(T* p, T v) {
    return host_atomic(p, [=](T x) { return T(x | v); });
}

// The runtime calls that the launchers make.
using cudaStream_t = void*;
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoKernelImageForDevice = 209
};
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
namespace host_cuda {
inline cudaError_t next_error = cudaSuccess;  // of the next call that can fail, on a test's wish
inline cudaError_t last_error = cudaSuccess;  // kept until somebody asks for it, as CUDA does
inline std::vector<int> shared_limits;        // that the launchers have asked for
inline bool fails(cudaError_t error = cudaSuccess) {
    if (next_error != cudaSuccess) error = std::exchange(next_error, cudaSuccess);
    if (error != cudaSuccess) last_error = error;
    return error != cudaSuccess;
}
}  // namespace host_cuda
inline cudaError_t cudaGetLastError() { return std::exchange(host_cuda::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = host_cuda::max_shared_bytes;
    return cudaSuccess;
}
template <typename F>
cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int bytes) {
    host_cuda::shared_limits.push_back(bytes);
    const bool failed = host_cuda::fails(bytes <= host_cuda::max_shared_bytes ? cudaSuccess : cudaErrorInvalidValue);
    return failed ? host_cuda::last_error : cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
    std::memset(p, value, bytes);
    return cudaSuccess;
}

// 16-bit floats, rounding to nearest even, as cuda_fp16.h and cuda_bf16.h do.
struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float host_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline float __bfloat162float(__nv_bfloat16 v) { return host_float(uint32_t{v.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    const uint32_t b = uint32_t(host_cuda::to_bits(f));
    if (f != f) return {0x7FFF};
    return {uint16_t((b + 0x7FFF + (b >> 16 & 1)) >> 16)};
}
inline float __half2float(__half v) {
    const uint32_t sign = uint32_t(v.bits & 0x8000) << 16, magnitude = v.bits & 0x7FFF;
    if (magnitude >= 0x7C00) return host_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    return host_float(
        sign | uint32_t(host_cuda::to_bits(std::ldexp(float(magnitude & 0x3FF) + (magnitude >> 10 ? 1024.f : 0.f),
                                                      int(magnitude >> 10 ? magnitude >> 10 : 1) - 25))));
}
inline __half __float2half_rn(float f) {
    const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
    const float a = std::fabs(f);
    if (f != f) return {0x7FFF};
    if (a >= 65520.f) return {uint16_t(sign | 0x7C00)};
    int e;
    std::frexp(a, &e);
    e = a < 6.103515625e-05f ? -14 : e - 1;  // subnormals share the smallest exponent
    const float in_ulps = std::nearbyint(std::ldexp(a, 10 - e));
    return {uint16_t(sign | (uint32_t(in_ulps) + (e == -14 ? 0 : (e + 14) * 1024)))};
}
