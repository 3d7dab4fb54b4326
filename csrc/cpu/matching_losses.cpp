// matching_losses and its gradient on the CPU: see kernels.h for the contract.
#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace simfast {
namespace {

// Regions of a thing class in an image, at least 1.
int64_t num_regions(const int64_t* rings, int64_t max_instances) {
    return std::max<int64_t>(1, std::count_if(rings, rings + max_instances, [](int64_t ring) { return ring >= 0; }));
}

template <typename Value>
void losses(const MatchingLossesArgs& a) {
    const int64_t num_slots = a.num_stuff + a.num_things * a.max_instances;
    const auto divisor = static_cast<Value>(a.divisor);
    Value stuff = 0, instances = 0;
    for (int64_t b = 0; b < a.B; ++b) {
        const auto term = [&](int64_t s) {
            const int64_t i = b * num_slots + s;
            return a.rows[i] < 0 ? Value{0} : static_cast<const Value*>(a.distances)[i] / divisor;
        };
        Value of_stuff = 0, of_things = 0;
        for (int64_t s = 0; s < a.num_stuff; ++s) of_stuff += term(s);
        for (int64_t t = 0; t < a.num_things; ++t) {
            const int64_t first = a.num_stuff + t * a.max_instances;
            Value sum = 0;
            for (int64_t i = 0; i < a.max_instances; ++i) sum += term(first + i);
            of_things += sum / static_cast<Value>(num_regions(a.rings + b * num_slots + first, a.max_instances));
        }
        stuff += of_stuff;
        instances += of_things;
    }
    *static_cast<Value*>(a.stuff) = stuff;
    *static_cast<Value*>(a.instances) = instances;
}

template <typename Value>
void gradient(const MatchingLossesBackwardArgs& a, int64_t begin, int64_t end) {
    const int64_t num_slots = a.num_stuff + a.num_things * a.max_instances;
    const auto divisor = static_cast<Value>(a.divisor);
    for (int64_t b = begin; b < end; ++b) {
        const int64_t image = b * num_slots;
        auto* out = static_cast<Value*>(a.grad_distances) + image;
        const auto fill = [&](int64_t first, int64_t count, Value value) {
            for (int64_t s = first; s < first + count; ++s) out[s] = a.rows[image + s] < 0 ? Value{0} : value;
        };
        fill(0, a.num_stuff, *static_cast<const Value*>(a.grad_stuff) / divisor);
        for (int64_t t = 0; t < a.num_things; ++t) {
            const int64_t first = a.num_stuff + t * a.max_instances;
            const auto regions = static_cast<Value>(num_regions(a.rings + image + first, a.max_instances));
            fill(first, a.max_instances, *static_cast<const Value*>(a.grad_instances) / regions / divisor);
        }
    }
}

}  // namespace

void matching_losses_cpu(const MatchingLossesArgs& a, int64_t begin, int64_t end) {
    if (begin >= end) return;
    if (a.dtype == Dtype::f64) return losses<double>(a);
    losses<float>(a);
}

void matching_losses_backward_cpu(const MatchingLossesBackwardArgs& a, int64_t begin, int64_t end) {
    if (a.dtype == Dtype::f64) return gradient<double>(a, begin, end);
    gradient<float>(a, begin, end);
}

}  // namespace simfast
