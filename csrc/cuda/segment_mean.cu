// segment_mean on CUDA: see kernels.h for the contract; the backward pass is in segment_mean_backward.cu.
//
// Two launches. `sum` reads the map once. A lane is a channel, or two neighbouring ones, and a warp walks along pixels:
// whether the segment changes is then the same question for all 32 lanes, a run of pixels adds up in registers, and
// only at its end does the sum move to the warp's own table [segment][channel] in shared memory, without a bank
// conflict or an atomic (segment_sums.cuh). `divide` adds the partial sums of the pixel splits. It is a launch
// of its own: the last block to arrive could do its work, but would be known by a counter that something has to clear
// first, which is a launch again.
//
// The order of additions: a run is cut into pieces at every 16th pixel of its part; pixels of a piece from left to
// right, pieces of a run, runs of a part in raster order, the four parts of a split by twos, the splits (many: every
// eighth of them, then these eight sums). Parts depend on sizes alone, so the bits do too: not on the batch, the
// layout, the address or the device.
//
// Long sums are no plain ones (the mean of a segment of constant features, 8 million pixels, would be wrong by parts in
// a hundred): pieces of a run and splits are LongSums. Only the runs of a part are added plainly, since a table of what
// they lose has no place beside them; a part is short for that reason. The most it costs is a part in 100,000: 512 runs
// of 1,024 pixels, all of the same value. Longer parts, of many segments or few channels, may hold more.
#include <algorithm>

#include "device.cuh"
#include "features.cuh"
#include "segment_sums.cuh"

// Free choices: a build with other ones (SIMFAST_CUDA_FLAGS) compares them. The first one moves the bits, the others do
// not.
#ifndef SIMFAST_MEAN_BLOCKS
#define SIMFAST_MEAN_BLOCKS 256  // that an image is cut into, of 32 channels: about two for each multiprocessor
#endif
#ifndef SIMFAST_MEAN_SLOTS
#define SIMFAST_MEAN_SLOTS 4  // of the ring of a warp that takes two channels a lane: 4 KB each
#endif
#ifndef SIMFAST_MEAN_PER_LANE
#define SIMFAST_MEAN_PER_LANE 2  // channels, at most
#endif

namespace simfast {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kDivideThreads = 256;
constexpr int64_t kLeastPartPixels = 64, kLongPartPixels = 1024;
constexpr int kShares = kDivideThreads / 32;  // of the splits of a mean, where it has many

// One channel a lane takes 8 KB of ring a warp, so that two blocks of 118 segments fit a multiprocessor of an H100.
template <typename Value, int kPerLane>
using Ring = PixelRing<Value, kPerLane, kPerLane == 2 ? SIMFAST_MEAN_SLOTS : 8 / sizeof(Value)>;

// How the work is cut. What decides the order of additions comes from C, H * W and S alone.
struct MeanPlan {
    int32_t pixels, part_pixels, splits;  // a split is kWarps parts
    int32_t shares;                       // warps that share the splits of a mean
    int32_t class_stride, groups;         // a group is 32 channels class_stride apart
    int32_t per_lane;                     // groups of a block
    int32_t window, windows;              // segments whose sums fit in shared memory at a time: nearly always all
    bool staged;
    int64_t shared_bytes;

