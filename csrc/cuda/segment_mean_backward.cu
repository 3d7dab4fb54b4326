// The backward pass of segment_mean on CUDA: one launch, one write of the gradient. See kernels.h for the contract.
#include <algorithm>

#include "device.cuh"
#include "features.cuh"

namespace simfast {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 16;               // of a block, where the layout is planes
constexpr int kTablePitch = kChannels + 4;  // floats: rows 20 words apart put 8 neighbouring segments on 32 banks
constexpr int64_t kTableBytes = 48 * 1024;  // beyond it, gradients are read where they lie
constexpr int64_t kAimedBlocks = 256;
constexpr int kPixelRun = 32;  // pixels of a warp, where the layout is pixels

struct BackwardPlan {
    int32_t pixels, class_stride, groups, blocks;  // blocks: for each group of channels
};

template <typename Value>
__device__ __forceinline__ uint4 pack(const float (&values)[16 / sizeof(Value)]) {
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < static_cast<int>(16 / sizeof(Value)); ++j) {
        words[j * sizeof(Value) / 4] |= to_bits(from_float<Value>(values[j])) << (sizeof(Value) == 2 && j % 2 ? 16 : 0);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// What a segment's pixels get; 0 from a segment that has no pixel.
__device__ __forceinline__ float quotient(float grad_mean, int32_t count) {
    return count > 0 ? grad_mean / static_cast<float>(count) : 0.0f;
}

// A quarter of a table row: four channels of one segment.
__device__ __forceinline__ float4 four_channels(const float* table, int32_t row, int quarter) {
    return *reinterpret_cast<const float4*>(table + row * kTablePitch + quarter * 4);
}

// Planes. A group is 16 channels class_stride apart, whose planes start at the same place within 16 bytes: a thread
// takes the segments of one 16-byte chunk of pixels into registers and serves all 16 channels with them. The quotients
// stand in a table [segment][channel] in shared memory, its last row the zeros of pixels without a segment. The bound
// on blocks tells the compiler that 128 registers are fine, or more without the table: left alone it spills a few.
template <typename Value, bool kInShared>
__global__ void __launch_bounds__(kThreads, kInShared ? 2 : 1)
    segment_mean_backward_planes_kernel(const __grid_constant__ SegmentMeanBackwardArgs a, BackwardPlan plan,
                                        SegmentMap map) {
    SIMFAST_DYNAMIC_SHARED(dynamic);
    constexpr int kPerChunk = 16 / sizeof(Value);
    float* table = reinterpret_cast<float*>(dynamic);
    unsigned place = blockIdx.x;
    const int32_t group = place % plan.groups, block = (place /= plan.groups) % plan.blocks;
    const int64_t b = place / plan.blocks;
    const int32_t S = static_cast<int32_t>(a.num_segments), C = static_cast<int32_t>(a.C);
    const int32_t first_channel = group / plan.class_stride * kChannels * plan.class_stride + group % plan.class_stride;
    const float* grad_means = static_cast<const float*>(a.grad_means) + b * S * a.C;
    const int32_t* counts = a.counts + b * S;
    const auto exists = [&](int32_t s, int32_t c) { return s < S && c < C; };
    const auto channel = [&](int i) { return first_channel + i * plan.class_stride; };
    if constexpr (kInShared) {
        // Both loads of kTogether quotients are in flight before the first division.
        constexpr int kTogether = 8;
        const int size = (S + 1) * kChannels;
        for (int first = threadIdx.x; first < size; first += kTogether * kThreads) {
            int32_t count[kTogether];
            float mean[kTogether];
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
                const int i = first + j * kThreads, s = i / kChannels, c = channel(i % kChannels);
                count[j] = exists(s, c) ? __ldg(counts + s) : 0;
                mean[j] = exists(s, c) ? __ldg(grad_means + s * a.C + c) : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
                const int i = first + j * kThreads;
                if (i < size) table[i / kChannels * kTablePitch + i % kChannels] = quotient(mean[j], count[j]);
            }
        }
        __syncthreads();
    }

    Value* image = static_cast<Value*>(a.grad_features) + b * a.stride_b;
    const int32_t shift = elements_past_16(image + first_channel * a.stride_c);
    const int32_t chunks = static_cast<int32_t>(ceil_div(int64_t{plan.pixels} + shift, kPerChunk));
    for (int32_t chunk = block * kThreads + threadIdx.x; chunk < chunks; chunk += plan.blocks * kThreads) {
        const int64_t first = int64_t{chunk} * kPerChunk - shift;
        const bool whole = first >= 0 && first + kPerChunk <= plan.pixels;
        RawSegment raw[kPerChunk];
        map.fetch(b, first, 1, [&](int j) { return first + j >= 0 && first + j < plan.pixels; }, raw);
        int32_t rows[kPerChunk];
#pragma unroll
        for (int j = 0; j < kPerChunk; ++j) {
            const int32_t segment = raw[j].within(0, S);
            rows[j] = segment >= 0 ? segment : S;
        }
#pragma unroll 1
        for (int quarter = 0; quarter < kChannels / 4; ++quarter) {
            float values[4][kPerChunk];
#pragma unroll
            for (int j = 0; j < kPerChunk; ++j) {
                if constexpr (kInShared) {
                    const float4 v = four_channels(table, rows[j], quarter);
                    values[0][j] = v.x, values[1][j] = v.y, values[2][j] = v.z, values[3][j] = v.w;
                } else {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int32_t s = rows[j], c = channel(quarter * 4 + i);
                        values[i][j] = exists(s, c) ? quotient(grad_means[s * a.C + c], counts[s]) : 0.0f;
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int32_t c = channel(quarter * 4 + i);
                if (c >= C) break;
                Value* plane = image + c * a.stride_c;
                if (whole) {
                    store_16(plane + first, pack<Value>(values[i]));
                    continue;
                }
                // The first and the last chunk of a plane hold pixels of its neighbours, which other blocks write.
#pragma unroll
                for (int j = 0; j < kPerChunk; ++j) {
                    if (first + j >= 0 && first + j < plan.pixels) plane[first + j] = from_float<Value>(values[i][j]);
                }
            }
        }
    }
}

// Pixels. A lane holds kPerLane channels of the run of pixels that the warp is in, ready to be stored. The gradients of
// the run after it are on their way meanwhile, and every lane has loaded the count of its own pixel's segment before: a
// new run waits for nothing but its divisions. kPerLane is 16 bytes' worth, or 1 where channels are not so aligned.
template <typename Value, int kPerLane>
__global__ void __launch_bounds__(kThreads)
    segment_mean_backward_pixels_kernel(const __grid_constant__ SegmentMeanBackwardArgs a, BackwardPlan plan,
                                        SegmentMap map) {
    constexpr int kOfLoad = kPerLane > 1 ? 4 : 1, kLoads = kPerLane / kOfLoad;
    using Load = Channels<float, kOfLoad>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned place = blockIdx.x;
    const int32_t group = place % plan.groups, block = (place /= plan.groups) % plan.blocks;
    const int64_t b = place / plan.blocks, c = (int64_t{group} * 32 + lane) * kPerLane;
    const int64_t begin = (int64_t{block} * (kThreads / 32) + warp) * kPixelRun;
    if (begin >= plan.pixels) return;
    const int size = static_cast<int>(min(int64_t{kPixelRun}, plan.pixels - begin));
    RawSegment raw[1];
    map.fetch(b, begin + lane, 0, [&](int) { return lane < size; }, raw);
    const int32_t segment = raw[0].within(0, static_cast<int32_t>(a.num_segments));
    const int32_t pixels_of_segment = segment >= 0 ? __ldg(a.counts + b * a.num_segments + segment) : 0;
    const int32_t before = __shfl_up_sync(kFullWarp, segment, 1);
    const unsigned changed = __ballot_sync(kFullWarp, lane == 0 || segment != before);
    const float* grad_means = static_cast<const float*>(a.grad_means) + b * a.num_segments * a.C + c;
    Value* out = static_cast<Value*>(a.grad_features) + b * a.stride_b + begin * a.stride_p + c;

    int32_t count = 0;
    Load means[kLoads] = {};
    const auto load_run = [&](int first) {
        const int32_t s = __shfl_sync(kFullWarp, segment, first);
        count = __shfl_sync(kFullWarp, pixels_of_segment, first);
        if (s < 0 || c >= a.C) return;
        const auto* from = reinterpret_cast<const Load*>(grad_means + s * a.C);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) means[i] = from[i];
    };
    load_run(0);
    for (int j = 0; j < size;) {
        float values[kPerLane];
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) values[i] = quotient(means[i / kOfLoad].at[i % kOfLoad], count);
        const unsigned later = changed & ~bits_upto(j);
        const int end = later ? min(__ffs(later) - 1, size) : size;
        if (end < size) load_run(end);
        if constexpr (kPerLane > 1) {
            const uint4 packed = pack<Value>(values);
#pragma unroll 4
            for (; j < end; ++j, out += a.stride_p) {
                if (c < a.C) store_16(out, packed);
            }
        } else {
            const Value value = from_float<Value>(values[0]);
#pragma unroll 4
            for (; j < end; ++j, out += a.stride_p) {
                if (c < a.C) *out = value;
            }
        }
    }
}

