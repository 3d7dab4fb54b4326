// How one warp of segment_mean's forward pass adds up its pixels, out of planes and out of channels-last rows.
#pragma once

#include "device.cuh"
#include "features.cuh"

#if defined(__CUDACC__)
#include <cuda_pipeline_primitives.h>
#endif

namespace simfast {

// A sum of any number of terms, hardly worse than one of two: what each addition rounds away is added up beside it,
// exact where the term is smaller than the sum (Dekker's Fast2Sum), and no worse than another rounding of the term
// where not.
struct LongSum {
    float sum = 0.0f, lost = 0.0f;

    __device__ __forceinline__ void add(float term) {
        const float next = sum + term;
        lost += term - (next - sum);
        sum = next;
    }
    // What was lost beside an infinity is not a number.
    __device__ __forceinline__ float total() const {
        const float total = sum + lost;
        return total == total ? total : sum;
    }
};

constexpr int kPiece = 16;  // pixels that are added up plainly; a piece starts at every kPiece-th of a part

// kPerLane neighbouring channels of a lane: the sums of the run it is in, and its column of the warp's table.
template <int kPerLane>
struct RunningSums {
    using Sums = Channels<float, kPerLane>;

    Sums* column;          // [window], 32 apart
    int32_t segment = -1;  // -1: the run is skipped
    Sums before = {}, piece = {};
    LongSum run[kPerLane];

    __device__ __forceinline__ explicit RunningSums(Sums* column) : column(column) {}

    __device__ __forceinline__ void end_piece() {
#pragma unroll
        for (int k = 0; k < kPerLane; ++k) run[k].add(piece.at[k]);
        piece = {};
    }
    // The sums of a run join what its segment had when the run began: read then, so that nothing waits for it here.
    __device__ __forceinline__ void end_run() {
        if (segment < 0) return;
        end_piece();
        Sums total;
#pragma unroll
        for (int k = 0; k < kPerLane; ++k) total.at[k] = before.at[k] + run[k].total();
        column[segment * 32] = total;
    }
    __device__ __forceinline__ void begin_run(int32_t next) {
        end_run();
        segment = next;
        piece = {};
#pragma unroll
        for (int k = 0; k < kPerLane; ++k) run[k] = {};
        if (segment >= 0) before = column[segment * 32];
    }
    __device__ __forceinline__ void add(const Sums& values) {
#pragma unroll
        for (int k = 0; k < kPerLane; ++k) piece.at[k] += values.at[k];
    }
    // Adds N pixels. Bit j of `changed`: pixel j starts a run, whose segment is that of lane from + j. Pixel `cut`, if
    // it is one of them, starts a piece. All of it is the same in the whole warp but the values.
    template <int N>
    __device__ __forceinline__ void add(unsigned changed, int32_t lane_segment, int from, int cut,
                                        const Sums (&values)[N]) {
        static_assert(N <= kPiece);
        if ((changed & ((1u << N) - 1)) == 0) {
            if (static_cast<unsigned>(cut) >= N) {
#pragma unroll
                for (int j = 0; j < N; ++j) add(values[j]);
            } else {
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    if (j == cut) end_piece();
                    add(values[j]);
                }
            }
            return;
        }
        int32_t segments[N];  // all of them, so that their shuffles overlap
#pragma unroll
        for (int j = 0; j < N; ++j) segments[j] = __shfl_sync(kFullWarp, lane_segment, from + j);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (j == cut) end_piece();
            if (changed >> j & 1) begin_run(segments[j]);
            add(values[j]);
        }
    }
};

// The segments of a warp's part of the pixels, and of a window of the segments; -1 outside of either.
struct SegmentReader {
    SegmentMap map;
    int64_t b;
    int32_t begin, end;
    int32_t first_of_window, window;

    __device__ __forceinline__ int32_t of(const RawSegment& raw) const { return raw.within(first_of_window, window); }
};

