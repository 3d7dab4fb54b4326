// connected_components on CUDA: see kernels.h for the contract, runs.cuh for the engine.
//
// Four launches. The ids themselves hold the union-find: an entry <= -2 links to another pixel, an entry >= 0 is final.
//   tile    labels each tile in shared memory; ids become links to the tile's roots, whose bits it sets in a bitmap
//   seam    unites across the tiles' seams; a root that loses its place also loses its bit
//   number  ranks the bits that are left: a component's root is its first pixel, so its rank in raster order is its id
//   write   follows the links of every pixel to its root's id
#include <algorithm>

#include "device.cuh"
#include "tile.cuh"

namespace simfast {
namespace {

constexpr int kSeamThreads = 256, kNumberThreads = 1024, kNumberWords = 4, kWriteThreads = 256, kWritePixels = 4;
constexpr int kMaxBands = 1024;  // of whole tile rows, one block each, to number

// One image after the other: root bits, then how many roots each tile has.
struct ComponentsWorkspace {
    unsigned* bits;
    int32_t* roots;

    ComponentsWorkspace(void* at, int64_t B, const Tiling& t)
        : bits(static_cast<unsigned*>(at)), roots(reinterpret_cast<int32_t*>(bits + B * t.bitmap_words())) {}
};

// Labels are compared byte by byte, up to four bytes at a time; 64-bit labels are loaded twice for that.
template <typename T>
constexpr int kPlanes = sizeof(T) < 4 ? sizeof(T) : 4;

template <typename T>
struct ComponentsTileShared {
    Planes<kTilePixels, kPlanes<T>> labels;
    int32_t entry[kTilePixels];
    uint16_t starts[kTileUnits + 1];
    int32_t num_roots;
};

// Bytes 4 * round .. of the labels to the tile's planes.
template <typename T>
__device__ __forceinline__ void load_planes(ComponentsTileShared<T>& tile, const TypedMap<T>& labels, int64_t b,
                                            const TilePlace& at, bool whole_units, int round) {
    if (sizeof(T) == 1 && whole_units) {
        const unsigned y = threadIdx.x / TilePitch::units, x = threadIdx.x % TilePitch::units * kUnit;
        if (y >= at.rows || x >= at.columns) return;
        const T* from = labels.data + b * labels.stride_b + (at.y0 + y) * labels.stride_h + at.x0 + x;
        *reinterpret_cast<uint4*>(tile.labels.plane(0) + threadIdx.x * kUnit) =
            __ldg(reinterpret_cast<const uint4*>(from));
        return;
    }
    load_tile(labels, b, at, [&](int p, T label) {
#pragma unroll
        for (int i = 0; i < kPlanes<T>; ++i) {
            tile.labels.plane(i)[p] = static_cast<uint8_t>(static_cast<uint64_t>(label) >> (4 * round + i) * 8);
        }
    });
}

constexpr int32_t kBackground = -1;  // as a run's entry

template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    components_tile_kernel(TypedMap<T> labels, bool whole_units, Tiling tiling, int64_t background, bool diagonal,
                           int32_t* ids, ComponentsWorkspace workspace) {
    SIMFAST_SHARED(ComponentsTileShared<T>, tile);
    const auto [b, index] = block_place(tiling.tiles());
    const TilePlace at(tiling, index);
    const Runs runs{tile.starts, tile.entry};
    const bool owner = threadIdx.x < at.units();
    const Unit unit = unit_at(threadIdx.x, TilePitch{}, at.columns);

    Alike alike;
    unsigned active = static_cast<int64_t>(static_cast<T>(background)) == background ? 0u : kFullWarp;
#pragma unroll
    for (int round = 0; round * 4 < static_cast<int>(sizeof(T)); ++round) {
        if (round > 0) __syncthreads();  // the planes before are read
        load_planes(tile, labels, b, at, whole_units, round);
        __syncthreads();
        if (!owner) continue;
#pragma unroll
        for (int i = 0; i < kPlanes<T>; ++i) {
            const uint8_t* plane = tile.labels.plane(i);
            alike.narrow(plane, unit);
            active |= ~equal_bits(load_unit(plane + unit.p), static_cast<uint8_t>(background >> (4 * round + i) * 8));
        }
    }
    Links links;
    if (owner) {
        active &= unit.inside;
        for (unsigned rest = runs.set_starts(unit, alike.left); rest; rest &= rest - 1) {
            const int i = __ffs(rest) - 1;
            tile.entry[unit.p + i] = active >> i & 1 ? (unit.p + i) << 16 : kBackground;
        }
        links = Links(alike, unit, active, diagonal);
    }
    if (threadIdx.x == 0) {
        tile.starts[at.units()] = 1;  // the last row's end
        tile.num_roots = 0;
    }
    __syncthreads();  // unions look up runs, and climb through entries, of other warps
    runs.unite_links(unit, links);
    __syncthreads();  // roots are final

    unsigned roots = 0;
    if (owner) {
        for (unsigned rest = tile.starts[threadIdx.x] & active; rest; rest &= rest - 1) {
            const int p = unit.p + __ffs(rest) - 1;
            if (runs.settle(p, p) == p) roots |= rest & -rest;
        }
        runs.settle_first(unit);
    }
    put_root_bits(workspace.bits + b * tiling.bitmap_words(), tiling, at, roots);
    const int num_roots = __reduce_add_sync(kFullWarp, __popc(roots));
    if (threadIdx.x % 32 == 0 && num_roots) atomicAdd(&tile.num_roots, num_roots);
    __syncthreads();  // entries are final
    write_tile(ids + b * tiling.pixels(), tiling, at, [&](unsigned unit, unsigned i) {
        const int32_t entry = runs.entry_of(unit, i);
        return entry < 0 ? 0 : link_to(at.pixel(tiling, entry >> 16));
    });
    if (threadIdx.x == 0) workspace.roots[blockIdx.x] = tile.num_roots;
}

template <typename T>
__global__ void __launch_bounds__(kSeamThreads)
    components_seam_kernel(TypedMap<T> labels, Tiling tiling, int32_t seam_blocks, int64_t background, bool diagonal,
                           int32_t* ids, ComponentsWorkspace workspace) {
    const auto [b, index] = block_place(seam_blocks);
    const int32_t item = index * kSeamThreads + threadIdx.x;
    if (item >= tiling.seam_pixels()) return;
    const auto active = [=](T label) { return static_cast<int64_t>(label) != background; };
    unsigned* bits = workspace.bits + b * tiling.bitmap_words();
    int32_t* roots = workspace.roots + b * tiling.tiles();
    // unite() names each lost root once, so bit and count are taken back exactly once.
    const auto lost = [&](int32_t root) {
        const int32_t y = root / tiling.W, x = root % tiling.W;
        atomicAnd(bits + y * tiling.words + x / 32, ~(1u << x % 32));
        atomicSub(roots + y / kTile * tiling.tiles_x + x / kTile, 1);
    };
    unite_across_seam(labels, tiling, LinkNodes{ids + b * tiling.pixels()}, b, item, diagonal, active, lost);
}

struct NumberShared {
    int32_t warp_sums[kNumberThreads / 32];
};

__device__ __forceinline__ int32_t warp_inclusive_sum(int32_t value, int lane) {
    for (int step = 1; step < 32; step *= 2) {
        const int32_t from_below = __shfl_up_sync(kFullWarp, value, step);
        if (lane >= step) value += from_below;
    }
    return value;
}

// The sum of `value` over the threads before this one; `total` over all. Two barriers: the first one keeps the sums of
// the call before until everybody has read them.
__device__ __forceinline__ int32_t block_exclusive_sum(NumberShared& shared, int32_t value, int32_t& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t upto = warp_inclusive_sum(value, lane);
    __syncthreads();
    if (lane == 31) shared.warp_sums[warp] = upto;
    __syncthreads();
    const int32_t sums = warp_inclusive_sum(shared.warp_sums[lane], lane);
    total = __shfl_sync(kFullWarp, sums, 31);
    const int32_t warps_before = __shfl_sync(kFullWarp, sums, warp == 0 ? 0 : warp - 1);
    return upto - value + (warp == 0 ? 0 : warps_before);
}

__global__ void __launch_bounds__(kNumberThreads)
    components_number_kernel(Tiling tiling, int32_t bands, int32_t tile_rows, int32_t* ids, int32_t* counts,
                             ComponentsWorkspace workspace) {
    SIMFAST_SHARED(NumberShared, shared);
    const auto [b, band] = block_place(bands);
    const int32_t tile_row = band * tile_rows, lane = threadIdx.x % 32;
    // Roots in the bands above: every block adds them up for itself, which is cheaper than another launch.
    const int32_t* roots = workspace.roots + b * tiling.tiles();
    int32_t above = 0, first = 0;
    for (int32_t t = threadIdx.x; t < tile_row * tiling.tiles_x; t += kNumberThreads) above += roots[t];
    block_exclusive_sum(shared, above, first);

    const int64_t begin = int64_t{tile_row} * kTile * tiling.words;
    const int64_t end = min(int64_t{tiling.bitmap_words()}, begin + int64_t{tile_rows} * kTile * tiling.words);
    const unsigned* bits = workspace.bits + b * tiling.bitmap_words();
    int32_t* image = ids + b * tiling.pixels();
    // Four words a thread: a band of 2,048 columns is then one round, one wait for memory and one scan.
    for (int64_t word0 = begin; word0 < end; word0 += kNumberThreads * kNumberWords) {
        const int64_t own_word = word0 + threadIdx.x * kNumberWords;
        unsigned own[kNumberWords];
        int32_t own_roots = 0, total;
#pragma unroll
        for (int k = 0; k < kNumberWords; ++k) {
            own[k] = own_word + k < end ? bits[own_word + k] : 0u;
            own_roots += __popc(own[k]);
        }
        int32_t rank = first + block_exclusive_sum(shared, own_roots, total);
        first += total;
        // A warp writes the ids of its words together, a word at a time, a lane a bit: coalesced where roots are dense,
        // and quick over the many empty words where they are not.
#pragma unroll
        for (int k = 0; k < kNumberWords; ++k) {
            for (unsigned filled = __ballot_sync(kFullWarp, own[k] != 0); filled; filled &= filled - 1) {
                const int source = __ffs(filled) - 1;
                const unsigned shown = __shfl_sync(kFullWarp, own[k], source);
                const int32_t shown_rank = __shfl_sync(kFullWarp, rank, source);
                const int32_t word = static_cast<int32_t>(own_word + (source - lane) * kNumberWords + k);
                if (shown >> lane & 1) {
                    const int32_t y = word / tiling.words, x = word % tiling.words * 32 + lane;
                    image[y * tiling.W + x] = shown_rank + __popc(shown & bits_below(lane)) + 1;
                }
            }
            rank += __popc(own[k]);
        }
    }
    if (band == bands - 1 && threadIdx.x == 0) counts[b] = first;
}

__global__ void __launch_bounds__(kWriteThreads)
    components_write_kernel(Tiling tiling, int32_t write_blocks, int32_t* ids) {
    const auto [b, index] = block_place(write_blocks);
    const int64_t first = int64_t{index} * (kWriteThreads * kWritePixels) + threadIdx.x;
    int32_t* image = ids + b * tiling.pixels();
    int32_t entry[kWritePixels];
#pragma unroll
    for (int i = 0; i < kWritePixels; ++i) {
        const int64_t p = first + i * kWriteThreads;
        entry[i] = p < tiling.pixels() ? image[p] : 0;
    }
    // Others replace links by final ids meanwhile. Either is right: a link leads on to the same id.
#pragma unroll
    for (int i = 0; i < kWritePixels; ++i) {
        if (!is_link(entry[i])) continue;
        while (is_link(entry[i])) entry[i] = image[link_to(entry[i])];
        image[first + i * kWriteThreads] = entry[i];
    }
}

// Do all rows consist of whole units, aligned as such?
bool is_in_whole_units(const ComponentsArgs& a) {
    const auto whole = [](int64_t size, int64_t stride) { return size == 1 || stride % kUnit == 0; };
    return a.labels.stride_w == 1 && a.W % kUnit == 0 && whole(a.H, a.labels.stride_h) &&
           whole(a.B, a.labels.stride_b) && reinterpret_cast<uintptr_t>(a.labels.data) % kUnit == 0;
}

}  // namespace

int64_t components_workspace_cuda(const ComponentsArgs& a) {
    const Tiling tiling(a.H, a.W);
    return a.B * (tiling.bitmap_words() * int64_t{sizeof(unsigned)} + tiling.tiles() * int64_t{sizeof(int32_t)});
}

const char* components_cuda(const ComponentsArgs& a, void* stream_pointer) {
    const Tiling tiling(a.H, a.W);
    const ComponentsWorkspace workspace(a.workspace, a.B, tiling);
    const auto stream = static_cast<cudaStream_t>(stream_pointer);
    const bool diagonal = a.connectivity == 8;
    const int32_t tile_rows = static_cast<int32_t>(ceil_div(tiling.tiles_y, kMaxBands));
    const int32_t bands = static_cast<int32_t>(ceil_div(tiling.tiles_y, tile_rows));
    const int32_t seam_blocks = static_cast<int32_t>(ceil_div(tiling.seam_pixels(), kSeamThreads));
    const int32_t write_blocks = static_cast<int32_t>(ceil_div(tiling.pixels(), kWriteThreads * kWritePixels));
    if (a.B * std::max({tiling.tiles(), seam_blocks, write_blocks}) > kMaxGrid) {
        return "the batch has too many pixels for one launch";
    }
    const char* error = for_label_type(a.labels.dtype, [&](auto example) {
        using T = decltype(example);
        const TypedMap<T> labels(a.labels);
        SIMFAST_LAUNCH((components_tile_kernel<T>), grid_of(a.B * tiling.tiles()), kTileThreads, 0, stream, labels,
                       is_in_whole_units(a), tiling, a.background, diagonal, a.ids, workspace);
        if (seam_blocks) {
            SIMFAST_LAUNCH((components_seam_kernel<T>), grid_of(a.B * seam_blocks), kSeamThreads, 0, stream, labels,
                           tiling, seam_blocks, a.background, diagonal, a.ids, workspace);
        }
        return launch_error();
    });
    if (error) return error;
    SIMFAST_LAUNCH(components_number_kernel, grid_of(a.B * bands), kNumberThreads, 0, stream, tiling, bands, tile_rows,
                   a.ids, a.counts, workspace);
    SIMFAST_LAUNCH(components_write_kernel, grid_of(a.B * write_blocks), kWriteThreads, 0, stream, tiling, write_blocks,
                   a.ids);
    return launch_error();
}

}  // namespace simfast
