// Kernels that are wrong on purpose, and what the machine under the tests must say about each. Also its 16-bit floats.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host_cuda.h"

namespace {

struct Shared {
    int values[64];
};
struct alignas(16) Copied {
    int values[256];
};

__global__ void part_of_a_block_waits_kernel() {
    SIMFAST_SHARED(Shared, shared);
    shared.values[threadIdx.x] = 1;
    // Warp 1 waits for a vote of warp 0's lanes that is never held, warp 0 for the barrier.
    if (threadIdx.x < 63)
        __syncthreads();
    else
        __syncwarp();
}
__global__ void two_barriers_kernel() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void lane_outside_its_mask_kernel() { (void)__ballot_sync(0xFu, 1); }
__global__ void lanes_in_two_collectives_kernel() {
    if (threadIdx.x % 2)
        (void)__ballot_sync(~0u, 1);
    else
        (void)__ballot_sync(~0u, 0);
}
__global__ void store_past_the_end_kernel() {
    SIMFAST_SHARED(Shared, shared);
    shared.values[threadIdx.x + 1] = 1;
}
__global__ void store_past_the_dynamic_end_kernel() {
    SIMFAST_DYNAMIC_SHARED(dynamic);
    dynamic[threadIdx.x + 1] = 1;
}
__global__ void unwritten_shared_kernel(int* out) {
    SIMFAST_SHARED(Shared, shared);
    out[threadIdx.x] = shared.values[threadIdx.x];
    shared.values[threadIdx.x] = 7;
}
__global__ void neighbour_kernel(int* out, bool wait) {  // correct only with the barrier
    SIMFAST_SHARED(Shared, shared);
    shared.values[threadIdx.x] = threadIdx.x;
    if (wait) __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = shared.values[63 - threadIdx.x];
}
// Each thread copies 16 bytes asynchronously and reads its neighbour's: right only with the wait and the barrier.
__global__ void neighbour_copy_kernel(int* out, const int* values, bool wait) {
    SIMFAST_SHARED(Copied, shared);
    const unsigned t = threadIdx.x;
    __pipeline_memcpy_async(shared.values + t * 4, values + t * 4, 16);
    __pipeline_commit();
    if (wait) __pipeline_wait_prior(0);
    __syncthreads();
    out[t] = shared.values[(63 - t) * 4];
}
// The first copy is waited for, the second is not: a wait is for all groups but the last ones.
__global__ void two_copies_kernel(int* out, const int* values) {
    SIMFAST_SHARED(Copied, shared);
    const unsigned t = threadIdx.x;
    shared.values[t * 4] = -1;
    for (int i = 0; i < 2; ++i) {
        __pipeline_memcpy_async(shared.values + t * 4, values + i * 4, 16);
        __pipeline_commit();
    }
    __pipeline_wait_prior(1);
    out[t] = shared.values[t * 4];
}
__global__ void misaligned_copy_kernel() {
    SIMFAST_SHARED(Copied, shared);
    __pipeline_memcpy_async(shared.values + 1, shared.values + 4, 16);
}
__global__ void sum_kernel(int* out) {  // early exits and a barrier for the rest, votes, shuffles
    if (threadIdx.x >= 48) return;
    const int voted = __syncthreads_count(threadIdx.x % 3 == 0);
    if (threadIdx.x >= 32) return;
    int value = threadIdx.x;
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    if (threadIdx.x == 5) *out = value * 100 + voted;
}

int neighbour(bool wait, unsigned seed) {
    host_cuda::seed = seed;
    int out[128];
    SIMFAST_LAUNCH(neighbour_kernel, 2, 64, 0, nullptr, out, wait);
    int wrong = 0;
    for (int i = 0; i < 128; ++i) wrong += out[i] != 63 - i % 64;
    host_cuda::seed = 0;
    return wrong;
}

int neighbour_copy(bool wait, unsigned seed) {
    host_cuda::seed = seed;
    alignas(16) int values[256];
    int out[64];
    for (int i = 0; i < 256; ++i) values[i] = i;
    SIMFAST_LAUNCH(neighbour_copy_kernel, 1, 64, 0, nullptr, out, values, wait);
    int wrong = 0;
    for (int i = 0; i < 64; ++i) wrong += out[i] != (63 - i) * 4;
    host_cuda::seed = 0;
    return wrong;
}

// How many of 64 threads saw the first of two copies, and how many the second.
std::pair<int, int> two_copies(unsigned seed) {
    host_cuda::seed = seed;
    alignas(16) const int values[8] = {1, 1, 1, 1, 2, 2, 2, 2};
    int out[64];
    SIMFAST_LAUNCH(two_copies_kernel, 1, 64, 0, nullptr, out, values);
    host_cuda::seed = 0;
    return {std::count(out, out + 64, 1), std::count(out, out + 64, 2)};
}

}  // namespace

#define CASE(name) m.def(#name, [] { SIMFAST_LAUNCH(name##_kernel, 1, 64, 64, nullptr); })

PYBIND11_MODULE(machine_cases, m) {
    CASE(part_of_a_block_waits);
    CASE(two_barriers);
    CASE(lane_outside_its_mask);
    CASE(lanes_in_two_collectives);
    CASE(store_past_the_end);
    CASE(store_past_the_dynamic_end);
    m.def("unwritten_shared", [] {
        int out[64];
        SIMFAST_LAUNCH(unwritten_shared_kernel, 3, 64, 0, nullptr, out);
        return out[0] == out[63] && out[0] != 0 && out[0] != 7;
    });
    CASE(misaligned_copy);
    m.def("no_threads", [] { SIMFAST_LAUNCH(two_barriers_kernel, 1, 0, 0, nullptr); });
    m.def("neighbour", &neighbour);
    m.def("neighbour_copy", &neighbour_copy);
    m.def("two_copies", &two_copies);
    m.def("sum", [] {
        int out = -1;
        SIMFAST_LAUNCH(sum_kernel, 1, 64, 0, nullptr, &out);
        return out;
    });
    m.def("half_to_float", [](uint16_t bits) { return __half2float(__half{bits}); });
    m.def("float_to_half", [](float f) { return __float2half_rn(f).bits; });
    m.def("bfloat16_to_float", [](uint16_t bits) { return __bfloat162float(__nv_bfloat16{bits}); });
    m.def("float_to_bfloat16", [](float f) { return __float2bfloat16_rn(f).bits; });
}