// A run of equal values among the 32 pixels of a warp: is `lane` its first, and how many pixels has it?
struct Run {
    bool first;
    int length;
};
__device__ __forceinline__ Run run_at(int lane, unsigned same_left) {
    const unsigned later_starts = lane == 31 ? 0u : ~same_left >> (lane + 1);
    return {(same_left >> lane & 1) == 0, later_starts ? __ffs(later_starts) : 32 - lane};
}

// Takes 32 pixels' segments in; returns where runs start. `last` is the segment of the pixel before.
__device__ __forceinline__ unsigned run_starts(int32_t segment, int32_t& last, int32_t* counts, bool counting) {
    const int lane = threadIdx.x % 32;
    int32_t before = __shfl_up_sync(kFullWarp, segment, 1);
    if (lane == 0) before = last;
    last = __shfl_sync(kFullWarp, segment, 31);
    const unsigned changed = __ballot_sync(kFullWarp, segment != before);
    if (counting) {
        const Run run = run_at(lane, ~changed & ~1u);
        if (run.first && segment >= 0) atomicAdd(counts + segment, run.length);
    }
    return changed;
}

// ---------------------------------------------------------------------------------------------------------------------
// Planes: 16-byte chunks of one channel's pixels. A plane of odd size starts anywhere in a chunk, but planes
// class_stride apart start at the same place, which is why a group takes those: their chunks then hold the same pixels.
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kRowBytes = 128, kRowChunks = kRowBytes / 16;  // of a channel's pixels that a warp stages at a time
constexpr int kStageBytes = 32 * kRowBytes;                  // for each warp

template <typename Value>
struct PlaneStage {
    static constexpr int kPerChunk = 16 / sizeof(Value);

    uint4* rows;                 // [32][kRowChunks], chunk k of row r at k ^ (r % 8)
    const Value* plane;          // the first of this lane's eight planes
    int64_t step;                // between them
    int32_t planes;              // of the eight, those that exist
    int32_t pixels, shift, end;  // end: chunk after the part's last
    uint4 held[kRowChunks];

