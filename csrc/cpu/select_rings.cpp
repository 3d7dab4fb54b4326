// select_rings on the CPU: see kernels.h for the contract.
#include <cstdint>

#include "cpu/floats.h"
#include "kernels.h"

namespace simfast {
namespace {

int64_t arg_max(const SelectRingsArgs& a, int64_t n) {
    int64_t best = 0;
    with_dtype(a.logits_dtype, [&](auto dtype) {
        using Value = decltype(dtype);
        const auto* logits = static_cast<const typename Value::Stored*>(a.logits) + n * a.stride_n;
        for (int64_t i = 1; i < a.L; ++i) {
            const auto value = Value::load(logits[i * a.stride_l]), before = Value::load(logits[best * a.stride_l]);
            // The first NaN beats every number and stays.
            if (before == before && !(value <= before)) best = i;
        }
    });
    return best;
}

}  // namespace

void select_rings_cpu(const SelectRingsArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / a.S, s = i % a.S;
        const bool gated = a.logits && s < a.G;
        const bool counts = a.areas[i] > 0 && (!gated || arg_max(a, b * a.G + s) == a.slot_classes[s]);
        a.rings[i] = counts ? a.slot_rings[s] : -1;
    }
}

}  // namespace simfast