    // Shares the segments out to as few windows as fit beside `fixed` bytes.
    void set_windows(int64_t S, int64_t fixed) {
        const int64_t each = int64_t{kThreads} * per_lane * sizeof(float) + sizeof(int32_t);
        const int64_t room = std::max<int64_t>(1, (max_shared_bytes() - fixed - 64) / each);
        windows = static_cast<int32_t>(ceil_div(S, room));
        window = static_cast<int32_t>(ceil_div(S, windows));
        shared_bytes = fixed + window * each;
    }
};

MeanPlan plan_of(const SegmentMeanArgs& a) {
    MeanPlan plan{};
    const int64_t pixels = a.H * a.W, S = a.num_segments;
    // Enough splits to fill the device and to keep the parts short. To fill it, there may be as many partial sums as
    // features, were all groups of 32 channels full; to keep parts short, an eighth of the features there are. (Planes
    // of odd size may leave most places of a group empty, and take up to eight times as many sums.)
    const int64_t most = std::max<int64_t>(1, std::min(pixels / S, pixels / (kWarps * kLeastPartPixels)));
    const int64_t tables = ceil_div(a.C, 32), filling = ceil_div(SIMFAST_MEAN_BLOCKS, tables);
    const int64_t shortening = ceil_div(pixels, kWarps * std::max(kLongPartPixels, 2 * S * tables * 32 / a.C));
    const int64_t wanted = std::clamp<int64_t>(std::max(filling, shortening), 1, most);
    plan.pixels = static_cast<int32_t>(pixels);
    plan.part_pixels = static_cast<int32_t>(ceil_div(ceil_div(pixels, wanted * kWarps), 32) * 32);
    plan.splits = static_cast<int32_t>(ceil_div(pixels, int64_t{plan.part_pixels} * kWarps));
    plan.shares = plan.splits < 8 * kShares ? 1 : kShares;
    plan.staged = a.layout == Layout::planes;
    plan.class_stride = plan.staged ? alignment_classes(a.stride_c, a.features_dtype) : 1;
    const int64_t whole = a.C / (32 * plan.class_stride) * plan.class_stride;  // groups of 32 channels
    plan.groups = static_cast<int32_t>(whole + std::min<int64_t>(plan.class_stride, a.C - whole * 32));
    // Two channels a lane make a pixel of a warp a whole line, where the dtype, the channels and the memory give that.
    plan.per_lane = 2;
    plan.set_windows(S, kWarps * int64_t{Ring<__half, 2>::kBytes});
    if (plan.staged || value_bytes(a.features_dtype) == 4 || a.C <= 32 || plan.windows > 1 ||
        SIMFAST_MEAN_PER_LANE < 2) {
        plan.per_lane = 1;
        static_assert(Ring<float, 1>::kBytes == Ring<__half, 1>::kBytes);
        plan.set_windows(S, kWarps * int64_t{plan.staged ? kStageBytes : Ring<float, 1>::kBytes});
    }
    return plan;
}

// Partial sums lie as the blocks make them, [B, splits, groups, S, 32]: a warp stores 128 bytes in a row. As [..., C]
// the 32 channels of a group would be up to 8 apart, and every 4 bytes would cost the second-level cache a 32-byte
// sector.
struct MeanWorkspace {
    float* sums;
    int32_t* counts;  // [B, splits, S]

    MeanWorkspace(void* at, const SegmentMeanArgs& a, const MeanPlan& plan)
        : sums(static_cast<float*>(at)), counts(reinterpret_cast<int32_t*>(sums + sums_of(a, plan))) {}
    static int64_t sums_of(const SegmentMeanArgs& a, const MeanPlan& plan) {
        return a.B * plan.splits * plan.groups * a.num_segments * 32;
    }
};

// One block's share: kPerLane groups of channels, a split of the pixels, a window of the segments.
template <int kPerLane>
struct MeanBlock {
    static constexpr int kChannels = 32 * kPerLane;

    int32_t first_group, split, first_segment, window;
    int64_t b;
    float* tables;    // [kWarps][window][kChannels]
    int32_t* counts;  // [window]

    // Blocks that read the same pixels stand side by side.
    __device__ __forceinline__ MeanBlock(const SegmentMeanArgs& a, const MeanPlan& plan, unsigned char* shared) {
        const int32_t blocks_of_groups = (plan.groups + kPerLane - 1) / kPerLane;
        unsigned place = blockIdx.x;
        first_group = place % blocks_of_groups * kPerLane;
        split = (place /= blocks_of_groups) % plan.splits;
        first_segment = (place /= plan.splits) % plan.windows * plan.window;
        b = place / plan.windows;
        window = min(plan.window, static_cast<int32_t>(a.num_segments) - first_segment);
        tables = reinterpret_cast<float*>(shared);
        counts = reinterpret_cast<int32_t*>(tables + kWarps * kChannels * window);
    }
    __device__ __forceinline__ SegmentReader segments(const MeanPlan& plan, const SegmentMap& map) const {
        const int64_t begin = (int64_t{split} * kWarps + threadIdx.x / 32) * plan.part_pixels;
        const auto at_most_all = [&](int64_t p) { return static_cast<int32_t>(min(p, int64_t{plan.pixels})); };
        return {map, b, at_most_all(begin), at_most_all(begin + plan.part_pixels), first_segment, window};
    }
    __device__ __forceinline__ void clear() const {
        auto* fours = reinterpret_cast<float4*>(tables);
        for (int i = threadIdx.x; i < kWarps * window * kChannels / 4; i += kThreads)
            fours[i] = make_float4(0, 0, 0, 0);
        for (int i = threadIdx.x; i < window; i += kThreads) counts[i] = 0;
        __syncthreads();  // the tables are clear
    }
    __device__ __forceinline__ RunningSums<kPerLane> running() const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        auto* column = reinterpret_cast<Channels<float, kPerLane>*>(tables + warp * window * kChannels);
        return RunningSums<kPerLane>(column + lane);
    }
    __device__ __forceinline__ bool counting() const { return first_group == 0; }  // once will do

