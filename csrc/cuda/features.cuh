// Feature values of any dtype to fp32 and back, one by one or 16 bytes at a time; and how both passes of segment_mean
// read segments.
#pragma once

#include "device.cuh"

namespace simfast {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename Value>
__device__ __forceinline__ Value from_float(float v) {
    if constexpr (sizeof(Value) == 4) {
        return v;
    } else if constexpr (std::is_same_v<Value, __half>) {
        return __float2half_rn(v);
    } else {
        return __float2bfloat16_rn(v);
    }
}

// The bits of a value as a number, and back; both vanish in the machine code.
template <typename Value>
__device__ __forceinline__ uint32_t to_bits(Value v) {
    if constexpr (sizeof(Value) == 4) {
        uint32_t bits;
        memcpy(&bits, &v, 4);
        return bits;
    } else {
        uint16_t bits;
        memcpy(&bits, &v, 2);
        return bits;
    }
}
template <typename Value>
__device__ __forceinline__ Value from_bits(uint32_t word) {
    Value v;
    if constexpr (sizeof(Value) == 4) {
        memcpy(&v, &word, 4);
    } else {
        const uint16_t bits = static_cast<uint16_t>(word);
        memcpy(&v, &bits, 2);
    }
    return v;
}

// Calls run(Value{}) for an array's element type.
template <typename Run>
const char* for_value_type(Dtype dtype, const Run& run) {
    switch (dtype) {
        case Dtype::f32: return run(float{});
        case Dtype::f16: return run(__half{});
        case Dtype::bf16: return run(__nv_bfloat16{});
        default: return "values are not float32, float16 or bfloat16";
    }
}

constexpr int64_t value_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// The lower (0) or the upper (1) 16-bit value of a word; the whole word of 32-bit values.
template <typename Value>
__device__ __forceinline__ float word_value(uint32_t word, int half) {
    if constexpr (std::is_same_v<Value, __nv_bfloat16>) {
        return from_bits<float>(half ? word & 0xFFFF0000u : word << 16);
    } else {
        return to_float(from_bits<Value>(half ? word >> 16 : word));
    }
}

// Element j (a compile-time constant after unrolling) of 16 bytes.
template <typename Value>
__device__ __forceinline__ float chunk_value(const uint4& chunk, int j) {
    const int word = j * static_cast<int>(sizeof(Value)) / 4;
    const uint32_t bits = word == 0 ? chunk.x : word == 1 ? chunk.y : word == 2 ? chunk.z : chunk.w;
    return word_value<Value>(bits, sizeof(Value) == 2 ? j % 2 : 0);
}

// Elements [p, p + 16 bytes) of a row of `size` elements, aligned to 16 bytes; zeros where p is outside the row. Not
// even within an aligned chunk is anything outside the row read.
template <typename Value>
__device__ __forceinline__ uint4 load_chunk(const Value* row, int64_t p, int32_t size) {
    constexpr int kPerChunk = 16 / sizeof(Value);
    if (p >= 0 && p + kPerChunk <= size) return __ldcs(reinterpret_cast<const uint4*>(row + p));
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < kPerChunk; ++j) {
        if (p + j < 0 || p + j >= size) continue;
        words[j * sizeof(Value) / 4] |= to_bits(row[p + j]) << (sizeof(Value) == 2 && j % 2 ? 16 : 0);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// One store of 16 bytes. An assignment of a uint4 the compiler may take apart into four, four times the work of the
// second-level cache, and between planes it does.
__device__ __forceinline__ void store_16(void* to, const uint4& v) {
#if defined(__CUDACC__)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#else
    *static_cast<uint4*>(to) = v;
#endif
}

// Neighbouring channels of a pixel or of a segment, moved by one instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N) Channels {
    T at[N];
};

// Elements between the 16-byte boundary at or before `p` and `p`.
template <typename Value>
__device__ __forceinline__ int32_t elements_past_16(const Value* p) {
    return static_cast<int32_t>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(Value));
}

// Channels this far apart start at the same place within 16 bytes: 1, 2, 4 or 8.
inline int32_t alignment_classes(int64_t stride_c, Dtype dtype) {
    const int64_t past = (stride_c * value_bytes(dtype)) & 15;
    return past == 0 ? 1 : static_cast<int32_t>(16 / (past & -past));
}

// A segment as it was loaded: what it says is looked at only where it is used, so that nothing waits for the load
// before.
struct RawSegment {
    int32_t low, high;

    // The segment counted from `first`, or -1 unless it is one of `size`.
    __device__ __forceinline__ int32_t within(int32_t first, int32_t size) const {
        const uint32_t place = static_cast<uint32_t>(low) - static_cast<uint32_t>(first);
        return high == 0 && place < static_cast<uint32_t>(size) ? static_cast<int32_t>(place) : -1;
    }
};

// A segment map read by pixel number.
struct SegmentMap {
    LabelMap map;
    int32_t W;
    bool flat;  // rows follow one another: no division

    SegmentMap(const LabelMap& map, int64_t H, int64_t W)
        : map(map), W(static_cast<int32_t>(W)), flat(H == 1 || map.stride_h == W * map.stride_w) {}

    // The segments of pixels first, first + step, ..., all loads in flight together: the dtype is looked at once,
    // before them. Pixel i is not read and has none where inside(i) is false.
    template <int N, typename Inside>
    __device__ __forceinline__ void fetch(int64_t b, int64_t first, int32_t step, const Inside& inside,
                                          RawSegment (&raw)[N]) const {
        int64_t offsets[N];
        unsigned wanted = 0;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int32_t p = static_cast<int32_t>(first + i * step);
            if (inside(i)) wanted |= 1u << i;
            offsets[i] = b * map.stride_b + (flat ? p * map.stride_w : p / W * map.stride_h + p % W * map.stride_w);
        }
        switch (map.dtype) {
            case Dtype::u8: return fetch_as<uint8_t>(offsets, wanted, raw);
            case Dtype::i16: return fetch_as<int16_t>(offsets, wanted, raw);
            case Dtype::i32: return fetch_as<int32_t>(offsets, wanted, raw);
            default: return fetch_as<int64_t>(offsets, wanted, raw);
        }
    }

  private:
    template <typename T, int N>
    __device__ __forceinline__ void fetch_as(const int64_t (&offsets)[N], unsigned wanted, RawSegment (&raw)[N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            raw[i] = {-1, 0};
            if ((wanted >> i & 1) == 0) continue;
            const T segment = __ldg(static_cast<const T*>(map.data) + offsets[i]);
            raw[i].low = static_cast<int32_t>(segment);
            if constexpr (sizeof(T) == 8) raw[i].high = static_cast<int32_t>(segment >> 32);
        }
    }
};

}  // namespace simfast
