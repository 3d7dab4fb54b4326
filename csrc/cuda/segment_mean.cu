// segment_mean on CUDA: see kernels.h for the contract; the backward pass is in segment_mean_backward.cu.
//
// Two launches. `sum` reads the map once. A lane is a channel, and a warp walks along pixels: whether the segment
// changes is then the same question for all 32 lanes, a run of pixels adds up in a register, and only at its end does
// the sum move to the warp's own table [segment][lane] in shared memory, without a bank conflict or an atomic. `divide`
// adds the partial sums of the pixel splits in order.
//
// The order of additions: pixels of a run from left to right, runs of a part in raster order, the four parts of a
// split, the splits. Parts depend on sizes alone, so the bits do too: not on the batch, the layout, the address or the
// device.
#include <algorithm>

#include "device.cuh"
#include "features.cuh"

namespace simfast {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kDivideThreads = 256;
constexpr int kRowBytes = 128, kRowChunks = kRowBytes / 16;  // of a channel's pixels that a warp stages at a time
constexpr int kStageBytes = 32 * kRowBytes;                  // for each warp
constexpr int64_t kAimedBlocks = 256;                        // about two for each multiprocessor of a large GPU
constexpr int64_t kLeastPartPixels = 64;

// How the work is cut. What decides the order of additions comes from C, H * W and S alone.
struct MeanPlan {
    int32_t pixels, part_pixels, splits;  // a split is kWarps parts
    int32_t class_stride, groups;         // a group is 32 channels class_stride apart
    int32_t window, windows;              // segments whose sums fit in shared memory at a time: nearly always all
    bool staged;
    int64_t shared_bytes;
};

MeanPlan plan_of(const SegmentMeanArgs& a) {
    MeanPlan plan{};
    const int64_t pixels = a.H * a.W, S = a.num_segments;
    // Enough splits to fill the device, but no more partial sums than there are features to read.
    const int64_t most = std::max<int64_t>(1, std::min(pixels / S, pixels / (kWarps * kLeastPartPixels)));
    const int64_t wanted = std::clamp<int64_t>(ceil_div(kAimedBlocks, ceil_div(a.C, 32)), 1, most);
    plan.pixels = static_cast<int32_t>(pixels);
    plan.part_pixels = static_cast<int32_t>(ceil_div(ceil_div(pixels, wanted * kWarps), 32) * 32);
    plan.splits = static_cast<int32_t>(ceil_div(pixels, int64_t{plan.part_pixels} * kWarps));
    plan.staged = a.layout == Layout::planes;
    plan.class_stride = plan.staged ? alignment_classes(a.stride_c, a.features_dtype) : 1;
    plan.groups = static_cast<int32_t>(ceil_div(a.C, 32 * plan.class_stride) * plan.class_stride);
    const int64_t fixed = plan.staged ? kWarps * kStageBytes : 0, each = kThreads * sizeof(float) + sizeof(int32_t);
    const int64_t room = std::max<int64_t>(1, (max_shared_bytes() - fixed - 64) / each);
    plan.windows = static_cast<int32_t>(ceil_div(S, room));
    plan.window = static_cast<int32_t>(ceil_div(S, plan.windows));
    plan.shared_bytes = fixed + plan.window * each;
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

// One lane's channel: the sum of the run it is in, and its column of the warp's table.
struct RunningSum {
    float* table;
    int32_t segment;  // -1: the run is skipped
    float sum;

    __device__ __forceinline__ void flush() {
        if (segment >= 0) table[segment * 32] += sum;
        sum = 0.0f;
    }
    // Adds N pixels, the values of which value(j) gives. Bit j of `changed`: pixel j starts a run, whose segment is
    // that of lane from + j. All of it is the same in the whole warp but the values.
    template <int N, typename Value>
    __device__ __forceinline__ void add(unsigned changed, int32_t lane_segment, int from, const Value& value) {
        if ((changed & ((1u << N) - 1)) == 0) {
#pragma unroll
            for (int j = 0; j < N; ++j) sum += value(j);
            return;
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (changed >> j & 1) {
                flush();
                segment = __shfl_sync(kFullWarp, lane_segment, from + j);
            }
            sum += value(j);
        }
    }
};

// The segments of 32 pixels, one a lane.
struct SegmentReader {
    SegmentMap map;
    int64_t b;
    int32_t begin, end;  // pixels of this warp's part
    int32_t first_of_window, window;

    // -1 outside the part and outside the window.
    __device__ __forceinline__ int32_t load(int64_t p) const {
        if (p < begin || p >= end) return -1;
        const int64_t segment = map.at(b, static_cast<int32_t>(p)) - first_of_window;
        return segment >= 0 && segment < window ? static_cast<int32_t>(segment) : -1;
    }
};

// Takes 32 pixels' segments in; returns where runs start. `last` is the segment of the pixel before.
__device__ __forceinline__ unsigned run_starts(int32_t segment, int32_t& last, int32_t* counts) {
    const int lane = threadIdx.x % 32;
    int32_t before = __shfl_up_sync(kFullWarp, segment, 1);
    if (lane == 0) before = last;
    last = __shfl_sync(kFullWarp, segment, 31);
    const unsigned changed = __ballot_sync(kFullWarp, segment != before);
    if (counts != nullptr) {
        const Run run = run_at(lane, ~changed & ~1u);
        if (run.first && segment >= 0) atomicAdd(counts + segment, run.length);
    }
    return changed;
}

template <typename Value>
struct PlaneStage {
    static constexpr int kPerChunk = 16 / sizeof(Value);

    const Value* image;
    uint4* rows;  // [32][kRowChunks], chunk k of row r at k ^ (r % 8)
    int64_t stride_c;
    int32_t first_channel, class_stride, channels, pixels, shift, end;  // end: chunk after the part's last
    uint4 held[kRowChunks];

    // Chunk k of a plane is pixels [k * kPerChunk - shift, ...): 16 aligned bytes. Eight lanes take the 128 bytes of a
    // row, so that an instruction reads four whole lines; eight instructions are in flight before the first is waited
    // for.
    __device__ __forceinline__ void load(int32_t chunk) {
        const int lane = threadIdx.x % 32;
        chunk += lane % kRowChunks;
        const int64_t p = int64_t{chunk} * kPerChunk - shift;
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
            const int32_t c = first_channel + (i * 4 + lane / kRowChunks) * class_stride;
            held[i] = make_uint4(0, 0, 0, 0);
            if (c < channels && chunk < end) held[i] = load_chunk(image + c * stride_c, p, pixels);
        }
    }
    // Both directions are free of bank conflicts: a row is all 32 banks once, and 8 lanes touch 8 different chunk
    // places, of one row when storing, of 8 rows with 8 different values of r % 8 when reading.
    __device__ __forceinline__ void store() const {
        const int lane = threadIdx.x % 32, chunk = lane % kRowChunks;
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
            const int row = i * 4 + lane / kRowChunks;
            rows[row * kRowChunks + (chunk ^ row % 8)] = held[i];
        }
    }
    __device__ __forceinline__ uint4 chunk(int k) const {
        const int row = threadIdx.x % 32;
        return rows[row * kRowChunks + (k ^ row % 8)];
    }
};

