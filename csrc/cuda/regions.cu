// find_regions on CUDA: see kernels.h for the contract, runs.cuh for the engine.
//
// A small map is one launch (regions_small.cu). A larger one takes a clear and five launches:
//   tile    labels the thing pixels of each tile; segments become links to the tile's roots or final stuff slots
//   seam    unites across the tiles' seams
//   gather  adds every lost root's area to its component's root, and lists the roots that are left
//   select  a block per image and thing class: its largest components, one after the other
//   write   follows the links of every pixel to its root's slot
#include <algorithm>

#include "classes.cuh"
#include "device.cuh"
#include "tile.cuh"

namespace simfast {
namespace {

constexpr int kSeamThreads = 256, kGatherThreads = 256, kSelectThreads = 512;
constexpr int kWriteThreads = 256, kWritePixels = 4;

// One image after the other in each array.
struct RegionsWorkspace {
    int32_t* tile_areas;  // [B, H * W] at a tile's root its area there, later its component's; elsewhere never touched
    int32_t* roots;       // [B, H * W] the components' roots, in no fixed order; `select` orders by keys alone
    unsigned* bits;       // [B, bitmap_words] the tiles' roots
    int32_t* num_roots;   // [B]

    RegionsWorkspace(void* at, int64_t B, const Tiling& t)
        : tile_areas(static_cast<int32_t*>(at)),
          roots(tile_areas + B * t.pixels()),
          bits(reinterpret_cast<unsigned*>(roots + B * t.pixels())),
          num_roots(reinterpret_cast<int32_t*>(bits + B * t.bitmap_words())) {}
};

struct TileShared {
    ClassTable table;
    Planes<kTilePixels, 1> classes;
    int32_t entry[kTilePixels];
    uint16_t starts[kTileUnits + 1];
    int32_t stuff_areas[kMaxClasses];
};

template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    regions_tile_kernel(TypedMap<T> labels, const __grid_constant__ RegionsArgs a, Tiling tiling, bool wide,
                        RegionsWorkspace workspace) {
    SIMFAST_SHARED(TileShared, tile);
    const auto [b, index] = block_place(tiling.tiles());
    const TilePlace at(tiling, index);
    const Runs runs{tile.starts, tile.entry};
    uint8_t* classes = tile.classes.plane(0);

    if (index == 0 && threadIdx.x == 0) workspace.num_roots[b] = 0;  // `gather` counts from it
    if (threadIdx.x < 32) fill_table(tile.table, a, threadIdx.x);
    if (threadIdx.x < kMaxClasses) tile.stuff_areas[threadIdx.x] = 0;
    if (threadIdx.x == 0) tile.starts[at.units()] = 1;  // the last row's end
    __syncthreads();
    if (wide) {
        load_tile(labels, b, at, [&](int p, T label) { classes[p] = search_class(a, label); });
    } else {
        load_tile(labels, b, at, [&](int p, T label) { classes[p] = class_in(tile.table, label); });
    }
    __syncthreads();
    Unit unit{};
    Links links;
    const bool owner = threadIdx.x < at.units();
    if (owner) {
        unit = unit_at(threadIdx.x, TilePitch{}, at.columns);
        links = enter_runs(runs, unit, classes, a);
    }
    __syncthreads();  // unions look up runs, and climb through entries, of other warps
    runs.unite_links(unit, links);
    __syncthreads();  // roots are final
    unsigned roots = 0;
    if (owner) {
        roots = measure_runs(runs, unit, tile.stuff_areas);
        runs.settle_first(unit);
    }
    put_root_bits(workspace.bits + b * tiling.bitmap_words(), tiling, at, roots);
    __syncthreads();  // areas are final

    for (unsigned rest = roots; rest; rest &= rest - 1) {
        const int root = unit.p + __ffs(rest) - 1;
        workspace.tile_areas[b * tiling.pixels() + at.pixel(tiling, root)] = area_in(tile.entry[root]);
    }
    int32_t* segments = a.segments + b * tiling.pixels();
    write_tile(segments, tiling, at, [&](unsigned unit, unsigned i) {
        const int32_t entry = runs.entry_of(unit, i);
        return entry < 0 ? final_slot(entry) : link_to(at.pixel(tiling, entry >> 16));
    });
    for (int s = threadIdx.x; s < a.num_stuff; s += kTileThreads) {
        if (tile.stuff_areas[s]) atomicAdd(a.areas + b * slot_of(a, a.num_things, 0) + s, tile.stuff_areas[s]);
    }
}

template <typename T>
__global__ void __launch_bounds__(kSeamThreads)
    regions_seam_kernel(TypedMap<T> labels, const __grid_constant__ RegionsArgs a, Tiling tiling, int32_t seam_blocks) {
    const auto [b, index] = block_place(seam_blocks);
    const int32_t item = index * kSeamThreads + threadIdx.x;
    if (item >= tiling.seam_pixels()) return;
    const auto active = [&](T label) { return is_thing(a, search_class(a, static_cast<int64_t>(label))); };
    unite_across_seam(labels, tiling, LinkNodes{a.segments + b * tiling.pixels()}, b, item, a.connectivity == 8, active,
                      [](int32_t) {});
}

__global__ void __launch_bounds__(kGatherThreads)
    regions_gather_kernel(const __grid_constant__ RegionsArgs a, Tiling tiling, int32_t gather_blocks,
                          RegionsWorkspace workspace) {
    const auto [b, index] = block_place(gather_blocks);
    const unsigned word = static_cast<unsigned>(index) * kGatherThreads + threadIdx.x;
    if (word >= static_cast<unsigned>(tiling.bitmap_words())) return;
    const LinkNodes nodes{a.segments + b * tiling.pixels()};
    int32_t* tile_areas = workspace.tile_areas + b * tiling.pixels();
    const unsigned words = tiling.words;
    const int32_t first = word / words * tiling.W + word % words * 32;
    unsigned kept = 0;
    for (unsigned rest = workspace.bits[b * tiling.bitmap_words() + word]; rest; rest &= rest - 1) {
        const int32_t p = first + __ffs(rest) - 1, root = find_root(nodes, p);
        if (root == p) {
            kept |= rest & -rest;
        } else {
            atomicAdd(tile_areas + root, tile_areas[p]);
        }
    }
    if (!kept) return;
    int32_t* list = workspace.roots + b * tiling.pixels() + atomicAdd(workspace.num_roots + b, __popc(kept));
    for (; kept; kept &= kept - 1) *list++ = first + __ffs(kept) - 1;
}

struct SelectShared {
    uint64_t best[2][kSelectThreads / 32];
};

template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    regions_select_kernel(TypedMap<T> labels, const __grid_constant__ RegionsArgs a, Tiling tiling,
                          RegionsWorkspace workspace) {
    SIMFAST_SHARED(SelectShared, shared);
    const auto [b, thing] = block_place(a.num_things);
    const int64_t label = a.classes[a.num_stuff + thing];
    const int32_t num_roots = workspace.num_roots[b];
    const int32_t* roots = workspace.roots + b * tiling.pixels();
    const int32_t* tile_areas = workspace.tile_areas + b * tiling.pixels();
    // Larger area first, then the earlier root. `last` falls from rank to rank, so that nothing needs to be crossed
    // out.
    uint64_t last = ~uint64_t{0};
    for (int rank = 0; rank < a.max_instances; ++rank) {
        uint64_t best = 0;
        for (int32_t i = threadIdx.x; i < num_roots; i += kSelectThreads) {
            const int32_t root = roots[i];
            const uint64_t key = uint64_t{static_cast<uint32_t>(tile_areas[root])} << 32 | (0x7FFFFFFFu - root);
            if (key <= best || key >= last) continue;
            if (static_cast<int64_t>(labels.at(b, root / tiling.W, root % tiling.W)) == label) best = key;
        }
        for (int step = 16; step; step /= 2) best = max(best, __shfl_xor_sync(kFullWarp, best, step));
        // Two sets in turn: a set is written again only after the next barrier, when all have read it.
        uint64_t* warps = shared.best[rank % 2];
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
        __syncthreads();
        for (int w = 0; w < kSelectThreads / 32; ++w) best = max(best, warps[w]);
        if (best == 0) return;
        last = best;
        if (threadIdx.x == 0) {
            const int64_t slot = slot_of(a, thing, rank);
            a.segments[b * tiling.pixels() + (0x7FFFFFFFu - static_cast<uint32_t>(best))] = static_cast<int32_t>(slot);
            a.areas[b * slot_of(a, a.num_things, 0) + slot] = static_cast<int32_t>(best >> 32);
        }
    }
}

__global__ void __launch_bounds__(kWriteThreads)
    regions_write_kernel(const __grid_constant__ RegionsArgs a, Tiling tiling, int32_t write_blocks) {
    const auto [b, index] = block_place(write_blocks);
    const int64_t first = int64_t{index} * (kWriteThreads * kWritePixels) + threadIdx.x;
    int32_t* image = a.segments + b * tiling.pixels();
    int32_t entry[kWritePixels];
#pragma unroll
    for (int i = 0; i < kWritePixels; ++i) {
        const int64_t p = first + i * kWriteThreads;
        entry[i] = p < tiling.pixels() ? image[p] : -1;
    }
    // Others replace links by final slots meanwhile. Either is right: a link leads on to the same slot.
#pragma unroll
    for (int i = 0; i < kWritePixels; ++i) {
        if (!is_link(entry[i])) continue;
        while (is_link(entry[i])) {
            const int32_t next = image[link_to(entry[i])];
            entry[i] = next == entry[i] ? -1 : next;  // a root that links to itself was not selected
        }
        image[first + i * kWriteThreads] = entry[i];
    }
}

template <typename T>
const char* run_large(const RegionsArgs& a, cudaStream_t stream) {
    const Tiling tiling(a.H, a.W);
    const RegionsWorkspace workspace(a.workspace, a.B, tiling);
    const TypedMap<T> labels(a.labels);
    const int32_t seam_blocks = static_cast<int32_t>(ceil_div(tiling.seam_pixels(), kSeamThreads));
    const int32_t gather_blocks = static_cast<int32_t>(ceil_div(tiling.bitmap_words(), kGatherThreads));
    const int32_t write_blocks = static_cast<int32_t>(ceil_div(tiling.pixels(), kWriteThreads * kWritePixels));
    const int64_t most = std::max({tiling.tiles(), seam_blocks, gather_blocks, write_blocks, a.num_things});
    if (a.B * most > kMaxGrid) return "the batch has too many pixels for one launch";

    const auto cleared = cudaMemsetAsync(a.areas, 0, a.B * regions_num_slots(a) * sizeof(int32_t), stream);
    if (cleared != cudaSuccess) return error_text(cleared);
    SIMFAST_LAUNCH((regions_tile_kernel<T>), grid_of(a.B * tiling.tiles()), kTileThreads, 0, stream, labels, a, tiling,
                   has_wide_classes(a), workspace);
    if (a.num_things > 0) {
        if (seam_blocks) {
            SIMFAST_LAUNCH((regions_seam_kernel<T>), grid_of(a.B * seam_blocks), kSeamThreads, 0, stream, labels, a,
                           tiling, seam_blocks);
        }
        SIMFAST_LAUNCH(regions_gather_kernel, grid_of(a.B * gather_blocks), kGatherThreads, 0, stream, a, tiling,
                       gather_blocks, workspace);
        SIMFAST_LAUNCH((regions_select_kernel<T>), grid_of(a.B * a.num_things), kSelectThreads, 0, stream, labels, a,
                       tiling, workspace);
        SIMFAST_LAUNCH(regions_write_kernel, grid_of(a.B * write_blocks), kWriteThreads, 0, stream, a, tiling,
                       write_blocks);
    }
    return launch_error();
}

}  // namespace

int64_t regions_workspace_cuda(const RegionsArgs& a) {
    if (regions_is_small(a)) return 0;
    const Tiling tiling(a.H, a.W);
    return a.B * int64_t{sizeof(int32_t)} * (2 * int64_t{tiling.pixels()} + tiling.bitmap_words() + 1);
}

const char* regions_cuda(const RegionsArgs& a, void* stream_pointer) {
    const auto stream = static_cast<cudaStream_t>(stream_pointer);
    if (regions_is_small(a)) return regions_small_cuda(a, stream);
    return for_label_type(a.labels.dtype, [&](auto example) { return run_large<decltype(example)>(a, stream); });
}

}  // namespace simfast
