// Labels to class numbers for find_regions: a label's position in args.classes, kNoClass if it is not there.
#pragma once

#include "device.cuh"

namespace simfast {

constexpr uint8_t kNoClass = 255;

struct ClassTable {
    uint8_t of_byte[256];
};

__device__ __forceinline__ uint8_t search_class(const RegionsArgs& a, int64_t label) {
    for (int i = 0; i < a.num_stuff + a.num_things; ++i) {
        if (a.classes[i] == label) return static_cast<uint8_t>(i);
    }
    return kNoClass;
}

// A barrier must follow before the table is read.
__device__ __forceinline__ void fill_table(ClassTable& table, const RegionsArgs& a) {
    for (int label = threadIdx.x; label < 256; label += blockDim.x) table.of_byte[label] = search_class(a, label);
}

// Class ids are small numbers nearly always; others are searched for.
__device__ __forceinline__ uint8_t class_of(const ClassTable& table, const RegionsArgs& a, int64_t label) {
    return label >= 0 && label < 256 ? table.of_byte[label] : search_class(a, label);
}

__device__ __forceinline__ bool is_thing(const RegionsArgs& a, uint8_t class_number) {
    return class_number >= a.num_stuff && class_number != kNoClass;
}

__device__ __forceinline__ int64_t slot_of(const RegionsArgs& a, int thing, int64_t rank) {
    return a.num_stuff + thing * int64_t{a.max_instances} + rank;
}

// regions_small.cu: does the map fit a block's shared memory whole, and the one launch for such maps.
bool regions_is_small(const RegionsArgs& a);
const char* regions_small_cuda(const RegionsArgs& a, cudaStream_t stream);

}  // namespace simfast
