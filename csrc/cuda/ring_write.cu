// ring_write on CUDA, in one launch: a block for each ring, which alone reads and changes the ring's counter. See
// kernels.h for the contract.
#include "features.cuh"

namespace simfast {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBatch = 10;  // vectors of a ring that a thread loads together: a thing class's regions in an image, say

struct RingShared {
    int32_t in_warp[kWarps];
    int32_t from[kThreads];  // of the tile's vectors that belong to the ring, in order: which one,
    int64_t to[kThreads];    // and the storage's row it goes to
};

// Four values of a row from column c on; where they are not aligned, or stand past the end, one by one.
template <bool kAligned>
__device__ __forceinline__ float4 load_four(const float* row, int64_t c, int64_t D) {
    if constexpr (kAligned) return *reinterpret_cast<const float4*>(row + c);
    return make_float4(row[c], c + 1 < D ? row[c + 1] : 0.f, c + 2 < D ? row[c + 2] : 0.f,
                       c + 3 < D ? row[c + 3] : 0.f);
}

// By an intrinsic: an assignment is split into four stores.
template <bool kAligned, typename Value>
__device__ __forceinline__ void store_four(Value* row, int64_t c, int64_t D, const float4& v) {
    const Value values[4] = {from_float<Value>(v.x), from_float<Value>(v.y), from_float<Value>(v.z),
                             from_float<Value>(v.w)};
    if constexpr (!kAligned) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (c + i < D) row[c + i] = values[i];
        }
    } else if constexpr (sizeof(Value) == 4) {
        __stcg(reinterpret_cast<float4*>(row + c), v);
    } else {
        __stcg(reinterpret_cast<uint2*>(row + c), make_uint2(to_bits(values[0]) | to_bits(values[1]) << 16,
                                                             to_bits(values[2]) | to_bits(values[3]) << 16));
    }
}

// The tile's vectors first .. last - 1 of the ring to their rows: a thread takes the same four columns of each.
template <typename Value, bool kAligned>
__device__ void copy_rows(const RingWriteArgs& a, const RingShared& shared, int64_t base, int first, int last) {
    for (int64_t c = 4 * threadIdx.x; c < a.D; c += 4 * kThreads) {
        for (int j = first; j < last; j += kBatch) {
            float4 values[kBatch];
#pragma unroll
            for (int u = 0; u < kBatch; ++u) {
                const int at = min(j + u, last - 1);  // no branch between the loads
                values[u] = load_four<kAligned>(a.vectors + (base + shared.from[at]) * a.vectors_stride, c, a.D);
            }
#pragma unroll
            for (int u = 0; u < kBatch; ++u) {
                if (j + u >= last) continue;
                store_four<kAligned>(static_cast<Value*>(a.storage) + shared.to[j + u] * a.D, c, a.D, values[u]);
            }
        }
    }
}

template <typename Value, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) ring_write_kernel(const __grid_constant__ RingWriteArgs a) {
    SIMFAST_SHARED(RingShared, shared);
    const int64_t k = blockIdx.x, start = a.starts[k], size = a.sizes[k];
    const int64_t before = a.written[k];
    if (start < 0 || size < 1 || size > a.T - start || before < 0 || before > INT64_MAX - a.N) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t total = 0;
    for (int64_t base = 0; base < a.N; base += kThreads) {
        const int64_t n = base + threadIdx.x;
        total += __syncthreads_count(n < a.N && a.classes[n] == k);
    }
    // The barrier that counted came after every thread's read of the counter.
    if (threadIdx.x == 0) a.written[k] = before + total;

    int64_t seen = 0;
    for (int64_t base = 0; base < a.N && seen < total; base += kThreads) {
        const int64_t n = base + threadIdx.x;
        const bool mine = n < a.N && a.classes[n] == k;
        const unsigned in_warp = __ballot_sync(kFullWarp, mine);
        if (lane == 0) shared.in_warp[warp] = __popc(in_warp);
        __syncthreads();  // all counts stand, and all have read the list before
        int place = __popc(in_warp & bits_below(lane)), count = 0;
        for (int w = 0; w < kWarps; ++w) {
            if (w < warp) place += shared.in_warp[w];
            count += shared.in_warp[w];
        }
        if (mine) {
            const int64_t number = seen + place;
            shared.from[place] = threadIdx.x;
            shared.to[place] = start + (before + number) % size;
        }
        __syncthreads();  // the list stands
        // The first ones may be overwritten by the last ones of this very call: they are left out.
        const int first = static_cast<int>(max(int64_t{0}, min(int64_t{count}, total - size - seen)));
        copy_rows<Value, kAligned>(a, shared, base, first, count);
        seen += count;
    }
}

bool aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

const char* ring_write_cuda(const RingWriteArgs& a, void* stream) {
    if (a.K > kMaxGrid || a.N > INT32_MAX) return "too many rings or vectors for one launch";
    return for_value_type(a.storage_dtype, [&](auto example) -> const char* {
        using Value = decltype(example);
        const bool fours = a.D % 4 == 0 && a.vectors_stride % 4 == 0 && aligned(a.vectors, 16) &&
                           aligned(a.storage, 4 * sizeof(Value));
        const auto kernel = fours ? ring_write_kernel<Value, true> : ring_write_kernel<Value, false>;
        SIMFAST_LAUNCH(kernel, grid_of(a.K), kThreads, 0, static_cast<cudaStream_t>(stream), a);
        return launch_error();
    });
}

}  // namespace simfast
