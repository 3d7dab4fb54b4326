// ring_write on the CPU: see kernels.h for the contract.
#include <algorithm>
#include <cstdint>

#include "cpu/floats.h"
#include "kernels.h"

namespace simfast {
namespace {

// double to float first, as torch converts a double to 16 bits.
template <typename To, typename From>
typename To::Stored rounded(From value) {
    return To::store(static_cast<typename To::Sum>(value));
}

template <typename From>
void copy_row(const RingWriteArgs& a, const From* vector, int64_t row) {
    with_dtype(a.storage_dtype, [&](auto to) {
        using To = decltype(to);
        auto* out = static_cast<typename To::Stored*>(a.storage) + row * a.D;
        std::transform(vector, vector + a.D, out, rounded<To, From>);
    });
}

}  // namespace

void ring_write_cpu(const RingWriteArgs& a, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
        const int64_t start = a.starts[k], size = a.sizes[k], before = a.written[k];
        if (start < 0 || size < 1 || size > a.T - start || before < 0 || before > INT64_MAX - a.N) continue;
        const int64_t total = std::count(a.classes, a.classes + a.N, k);
        for (int64_t n = 0, number = 0; n < a.N && number < total; ++n) {
            if (a.classes[n] != k) continue;
            if (number >= total - size) {
                const int64_t row = start + (before + number) % size;
                if (a.doubles) {
                    copy_row(a, a.doubles + n * a.vectors_stride, row);
                } else {
                    copy_row(a, a.vectors + n * a.vectors_stride, row);
                }
            }
            ++number;
        }
        a.written[k] = before + total;
    }
}

}  // namespace simfast
