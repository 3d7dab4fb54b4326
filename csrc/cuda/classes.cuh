// Labels to class numbers for find_regions: a label's position in args.classes, kNoClass if it is not there.
#pragma once

#include "device.cuh"
#include "runs.cuh"

namespace simfast {

constexpr uint8_t kNoClass = 255;

struct ClassTable {
    alignas(4) uint8_t of_byte[256];
};

__device__ __forceinline__ uint8_t search_class(const RegionsArgs& a, int64_t label) {
    for (int i = 0; i < a.num_stuff + a.num_things; ++i) {
        if (a.classes[i] == label) return static_cast<uint8_t>(i);
    }
    return kNoClass;
}

// By one whole warp. A barrier must follow before the table is read.
__device__ __forceinline__ void fill_table(ClassTable& table, const RegionsArgs& a, int lane) {
    for (int i = lane; i < 64; i += 32) reinterpret_cast<unsigned*>(table.of_byte)[i] = ~0u;  // kNoClass in each byte
    __syncwarp();  // all entries are empty before the first one is filled
    for (int i = lane; i < a.num_stuff + a.num_things; i += 32) {
        if (a.classes[i] >= 0 && a.classes[i] < 256) table.of_byte[a.classes[i]] = static_cast<uint8_t>(i);
    }
}

// Is any class outside of the table? Class ids are small numbers nearly always.
inline bool has_wide_classes(const RegionsArgs& a) {
    for (int i = 0; i < a.num_stuff + a.num_things; ++i) {
        if (a.classes[i] < 0 || a.classes[i] > 255) return true;
    }
    return false;
}

// The same as search_class where no class is wide.
__device__ __forceinline__ uint8_t class_in(const ClassTable& table, int64_t label) {
    const uint8_t found = table.of_byte[label & 255];
    return (label & ~int64_t{255}) == 0 ? found : kNoClass;
}

__device__ __forceinline__ bool is_thing(const RegionsArgs& a, uint8_t class_number) {
    return class_number >= a.num_stuff && class_number != kNoClass;
}

__device__ __forceinline__ int64_t slot_of(const RegionsArgs& a, int thing, int64_t rank) {
    return a.num_stuff + thing * int64_t{a.max_instances} + rank;
}

// The pixels of a unit whose class is a thing, as bits.
__device__ __forceinline__ unsigned thing_bits(const RegionsArgs& a, const uint4& classes) {
    const unsigned first_thing = a.num_stuff * 0x01010101u;
    // Bit 7 set: class numbers are below 64, so nothing is borrowed from the next byte. kNoClass has bit 7 itself.
    const auto signs = [=](unsigned four) { return ((four | 0x80808080u) - first_thing) & ~four; };
    unsigned bits = push_signs(signs(classes.w), 0);
    bits = push_signs(signs(classes.z), bits);
    bits = push_signs(signs(classes.y), bits);
    return push_signs(signs(classes.x), bits);
}

// Negative entries of runs.cuh: a slot, or -1 for none.
constexpr int32_t kFinal = INT32_MIN + 1;
__device__ __forceinline__ int32_t final_entry(int64_t slot) { return static_cast<int32_t>(kFinal + slot); }
__device__ __forceinline__ int32_t final_slot(int32_t entry) { return entry - kFinal; }

// Finds the runs of a unit of `classes` and enters them: nodes where they are things, else their slots. Returns the
// unions that remain to be made, after a barrier.
__device__ __forceinline__ Links enter_runs(const Runs& runs, const Unit& unit, const uint8_t* classes,
                                            const RegionsArgs& a) {
    Alike alike;
    alike.narrow(classes, unit);
    const unsigned things = thing_bits(a, load_unit(classes + unit.p)) & unit.inside;
    for (unsigned rest = runs.set_starts(unit, alike.left); rest; rest &= rest - 1) {
        const int i = __ffs(rest) - 1, p = unit.p + i;
        const uint8_t own = classes[p];
        runs.entry[p] = things >> i & 1 ? p << 16 : final_entry(own == kNoClass ? -1 : own);
    }
    return Links(alike, unit, things, a.connectivity == 8);
}

__device__ __forceinline__ int32_t area_in(int32_t entry) { return entry & 0xFFFF; }

// Once all unions are made: settles the runs of a unit and adds up areas. Returns the pixels that are roots.
__device__ __forceinline__ unsigned measure_runs(const Runs& runs, const Unit& unit, int32_t* stuff_areas) {
    unsigned roots = 0;
    for (unsigned rest = runs.starts[unit.p / kUnit] & unit.inside; rest; rest &= rest - 1) {
        const int p = unit.p + __ffs(rest) - 1, length = runs.length_from(p);
        const int32_t own = load_volatile(runs.entry + p);
        if (own < 0) {
            if (final_slot(own) >= 0) atomicAdd(stuff_areas + final_slot(own), length);
            continue;
        }
        const int root = runs.settle(p, p);
        atomicAdd(runs.entry + root, length);
        if (root == p) roots |= rest & -rest;
    }
    return roots;
}

// regions_small.cu: does the map fit a block's shared memory whole, and the one launch for such maps.
bool regions_is_small(const RegionsArgs& a);
const char* regions_small_cuda(const RegionsArgs& a, cudaStream_t stream);

}  // namespace simfast