// Planes: 16-byte chunks of one channel's pixels. A plane of odd size starts anywhere in a chunk, but planes
// class_stride apart start at the same place, which is why a group takes those: their chunks then hold the same pixels.
template <typename Value>
__device__ __forceinline__ void sum_planes(const SegmentMeanArgs& a, const MeanPlan& plan,
                                           const SegmentReader& segments, int32_t group, uint4* rows,
                                           RunningSum& running, int32_t* counts) {
    constexpr int kPerChunk = PlaneStage<Value>::kPerChunk, kHalves = kRowChunks * kPerChunk / 32;
    const int lane = threadIdx.x % 32;
    const int32_t first_channel = group / plan.class_stride * 32 * plan.class_stride + group % plan.class_stride;
    const Value* image = static_cast<const Value*>(a.features) + segments.b * a.stride_b;
    const int32_t shift = elements_past_16(image + first_channel * a.stride_c);
    const int32_t end = static_cast<int32_t>(ceil_div(int64_t{segments.end} + shift, kPerChunk));
    PlaneStage<Value> stage{
        image, rows, a.stride_c, first_channel, plan.class_stride, static_cast<int32_t>(a.C), plan.pixels,
        shift, end,  {}};
    int32_t next[kHalves], last = -1;
    const auto load = [&](int32_t chunk) {
        stage.load(chunk);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) next[h] = segments.load(int64_t{chunk} * kPerChunk - shift + h * 32 + lane);
    };
    int32_t chunk = static_cast<int32_t>((int64_t{segments.begin} + shift) / kPerChunk);
    if (chunk < end) load(chunk);
    for (; chunk < end; chunk += kRowChunks) {
        int32_t segment[kHalves];
#pragma unroll
        for (int h = 0; h < kHalves; ++h) segment[h] = next[h];
        __syncwarp();  // all lanes have read the rows before
        stage.store();
        __syncwarp();
        if (chunk + kRowChunks < end) load(chunk + kRowChunks);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            const unsigned changed = run_starts(segment[h], last, counts);
#pragma unroll
            for (int k = 0; k < 32 / kPerChunk; ++k) {
                const uint4 bits = stage.chunk(h * (32 / kPerChunk) + k);
                running.add<kPerChunk>(changed >> (k * kPerChunk), segment[h], k * kPerChunk,
                                       [&](int j) { return chunk_value<Value>(bits, j); });
            }
        }
    }
}