    // Adds the warps' tables up, by twos.
    __device__ __forceinline__ void store(const SegmentMeanArgs& a, const MeanPlan& plan,
                                          const MeanWorkspace& to) const {
        __syncthreads();  // the tables are full
        const int64_t block = b * plan.splits + split, S = a.num_segments;
        float* sums = to.sums + (block * plan.groups * S + first_segment) * 32;
        const auto* fours = reinterpret_cast<const float4*>(tables);
        const int of_table = window * kChannels / 4;
        for (int i = threadIdx.x; i < of_table; i += kThreads) {
            static_assert(kWarps == 4);
            const float4 u = fours[i], v = fours[of_table + i], w = fours[2 * of_table + i],
                         z = fours[3 * of_table + i];
            const float4 sum = {(u.x + v.x) + (w.x + z.x), (u.y + v.y) + (w.y + z.y), (u.z + v.z) + (w.z + z.z),
                                (u.w + v.w) + (w.w + z.w)};
            const int segment = i / (kChannels / 4), channel = i % (kChannels / 4) * 4;
            const int32_t group = first_group + channel / 32;
            if (kPerLane > 1 && group >= plan.groups) continue;
            *reinterpret_cast<float4*>(sums + (group * S + segment) * 32 + channel % 32) = sum;
        }
        if (first_group != 0) return;
        for (int i = threadIdx.x; i < window; i += kThreads) to.counts[block * S + first_segment + i] = counts[i];
    }
};

template <typename Value>
__global__ void __launch_bounds__(kThreads, 2)
    segment_mean_planes_kernel(const __grid_constant__ SegmentMeanArgs a, const __grid_constant__ MeanPlan plan,
                               SegmentMap map, MeanWorkspace workspace) {
    SIMFAST_DYNAMIC_SHARED(dynamic);
    const MeanBlock<1> block(a, plan, dynamic + kWarps * kStageBytes);
    const SegmentReader segments = block.segments(plan, map);
    const int32_t group = block.first_group, stride = plan.class_stride;
    const int32_t first_channel = group / stride * 32 * stride + group % stride;
    const Value* image = static_cast<const Value*>(a.features) + block.b * a.stride_b;
    const int32_t shift = elements_past_16(image + first_channel * a.stride_c);
    const int32_t end = static_cast<int32_t>(ceil_div(int64_t{segments.end} + shift, PlaneStage<Value>::kPerChunk));
    uint4* rows = reinterpret_cast<uint4*>(dynamic + threadIdx.x / 32 * kStageBytes);
    PlaneStage<Value> stage(rows, image, a.stride_c, first_channel, stride, static_cast<int32_t>(a.C), plan.pixels,
                            shift, end);
    block.clear();
    RunningSums<1> running = block.running();
    sum_planes(stage, segments, running, block.counts, block.counting());
    block.store(a, plan, workspace);
}

template <typename Value, int kPerLane>
__global__ void __launch_bounds__(kThreads)
    segment_mean_pixels_kernel(const __grid_constant__ SegmentMeanArgs a, const __grid_constant__ MeanPlan plan,
                               SegmentMap map, MeanWorkspace workspace, bool in_chunks) {
    SIMFAST_DYNAMIC_SHARED(dynamic);
    using WarpRing = Ring<Value, kPerLane>;
    const MeanBlock<kPerLane> block(a, plan, dynamic + kWarps * WarpRing::kBytes);
    const SegmentReader segments = block.segments(plan, map);
    const int32_t first_channel = block.first_group * 32;
    const Value* image = static_cast<const Value*>(a.features) + block.b * a.stride_b;
    WarpRing ring(dynamic + threadIdx.x / 32 * WarpRing::kBytes, image + segments.begin * a.stride_p + first_channel,
                  a.stride_p, static_cast<int32_t>(a.C) - first_channel, segments.end - segments.begin, in_chunks);
    RunningSums<kPerLane> running = block.running();
    sum_pixels(ring, segments, running, block.counts, block.counting(), [&] { block.clear(); });
    block.store(a, plan, workspace);
}

struct DivideShared {
    float sums[kShares][32];
    int32_t counts[kShares];
};

