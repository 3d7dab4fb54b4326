// matching_losses and its gradient on CUDA, one launch each; the same sums in the same order as on the CPU. See
// kernels.h for the contract.
#include "device.cuh"

namespace simfast {
namespace {

constexpr int kWarps = 32;     // at most, of the one block that adds the losses up: each has an image at a time
constexpr int kThreads = 128;  // of a block of the gradient
constexpr int kBatch = 10;     // slots of a class whose loads are in flight together

struct LossesShared {
    float stuff[kWarps], instances[kWarps];  // of the image that each warp has
};

struct ThingSum {
    float sum;
    int64_t regions;
};

// Terms of `count` slots from `first` on, added in order, and how many of the slots hold a region.
__device__ __forceinline__ ThingSum sum_slots(const MatchingLossesArgs& a, int64_t first, int64_t count,
                                              float divisor) {
    ThingSum found{0.f, 0};
    for (int64_t start = 0; start < count; start += kBatch) {
        float distance[kBatch];
        int64_t row[kBatch], ring[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const bool inside = start + u < count;
            const int64_t i = first + start + u;
            distance[u] = inside ? static_cast<const float*>(a.distances)[i] : 0.f;
            row[u] = inside ? a.rows[i] : -1;
            ring[u] = inside ? a.rings[i] : -1;
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            if (row[u] >= 0) found.sum += distance[u] / divisor;
            found.regions += ring[u] >= 0;
        }
    }
    return found;
}

// `total` and the values of lanes 0 .. count - 1, added one after the other; for all lanes.
__device__ __forceinline__ float add_in_order(float total, float value, int count) {
    for (int i = 0; i < count; ++i) total += __shfl_sync(kFullWarp, value, i);
    return total;
}

__global__ void __launch_bounds__(kWarps * 32) matching_losses_kernel(const __grid_constant__ MatchingLossesArgs a) {
    SIMFAST_SHARED(LossesShared, shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t num_slots = a.num_stuff + a.num_things * a.max_instances;
    const float divisor = static_cast<float>(a.divisor);
    float stuff = 0.f, instances = 0.f;  // thread 0's are the losses
    for (int64_t image = 0; image < a.B; image += warps) {
        const int64_t b = image + warp, slots = b * num_slots;
        if (b < a.B) {
            float of_stuff = 0.f, of_things = 0.f;
            for (int64_t s = 0; s < a.num_stuff; s += 32) {
                const int count = static_cast<int>(min(int64_t{32}, a.num_stuff - s));
                const float term = lane < count ? sum_slots(a, slots + s + lane, 1, divisor).sum : 0.f;
                of_stuff = add_in_order(of_stuff, term, count);
            }
            for (int64_t t = 0; t < a.num_things; t += 32) {
                const int count = static_cast<int>(min(int64_t{32}, a.num_things - t));
                float term = 0.f;
                if (lane < count) {
                    const int64_t first = slots + a.num_stuff + (t + lane) * a.max_instances;
                    const ThingSum found = sum_slots(a, first, a.max_instances, divisor);
                    term = found.sum / static_cast<float>(max(int64_t{1}, found.regions));
                }
                of_things = add_in_order(of_things, term, count);
            }
            if (lane == 0) shared.stuff[warp] = of_stuff, shared.instances[warp] = of_things;
        }
        __syncthreads();  // all images of this round stand
        if (threadIdx.x == 0) {
            for (int i = 0; i < warps && image + i < a.B; ++i) {
                stuff += shared.stuff[i];
                instances += shared.instances[i];
            }
        }
        __syncthreads();  // they have been added
    }
    if (threadIdx.x > 0) return;
    *static_cast<float*>(a.stuff) = stuff;
    *static_cast<float*>(a.instances) = instances;
}

__global__ void __launch_bounds__(kThreads)
    matching_losses_backward_kernel(const __grid_constant__ MatchingLossesBackwardArgs a) {
    const int64_t num_slots = a.num_stuff + a.num_things * a.max_instances;
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, b = i / num_slots, s = i % num_slots;
    if (b >= a.B) return;
    const float divisor = static_cast<float>(a.divisor);
    float value = *static_cast<const float*>(a.grad_stuff);
    if (s >= a.num_stuff) {
        const int64_t first = i - (s - a.num_stuff) % a.max_instances;
        int64_t regions = 0;
#pragma unroll 5
        for (int64_t j = 0; j < a.max_instances; ++j) regions += a.rings[first + j] >= 0;
        value = *static_cast<const float*>(a.grad_instances) / static_cast<float>(max(int64_t{1}, regions));
    }
    static_cast<float*>(a.grad_distances)[i] = a.rows[i] < 0 ? 0.f : value / divisor;
}

}  // namespace

const char* matching_losses_cuda(const MatchingLossesArgs& a, void* stream) {
    const int threads = static_cast<int>(max(int64_t{1}, min(int64_t{kWarps}, a.B))) * 32;  // no images, losses of 0
    SIMFAST_LAUNCH(matching_losses_kernel, grid_of(1), threads, 0, static_cast<cudaStream_t>(stream), a);
    return launch_error();
}

const char* matching_losses_backward_cuda(const MatchingLossesBackwardArgs& a, void* stream) {
    const int64_t blocks = ceil_div(a.B * (a.num_stuff + a.num_things * a.max_instances), kThreads);
    if (blocks > kMaxGrid) return "the batch has too many images for one launch";
    SIMFAST_LAUNCH(matching_losses_backward_kernel, grid_of(blocks), kThreads, 0, static_cast<cudaStream_t>(stream), a);
    return launch_error();
}

}  // namespace simfast
