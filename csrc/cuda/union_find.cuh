// The union-find of many threads, and which neighbours are worth a union. (The CPU's own: cpu/labelling.h.)
#pragma once

#include "device.cuh"

namespace simfast {

// ---------------------------------------------------------------------------------------------------------------------
// Union-find in which the smallest node of a tree is its root, so that a component's root is its first pixel.
//
// `Nodes` answers load(n), the parent of n (n itself for a root), and fetch_min(n, value), which lowers the parent of n
// to min(parent, value) and returns what it was. Parents only ever sink, so a stale load is an older ancestor, never a
// stranger: that is all that many threads need to climb and unite at once without a lock.
// ---------------------------------------------------------------------------------------------------------------------

template <typename Nodes>
__device__ __forceinline__ int32_t find_root(const Nodes& nodes, int32_t n) {
    for (int32_t parent = nodes.load(n); parent != n; parent = nodes.load(n)) n = parent;
    return n;
}

// Returns the node that ceased to be a root, or -1 if both already had the same root. Over any interleaving each node
// is returned at most once: only the first fetch_min that lowers a root sees it still pointing to itself.
//
// Only the higher node climbs. A root may hang below any smaller node, for its own tree holds none: neither a way to
// the other root nor a further step is needed once the higher node is a root.
template <typename Nodes>
__device__ __forceinline__ int32_t unite(const Nodes& nodes, int32_t a, int32_t b) {
    while (a != b) {
        const int32_t high = a > b ? a : b, low = a > b ? b : a;
        int32_t above = nodes.load(high);
        if (above == high) {
            above = nodes.fetch_min(high, low);
            if (above == high) return high;
        }
        // Either a step up, or another thread hung `high` below `above` first. fetch_min kept the smaller of the two
        // links, so the other one may be lost: joining the two ends restores it.
        a = above;
        b = low;
    }
    return -1;
}

// A parent kept in the output map itself, beside final values >= -1: the link to node n is -2 - n. Lowering the node
// raises the entry, so fetch_min becomes a maximum.
__device__ __forceinline__ constexpr int32_t link_to(int32_t node) { return -2 - node; }
__device__ __forceinline__ constexpr bool is_link(int32_t entry) { return entry <= -2; }

// The union-find's parents as links in an output map in global memory. Loads go to the level-2 cache, where the atomics
// are done: the first-level cache could serve the same stale link over and over.
struct LinkNodes {
    int32_t* entry;
    __device__ __forceinline__ int32_t load(int32_t n) const { return link_to(__ldcg(entry + n)); }
    __device__ __forceinline__ bool holds(int32_t n) const { return is_link(__ldcg(entry + n)); }
    __device__ __forceinline__ int32_t fetch_min(int32_t n, int32_t value) const {
        return link_to(atomicMax(entry + n, link_to(value)));
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// The neighbour rule, a row of pixels as bits. `same_up` and `same_left`: the pixel equals the one above, or to its
// left.
// ---------------------------------------------------------------------------------------------------------------------

// Pixels to unite with the one straight above: of equal pixels side by side above equal pixels side by side, the first.
// `carry` is bit 0's left neighbour in same_up: 1 only if that pixel is in the row and its own union is certain.
template <typename Bits>
__device__ __forceinline__ Bits straight_links(Bits same_up, Bits same_left, Bits carry) {
    return same_up & ~(same_left & ((same_up << 1) | carry));
}

// With 8 neighbours a diagonal adds something only where the pixel straight above differs and, on that side, the run
// ends: otherwise the next pixel of the run has the same neighbour straight above it. Bits or booleans.
template <typename Bits>
__device__ __forceinline__ constexpr Bits diagonal_links(Bits same_up, Bits run_goes_on, Bits same_diagonal) {
    return same_diagonal & ~(same_up | run_goes_on);
}

}  // namespace simfast