// Pixels: a lane's channel lies beside its neighbours', so that 32 lanes read consecutive elements of any alignment.
// The next 32 pixels are in flight while these are added.
template <typename Value>
__device__ __forceinline__ void sum_pixels(const SegmentMeanArgs& a, const SegmentReader& segments, int32_t group,
                                           RunningSum& running, int32_t* counts) {
    const int lane = threadIdx.x % 32;
    const int64_t c = int64_t{group} * 32 + lane;
    const Value* image = static_cast<const Value*>(a.features) + segments.b * a.stride_b + c;
    Value held[32], next[32];
    int32_t next_segment, last = -1;
    const auto load = [&](int32_t p) {
        next_segment = segments.load(p + lane);
#pragma unroll
        for (int j = 0; j < 32; ++j) {
            if (c < a.C && p + j < segments.end) next[j] = __ldcs(image + (int64_t{p} + j) * a.stride_p);
        }
    };
    if (segments.begin < segments.end) load(segments.begin);
    for (int32_t p = segments.begin; p < segments.end; p += 32) {
        const int32_t segment = next_segment;
#pragma unroll
        for (int j = 0; j < 32; ++j) held[j] = next[j];
        if (p + 32 < segments.end) load(p + 32);
        const unsigned changed = run_starts(segment, last, counts);
#pragma unroll
        for (int j = 0; j < 32; j += 8) {
            running.add<8>(changed >> j, segment, j, [&](int i) { return to_float(held[j + i]); });
        }
    }
}

