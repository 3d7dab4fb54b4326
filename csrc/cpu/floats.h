// The dtypes of features: how one value, or eight, is read as the type it is summed in, and how a sum is rounded back.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace simfast {

// Eight values side by side (a vector extension of GCC and Clang; any instruction set). Never passed by value: how such
// a type travels between functions depends on the instruction set.
inline constexpr int64_t kLanes = 8;
template <typename T>
using Lanes [[gnu::vector_size(kLanes * sizeof(T))]] = T;

// What a feature is stored as, and what it is summed in. load8 is load, eight at a time.
struct F32 {
    using Stored = float;
    using Sum = float;
    using Bits = int32_t;
    static Sum load(Stored x) { return x; }
    static Stored store(Sum x) { return x; }
    static void load8(const Stored* from, Lanes<Sum>& to) { std::memcpy(&to, from, sizeof(to)); }
};

struct F64 {
    using Stored = double;
    using Sum = double;
    using Bits = int64_t;
    static Sum load(Stored x) { return x; }
    static Stored store(Sum x) { return x; }
    static void load8(const Stored* from, Lanes<Sum>& to) { std::memcpy(&to, from, sizeof(to)); }
};

struct BF16 {
    using Stored = uint16_t;
    using Sum = float;
    using Bits = int32_t;
    static Sum load(Stored x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }
    static Stored store(Sum x) {
        const uint32_t bits = std::bit_cast<uint32_t>(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Stored>(bits >> 16 | 0x40u);  // NaN stays NaN
        return static_cast<Stored>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);  // nearest, ties to even
    }
    static void load8(const Stored* from, Lanes<Sum>& to) {
        Lanes<uint16_t> x;
        std::memcpy(&x, from, sizeof(x));
        to = reinterpret_cast<Lanes<Sum>>(__builtin_convertvector(x, Lanes<uint32_t>) << 16);
    }
};

struct F16 {
    using Stored = uint16_t;
    using Sum = float;
    using Bits = int32_t;
    // The bits shifted into place are the value times 2^-112, exactly, subnormals too; infinity and NaN need more.
    static Sum load(Stored x) {
        const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fffu) << 13;
        uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
        bits |= magnitude >= 0x0f800000u ? 0x7f800000u : 0;
        return std::bit_cast<float>(bits | static_cast<uint32_t>(x & 0x8000u) << 16);
    }
    static Stored store(Sum x) {
        const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
        const uint32_t sign = bits >> 16 & 0x8000u;
        if (magnitude > 0x7f800000u) return static_cast<Stored>(sign | 0x7e00u);
        if (magnitude >= 0x477ff000u) return static_cast<Stored>(sign | 0x7c00u);  // rounds to 65536 or more
        if (magnitude < 0x38800000u) {
            // Subnormal: adding 0.5 leaves the result, rounded to a multiple of 2^-24, in the lowest mantissa bits.
            const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
            return static_cast<Stored>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
        }
        return static_cast<Stored>(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
    }
    static void load8(const Stored* from, Lanes<Sum>& to) {
        Lanes<uint16_t> x;
        std::memcpy(&x, from, sizeof(x));
        const Lanes<uint32_t> wide = __builtin_convertvector(x, Lanes<uint32_t>), magnitude = (wide & 0x7fffu) << 13;
        Lanes<uint32_t> bits = reinterpret_cast<Lanes<uint32_t>>(reinterpret_cast<Lanes<Sum>>(magnitude) * 0x1p112f);
        bits |= reinterpret_cast<Lanes<uint32_t>>(magnitude >= 0x0f800000u) & 0x7f800000u;
        to = reinterpret_cast<Lanes<Sum>>(bits | (wide & 0x8000u) << 16);
    }
};

template <typename Call>
void with_dtype(Dtype dtype, const Call& call) {
    switch (dtype) {
        case Dtype::f16: return call(F16{});
        case Dtype::bf16: return call(BF16{});
        case Dtype::f64: return call(F64{});
        default: return call(F32{});
    }
}

}  // namespace simfast