    __device__ __forceinline__ PlaneStage(uint4* rows, const Value* image, int64_t stride_c, int32_t first_channel,
                                          int32_t class_stride, int32_t channels, int32_t pixels, int32_t shift,
                                          int32_t end)
        : rows(rows), step(4 * class_stride * stride_c), pixels(pixels), shift(shift), end(end) {
        const int32_t c = first_channel + threadIdx.x % 32 / kRowChunks * class_stride;
        plane = image + c * stride_c;
        planes = (channels - c + 4 * class_stride - 1) / (4 * class_stride);
    }
    // Chunk k of a plane is pixels [k * kPerChunk - shift, ...): 16 aligned bytes. Eight lanes take the 128 bytes of a
    // row, so that an instruction reads four whole lines; eight instructions are in flight before the first is waited
    // for.
    __device__ __forceinline__ void load(int32_t chunk) {
        chunk += threadIdx.x % kRowChunks;
        const int64_t p = int64_t{chunk} * kPerChunk - shift;
        if (chunk < end && planes >= kRowChunks && p >= 0 && p + kPerChunk <= pixels) {
            const Value* from = plane + p;
#pragma unroll
            for (int i = 0; i < kRowChunks; ++i, from += step) held[i] = __ldcs(reinterpret_cast<const uint4*>(from));
            return;
        }
        const int32_t wanted = chunk < end ? planes : 0;
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
            held[i] = i < wanted ? load_chunk(plane + i * step, p, pixels) : make_uint4(0, 0, 0, 0);
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

template <typename Value>
__device__ __forceinline__ void sum_planes(PlaneStage<Value>& stage, const SegmentReader& segments,
                                           RunningSums<1>& running, int32_t* counts, bool counting) {
    constexpr int kPerChunk = PlaneStage<Value>::kPerChunk, kHalves = kRowChunks * kPerChunk / 32;
    constexpr int kChunksOfHalf = 32 / kPerChunk;
    RawSegment next[kHalves];
    int32_t last = -1;
    const auto load = [&](int32_t chunk) {
        stage.load(chunk);
        const int64_t first = int64_t{chunk} * kPerChunk - stage.shift + threadIdx.x % 32;
        const auto inside = [&](int h) { return first + h * 32 >= segments.begin && first + h * 32 < segments.end; };
        segments.map.fetch(segments.b, first, 32, inside, next);
    };
    int32_t chunk = static_cast<int32_t>((int64_t{segments.begin} + stage.shift) / kPerChunk);
    if (chunk < stage.end) load(chunk);
    for (; chunk < stage.end; chunk += kRowChunks) {
        int32_t segment[kHalves];
#pragma unroll
        for (int h = 0; h < kHalves; ++h) segment[h] = segments.of(next[h]);
        __syncwarp();  // all lanes have read the rows before
        stage.store();
        __syncwarp();
        if (chunk + kRowChunks < stage.end) load(chunk + kRowChunks);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            const unsigned changed = run_starts(segment[h], last, counts, counting);
#pragma unroll 1
            for (int k = 0; k < kChunksOfHalf; ++k) {
                const uint4 bits = stage.chunk(h * kChunksOfHalf + k);
                Channels<float, 1> values[kPerChunk];
#pragma unroll
                for (int j = 0; j < kPerChunk; ++j) values[j].at[0] = chunk_value<Value>(bits, j);
                // Parts begin at multiples of kPiece, whatever the chunks do. Unsigned: past the last of 2^31 pixels.
                const unsigned first = static_cast<unsigned>(chunk + h * kChunksOfHalf + k) * kPerChunk;
                const int cut = static_cast<int>((stage.shift - first) & (kPiece - 1));
                running.add(changed >> (k * kPerChunk), segment[h], k * kPerChunk, cut, values);
            }
        }
    }
    running.end_run();
}

// ---------------------------------------------------------------------------------------------------------------------
// Pixels: a lane's channels lie beside its neighbours'. They pass through a ring of slots in shared memory, 32 pixels
// each, all but one of which are under way at any time: the copies hold no register, and no instruction waits for one
// before its turn comes.
// ---------------------------------------------------------------------------------------------------------------------
template <typename Value, int kPerLane, int kSlots>
struct PixelRing {
    using Pixel = Channels<Value, kPerLane>;
    static constexpr int kPixelBytes = 32 * sizeof(Pixel), kSlotBytes = 32 * kPixelBytes, kBytes = kSlots * kSlotBytes;
    static constexpr int kTogether = 8;  // pixels in a lane's registers
    static constexpr int kCopies = kSlotBytes / (32 * 16), kPixelsOfCopy = 32 / kCopies;

    unsigned char* slots;
    const Value* from;  // what this lane copies next
    int64_t stride_p;
    int32_t channels;  // of this lane's first one on, those that exist; whole chunks where they are copied as such
    int32_t left;      // pixels of the part that are not on their way
    bool in_chunks;    // every pixel is whole chunks of 16 aligned bytes

