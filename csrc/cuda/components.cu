// connected_components on CUDA: see kernels.h for the contract, tile.cuh for the engine.
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

constexpr int kTileThreads = 512, kSeamThreads = 256, kNumberThreads = 1024, kNumberWords = 4, kWriteThreads = 256,
              kWritePixels = 4;
constexpr int kMaxBands = 1024;  // of whole tile rows, one block each, to number

// One image after the other: root bits, then how many roots each tile has.
struct ComponentsWorkspace {
    unsigned* bits;
    int32_t* roots;

    ComponentsWorkspace(void* at, int64_t B, const Tiling& t)
        : bits(static_cast<unsigned*>(at)), roots(reinterpret_cast<int32_t*>(bits + B * t.bitmap_words())) {}
};

template <typename T>
struct ComponentsTileShared {
    T labels[kTilePixels];
    int32_t parent[kTilePixels];
};

template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    components_tile_kernel(TypedMap<T> labels, Tiling tiling, int64_t background, bool diagonal, int32_t* ids,
                           ComponentsWorkspace workspace) {
    SIMFAST_SHARED(ComponentsTileShared<T>, tile);
    const auto [b, index] = block_place(tiling.tiles());
    const int32_t y0 = index / tiling.tiles_x * kTile, x0 = index % tiling.tiles_x * kTile;
    const int rows = min(kTile, tiling.H - y0), columns = min(kTile, tiling.W - x0);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto active = [=](T label) { return static_cast<int64_t>(label) != background; };

    // All eight loads of a thread are independent and stand in flight together.
#pragma unroll
    for (int i = 0; i < kTilePixels / kTileThreads; ++i) {
        const int p = threadIdx.x + i * kTileThreads, y = p / kTile, x = p % kTile;
        if (y < rows && x < columns) tile.labels[p] = labels.at(b, y0 + y, x0 + x);
    }
    __syncthreads();
    label_tile<kTileThreads>(tile.labels, tile.parent, rows, columns, TilePitch{}, diagonal, active);

    int32_t* image = ids + b * tiling.pixels();
    unsigned* bits = workspace.bits + b * tiling.bitmap_words();
    int num_roots = 0;
    for (int p = threadIdx.x; p < rows * kTile; p += kTileThreads) {
        const int y = y0 + p / kTile, x = x0 + p % kTile;
        const bool inside = x < tiling.W, labelled = inside && active(tile.labels[p]);
        const int root = labelled ? tile.parent[p] : -1;
        const unsigned roots = __ballot_sync(kFullWarp, root == p);
        if (inside)
            image[y * tiling.W + x] = labelled ? link_to((y0 + root / kTile) * tiling.W + x0 + root % kTile) : 0;
        if (inside && lane == 0) bits[y * tiling.words + x / 32] = roots;
        num_roots += __popc(roots);
    }
    __syncthreads();  // the parents are read; their place takes the warps' counts
    if (lane == 0) tile.parent[warp] = num_roots;
    __syncthreads();
    if (threadIdx.x == 0) {
        int total = 0;
        for (int w = 0; w < kTileThreads / 32; ++w) total += tile.parent[w];
        workspace.roots[blockIdx.x] = total;
    }
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
        return "connected_components: the batch has too many pixels for one launch";
    }
    const char* error = for_label_type(a.labels.dtype, [&](auto example) {
        using T = decltype(example);
        const TypedMap<T> labels(a.labels);
        SIMFAST_LAUNCH((components_tile_kernel<T>), grid_of(a.B * tiling.tiles()), kTileThreads, 0, stream, labels,
                       tiling, a.background, diagonal, a.ids, workspace);
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