template <typename Value>
const char* run_planes(const SegmentMeanBackwardArgs& a, cudaStream_t stream) {
    BackwardPlan plan{};
    plan.pixels = static_cast<int32_t>(a.H * a.W);
    plan.class_stride = alignment_classes(a.stride_c, a.features_dtype);
    plan.groups = static_cast<int32_t>(ceil_div(a.C, kChannels * plan.class_stride) * plan.class_stride);
    // Every block fills a table of its own, so there are no more of them than keep the device busy.
    const int64_t most = ceil_div(int64_t{plan.pixels} + 7, kThreads * int64_t{16 / sizeof(Value)});
    plan.blocks = static_cast<int32_t>(std::clamp<int64_t>(ceil_div(kAimedBlocks, plan.groups), 1, most));
    const int64_t grid = a.B * plan.groups * plan.blocks, table = (a.num_segments + 1) * kTablePitch * sizeof(float);
    if (grid > kMaxGrid) return "the batch is too large for one launch";
    const bool in_shared = table <= kTableBytes;
    const auto kernel = in_shared ? segment_mean_backward_planes_kernel<Value, true>
                                  : segment_mean_backward_planes_kernel<Value, false>;
    SIMFAST_LAUNCH(kernel, grid_of(grid), kThreads, in_shared ? table : 0, stream, a, plan,
                   SegmentMap(a.segments, a.H, a.W));
    return launch_error();
}