    __device__ __forceinline__ PixelRing(unsigned char* slots, const Value* first_pixel, int64_t stride_p,
                                         int32_t channels, int32_t pixels, bool in_chunks)
        : slots(slots), stride_p(stride_p), left(pixels), in_chunks(in_chunks) {
        const int lane = threadIdx.x % 32;
        const int c = in_chunks ? lane * 16 % kPixelBytes / static_cast<int>(sizeof(Value)) : lane * kPerLane;
        from = first_pixel + (in_chunks ? lane * 16 / kPixelBytes * stride_p : 0) + c;
        this->channels = channels - c;
    }
    // Sets the next 32 pixels on their way; the places of those past the end stay as they are.
    __device__ __forceinline__ void fill(int slot) {
        const int lane = threadIdx.x % 32;
        unsigned char* to = slots + slot * kSlotBytes;
        if (!in_chunks) {
            fill_by_channel(reinterpret_cast<Pixel*>(to) + lane);
        } else if (channels > 0 && left >= 32) {
            copy(to + lane * 16, 32);
        } else if (channels > 0) {
            copy(to + lane * 16, left - lane * 16 / kPixelBytes);
        }
        from += 32 * stride_p;
        left -= 32;
        __pipeline_commit();
    }
    __device__ __forceinline__ void copy(unsigned char* to, int pixels) const {
        const Value* chunk = from;
#pragma unroll
        for (int i = 0; i < kCopies; ++i, chunk += kPixelsOfCopy * stride_p) {
            if (i * kPixelsOfCopy < pixels) __pipeline_memcpy_async(to + i * 512, chunk, 16);
        }
    }
    // Any address and any number of channels: each lane takes its own, kTogether pixels in flight.
    __device__ __forceinline__ void fill_by_channel(Pixel* to) const {
        const Value* pixel = from;
#pragma unroll 1
        for (int done = 0; done < 32; done += kTogether, to += kTogether * 32) {
            Pixel pixels[kTogether];
#pragma unroll
            for (int j = 0; j < kTogether; ++j, pixel += stride_p) {
#pragma unroll
                for (int k = 0; k < kPerLane; ++k) {
                    pixels[j].at[k] = k < channels && done + j < left ? __ldcs(pixel + k) : from_bits<Value>(0);
                }
            }
#pragma unroll
            for (int j = 0; j < kTogether; ++j) to[j * 32] = pixels[j];
        }
    }
    // A lane's channels of kTogether pixels of a slot, from its pixel `first` on, as they lie there.
    __device__ __forceinline__ void read(int slot, int first, uint32_t (&words)[kTogether]) const {
        const auto* pixels = reinterpret_cast<const Pixel*>(slots + slot * kSlotBytes) + first * 32 + threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
            if constexpr (sizeof(Pixel) == 4) {
                words[j] = *reinterpret_cast<const uint32_t*>(pixels + j * 32);
            } else {
                words[j] = to_bits(pixels[j * 32].at[0]);
            }
        }
    }
};

// Clears the block's tables with clear(), meanwhile the first pixels are under way, and adds up.
template <typename Value, int kPerLane, int kSlots, typename Clear>
__device__ __forceinline__ void sum_pixels(PixelRing<Value, kPerLane, kSlots>& ring, const SegmentReader& segments,
                                           RunningSums<kPerLane>& running, int32_t* counts, bool counting,
                                           const Clear& clear) {
    const int lane = threadIdx.x % 32;
    RawSegment raw[1];
    int64_t p = int64_t{segments.begin} + lane;
    int left = ring.left - lane;  // pixels from this lane's on, the next one of which is to be looked at
    const auto fetch_next = [&] {
        segments.map.fetch(segments.b, p, 0, [&](int) { return left > 0; }, raw);
        p += 32;
        left -= 32;
    };
    int32_t last = -1;
    int slot = 0, before = kSlots - 1, turns = (ring.left + 31) / 32;
    fetch_next();
    for (int i = 0; i < kSlots - 1; ++i) ring.fill(i);
    clear();
    for (; turns > 0; --turns) {
        const int32_t segment = segments.of(raw[0]);
        __pipeline_wait_prior(kSlots - 2);
        __syncwarp();  // every lane's copies into this slot are there, and every lane has read the slot before
        fetch_next();
        ring.fill(before);
        const unsigned changed = run_starts(segment, last, counts, counting);
        uint32_t words[ring.kTogether];
        ring.read(slot, 0, words);
#pragma unroll 2
        for (int from = 0; from < 32; from += ring.kTogether) {
            uint32_t next[ring.kTogether];  // read before the sums may store; after the last ones the first, unused
            ring.read(slot, (from + ring.kTogether) % 32, next);
            Channels<float, kPerLane> values[ring.kTogether];
#pragma unroll
            for (int j = 0; j < ring.kTogether; ++j) {
#pragma unroll
                for (int k = 0; k < kPerLane; ++k) values[j].at[k] = word_value<Value>(words[j], k);
                words[j] = next[j];
            }
            running.add(changed >> from, segment, from, from % kPiece, values);
        }
        before = slot;
        slot = slot + 1 == kSlots ? 0 : slot + 1;
    }
    running.end_run();
}

}  // namespace simfast