// A thread per mean, everything it needs in flight at once; of many splits each of its block's warps takes a share.
__global__ void __launch_bounds__(kDivideThreads)
    segment_mean_divide_kernel(const __grid_constant__ SegmentMeanArgs a, const __grid_constant__ MeanPlan plan,
                               MeanWorkspace workspace, unsigned blocks_of_segment) {
    const int64_t S = a.num_segments, image_segment = blockIdx.x / blocks_of_segment;
    const int64_t b = image_segment / S, s = image_segment % S;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool shared_out = plan.shares > 1;
    const int32_t first = blockIdx.x % blocks_of_segment * (kDivideThreads / plan.shares);
    const int32_t c = first + (shared_out ? lane : static_cast<int>(threadIdx.x));
    const int32_t within = c / plan.class_stride;
    const int32_t group = within / 32 * plan.class_stride + c % plan.class_stride;
    const int64_t split_sums = plan.groups * S * 32;
    const float* sums = workspace.sums + b * plan.splits * split_sums + (group * S + s) * 32 + within % 32;
    const int32_t* counts = workspace.counts + b * plan.splits * S + s;
    int32_t count = 0;
    LongSum sum;
    if (c < a.C) {
#pragma unroll 4
        for (int32_t split = shared_out ? warp : 0; split < plan.splits; split += plan.shares) {
            count += counts[split * S];
            sum.add(sums[split * split_sums]);
        }
    }
    if (shared_out) {
        SIMFAST_SHARED(DivideShared, shares);
        shares.sums[warp][lane] = sum.total();
        if (lane == 0) shares.counts[warp] = count;
        __syncthreads();  // all shares stand
        if (warp > 0) return;
        sum = {};
        count = 0;
#pragma unroll
        for (int i = 0; i < kShares; ++i) {
            sum.add(shares.sums[i][lane]);
            count += shares.counts[i];
        }
    }
    if (c >= a.C) return;
    if (c == 0) a.counts[image_segment] = count;
    static_cast<float*>(a.means)[image_segment * a.C + c] = count > 0 ? sum.total() / static_cast<float>(count) : 0.0f;
}

const char* divide(const SegmentMeanArgs& a, const MeanPlan& plan, const MeanWorkspace& workspace,
                   cudaStream_t stream) {
    const int64_t blocks = ceil_div(a.C, kDivideThreads / plan.shares);
    if (a.B * a.num_segments * blocks > kMaxGrid) return "the batch is too large for one launch";
    SIMFAST_LAUNCH(segment_mean_divide_kernel, grid_of(a.B * a.num_segments * blocks), kDivideThreads, 0, stream, a,
                   plan, workspace, static_cast<unsigned>(blocks));
    return launch_error();
}

// Launches `kernel` and, after it, the division.
template <typename Kernel, typename... More>
const char* run(Kernel kernel, const SegmentMeanArgs& a, const MeanPlan& plan, cudaStream_t stream, More... more) {
    const MeanWorkspace workspace(a.workspace, a, plan);
    const int64_t blocks = a.B * ceil_div(plan.groups, plan.per_lane) * plan.splits * plan.windows;
    if (blocks > kMaxGrid) return "the batch is too large for one launch";
    const auto error = allow_all_shared(kernel, 0);
    if (error != cudaSuccess) return error_text(error);
    SIMFAST_LAUNCH(kernel, grid_of(blocks), kThreads, plan.shared_bytes, stream, a, plan,
                   SegmentMap(a.segments, a.H, a.W), workspace, more...);
    return divide(a, plan, workspace, stream);
}

template <typename Value>
const char* run_pixels(const SegmentMeanArgs& a, const MeanPlan& plan, cudaStream_t stream) {
    const auto on_16_bytes = [](int64_t elements) { return elements * sizeof(Value) % 16 == 0; };
    const bool in_chunks = reinterpret_cast<uintptr_t>(a.features) % 16 == 0 && on_16_bytes(a.C) &&
                           on_16_bytes(a.stride_p) && on_16_bytes(a.stride_b);
    if constexpr (sizeof(Value) == 2) {
        if (plan.per_lane == 2) return run(segment_mean_pixels_kernel<Value, 2>, a, plan, stream, in_chunks);
    }
    return run(segment_mean_pixels_kernel<Value, 1>, a, plan, stream, in_chunks);
}

}  // namespace

int64_t segment_mean_workspace_cuda(const SegmentMeanArgs& a) {
    const MeanPlan plan = plan_of(a);
    return MeanWorkspace::sums_of(a, plan) * int64_t{sizeof(float)} +
           a.B * plan.splits * a.num_segments * int64_t{sizeof(int32_t)};
}

const char* segment_mean_cuda(const SegmentMeanArgs& a, void* stream_pointer) {
    const MeanPlan plan = plan_of(a);
    return for_value_type(a.features_dtype, [&](auto example) {
        using Value = decltype(example);
        const auto stream = static_cast<cudaStream_t>(stream_pointer);
        return plan.staged ? run(segment_mean_planes_kernel<Value>, a, plan, stream)
                           : run_pixels<Value>(a, plan, stream);
    });
}

}  // namespace simfast
