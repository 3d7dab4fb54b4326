// select_rings on CUDA: a warp for each slot. See kernels.h for the contract.
#include "features.cuh"

namespace simfast {
namespace {

constexpr int kThreads = 128;

// Orders as an arg-max does: numbers by value, both zeros alike, NaN above all; then the lower place first.
__device__ __forceinline__ uint64_t key_of(float value, int64_t place) {
    const uint32_t bits = to_bits(value + 0.f);  // -0 becomes 0
    const uint32_t ordered = value != value ? 0xFFFFFFFFu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(ordered) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(place));
}

// For all lanes.
template <typename Value>
__device__ __forceinline__ int64_t arg_max(const SelectRingsArgs& a, int64_t n, int lane) {
    const Value* logits = static_cast<const Value*>(a.logits) + n * a.stride_n;
    uint64_t best = 0;
    for (int64_t i = lane; i < a.L; i += 32) best = max(best, key_of(to_float(logits[i * a.stride_l]), i));
#pragma unroll
    for (int by = 16; by; by /= 2) best = max(best, __shfl_xor_sync(kFullWarp, best, by));
    return 0xFFFFFFFFu - static_cast<uint32_t>(best);
}

template <typename Value>
__global__ void __launch_bounds__(kThreads) select_rings_kernel(const __grid_constant__ SelectRingsArgs a) {
    const int lane = threadIdx.x % 32;
    const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32, b = i / a.S, s = i % a.S;
    if (i >= a.B * a.S) return;  // the whole warp
    bool counts = a.areas[i] > 0;
    if (a.logits && s < a.G) counts = arg_max<Value>(a, b * a.G + s, lane) == a.slot_classes[s] && counts;
    if (lane == 0) a.rings[i] = counts ? a.slot_rings[s] : -1;
}

}  // namespace

const char* select_rings_cuda(const SelectRingsArgs& a, void* stream) {
    const int64_t blocks = ceil_div(a.B * a.S, kThreads / 32);
    if (blocks > kMaxGrid || a.L >= INT32_MAX) return "too many slots or classes for one launch";
    return for_value_type(a.logits ? a.logits_dtype : Dtype::f32, [&](auto example) {
        const auto kernel = select_rings_kernel<decltype(example)>;
        SIMFAST_LAUNCH(kernel, grid_of(blocks), kThreads, 0, static_cast<cudaStream_t>(stream), a);
        return launch_error();
    });
}

}  // namespace simfast
