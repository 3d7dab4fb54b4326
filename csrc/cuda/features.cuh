// How both passes of segment_mean read segments, and take 16 bytes of feature values apart and together.
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

// Calls run(Value{}) for the features' element type.
template <typename Run>
const char* for_value_type(Dtype dtype, const Run& run) {
    switch (dtype) {
        case Dtype::f32: return run(float{});
        case Dtype::f16: return run(__half{});
        case Dtype::bf16: return run(__nv_bfloat16{});
        default: return "features are not float32, float16 or bfloat16";
    }
}

constexpr int64_t value_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Element j (a compile-time constant after unrolling) of 16 bytes.
template <typename Value>
__device__ __forceinline__ float chunk_value(const uint4& chunk, int j) {
    const int word = j * static_cast<int>(sizeof(Value)) / 4;
    const uint32_t bits = word == 0 ? chunk.x : word == 1 ? chunk.y : word == 2 ? chunk.z : chunk.w;
    return to_float(from_bits<Value>(sizeof(Value) == 2 && j % 2 ? bits >> 16 : bits));
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

// A segment map read by pixel number. The dtype is looked at for every load, which is the same for all threads and
// cheap beside the features; four more copies of every kernel are not.
struct SegmentMap {
    LabelMap map;
    int32_t W;
    bool flat;  // rows follow one another: no division

    SegmentMap(const LabelMap& map, int64_t H, int64_t W)
        : map(map), W(static_cast<int32_t>(W)), flat(H == 1 || map.stride_h == W * map.stride_w) {}
    __device__ __forceinline__ int64_t at(int64_t b, int32_t p) const {
        const int64_t within = flat ? p * map.stride_w : p / W * map.stride_h + p % W * map.stride_w;
        const int64_t offset = b * map.stride_b + within;
        switch (map.dtype) {
            case Dtype::u8: return __ldg(static_cast<const uint8_t*>(map.data) + offset);
            case Dtype::i16: return __ldg(static_cast<const int16_t*>(map.data) + offset);
            case Dtype::i32: return __ldg(static_cast<const int32_t*>(map.data) + offset);
            default: return __ldg(static_cast<const int64_t*>(map.data) + offset);
        }
    }
};

}  // namespace simfast