template <typename Value>
const char* run_pixels(const SegmentMeanBackwardArgs& a, cudaStream_t stream) {
    constexpr int kWide = 16 / sizeof(Value);
    const auto on_16_bytes = [](int64_t elements) { return elements * sizeof(Value) % 16 == 0; };
    const auto addresses = reinterpret_cast<uintptr_t>(a.grad_features) | reinterpret_cast<uintptr_t>(a.grad_means);
    const bool wide = addresses % 16 == 0 && a.C % kWide == 0 && on_16_bytes(a.stride_b) && on_16_bytes(a.stride_p);
    BackwardPlan plan{};
    plan.pixels = static_cast<int32_t>(a.H * a.W);
    plan.groups = static_cast<int32_t>(ceil_div(a.C, 32 * (wide ? kWide : 1)));
    plan.blocks = static_cast<int32_t>(ceil_div(plan.pixels, kPixelRun * (kThreads / 32)));
    const int64_t grid = a.B * plan.groups * plan.blocks;
    if (grid > kMaxGrid) return "the batch is too large for one launch";
    const auto kernel =
        wide ? segment_mean_backward_pixels_kernel<Value, kWide> : segment_mean_backward_pixels_kernel<Value, 1>;
    SIMFAST_LAUNCH(kernel, grid_of(grid), kThreads, 0, stream, a, plan, SegmentMap(a.segments, a.H, a.W));
    return launch_error();
}

}  // namespace

int64_t segment_mean_backward_workspace_cuda(const SegmentMeanBackwardArgs&) { return 0; }

const char* segment_mean_backward_cuda(const SegmentMeanBackwardArgs& a, void* stream_pointer) {
    return for_value_type(a.features_dtype, [&](auto example) {
        using Value = decltype(example);
        const auto stream = static_cast<cudaStream_t>(stream_pointer);
        return a.layout == Layout::planes ? run_planes<Value>(a, stream) : run_pixels<Value>(a, stream);
    });
}

}  // namespace simfast