template <typename Value, bool kStaged>
__global__ void __launch_bounds__(kThreads, 4)
    segment_mean_sum_kernel(const __grid_constant__ SegmentMeanArgs a, const __grid_constant__ MeanPlan plan,
                            SegmentMap map, MeanWorkspace workspace) {
    SIMFAST_DYNAMIC_SHARED(dynamic);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint4* stage = reinterpret_cast<uint4*>(dynamic);
    float* tables = reinterpret_cast<float*>(dynamic + (kStaged ? kWarps * kStageBytes : 0));  // [kWarps][window][32]
    int32_t* counts = reinterpret_cast<int32_t*>(tables + kThreads * plan.window);
    // Blocks that read the same pixels stand side by side.
    unsigned place = blockIdx.x;
    const int32_t group = place % plan.groups, split = (place /= plan.groups) % plan.splits;
    const int32_t window_index = (place /= plan.splits) % plan.windows;
    const int64_t b = place / plan.windows;
    const int32_t first_segment = window_index * plan.window;
    const int32_t window = min(plan.window, static_cast<int32_t>(a.num_segments) - first_segment);

    for (int i = threadIdx.x; i < kWarps * plan.window * 32; i += kThreads) tables[i] = 0.0f;
    for (int i = threadIdx.x; i < window; i += kThreads) counts[i] = 0;
    __syncthreads();
    const int64_t begin = (int64_t{split} * kWarps + warp) * plan.part_pixels;
    const SegmentReader segments{map,
                                 b,
                                 static_cast<int32_t>(min(begin, int64_t{plan.pixels})),
                                 static_cast<int32_t>(min(begin + plan.part_pixels, int64_t{plan.pixels})),
                                 first_segment,
                                 window};
    RunningSum running{tables + (warp * plan.window) * 32 + lane, -1, 0.0f};
    int32_t* counted = group == 0 ? counts : nullptr;  // once is enough
    if constexpr (kStaged) {
        sum_planes<Value>(a, plan, segments, group, stage + warp * (kStageBytes / 16), running, counted);
    } else {
        sum_pixels<Value>(a, segments, group, running, counted);
    }
    running.flush();
    __syncthreads();

    const int64_t block = b * plan.splits + split;
    float* sums = workspace.sums + ((block * plan.groups + group) * a.num_segments + first_segment) * 32;
    for (int i = threadIdx.x; i < window * 32; i += kThreads) {
        float sum = tables[i];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) sum += tables[w * plan.window * 32 + i];
        sums[i] = sum;
    }
    if (group != 0) return;
    for (int i = threadIdx.x; i < window; i += kThreads) {
        workspace.counts[block * a.num_segments + first_segment + i] = counts[i];
    }
}

// A block per image and segment.
__global__ void __launch_bounds__(kDivideThreads)
    segment_mean_divide_kernel(const __grid_constant__ SegmentMeanArgs a, const __grid_constant__ MeanPlan plan,
                               MeanWorkspace workspace) {
    const int64_t S = a.num_segments, b = blockIdx.x / S, s = blockIdx.x % S;
    int32_t count = 0;
    for (int32_t split = 0; split < plan.splits; ++split) count += workspace.counts[(b * plan.splits + split) * S + s];
    if (threadIdx.x == 0) a.counts[b * S + s] = count;
    float* means = static_cast<float*>(a.means) + (b * S + s) * a.C;
    for (int64_t c = threadIdx.x; c < a.C; c += kDivideThreads) {
        float sum = 0.0f;
        if (count > 0) {
            const int32_t index = static_cast<int32_t>(c), within = index / plan.class_stride;
            const int32_t group = within / 32 * plan.class_stride + index % plan.class_stride;
            for (int32_t split = 0; split < plan.splits; ++split) {
                sum += workspace.sums[(((b * plan.splits + split) * plan.groups + group) * S + s) * 32 + within % 32];
            }
            sum /= static_cast<float>(count);
        }
        means[c] = sum;
    }
}

template <typename Value, bool kStaged>
const char* run(const SegmentMeanArgs& a, const MeanPlan& plan, cudaStream_t stream) {
    const MeanWorkspace workspace(a.workspace, a, plan);
    const auto kernel = segment_mean_sum_kernel<Value, kStaged>;
    const int64_t blocks = a.B * plan.groups * plan.splits * plan.windows;
    if (blocks > kMaxGrid || a.B * a.num_segments > kMaxGrid)
        return "segment_mean: the batch is too large for one launch";
    const auto error = allow_all_shared(kernel, 0);
    if (error != cudaSuccess) return error_text(error);
    SIMFAST_LAUNCH(kernel, grid_of(blocks), kThreads, plan.shared_bytes, stream, a, plan,
                   SegmentMap(a.segments, a.H, a.W), workspace);
    SIMFAST_LAUNCH(segment_mean_divide_kernel, grid_of(a.B * a.num_segments), kDivideThreads, 0, stream, a, plan,
                   workspace);
    return launch_error();
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
        return plan.staged ? run<Value, true>(a, plan, stream) : run<Value, false>(a, plan, stream);
    });
}

}  // namespace simfast
