// How a map is cut into tiles, and the seams between tiles. runs.cuh labels a tile.
#pragma once

#include "device.cuh"
#include "runs.cuh"
#include "union_find.cuh"

namespace simfast {

constexpr int kTile = 64;  // rows and columns; 4,096 pixels, and 64 columns are two words of 32 root bits
constexpr int kTilePixels = kTile * kTile;
constexpr int kTileUnits = kTilePixels / kUnit;

// Threads of a block that labels a tile: one or two a unit.
#ifndef SIMFAST_TILE_THREADS
#define SIMFAST_TILE_THREADS 256
#endif
constexpr int kTileThreads = SIMFAST_TILE_THREADS;
static_assert(kTileThreads == kTileUnits || kTileThreads == 2 * kTileUnits);

struct TilePitch {
    static constexpr int units = kTile / kUnit;
    __device__ __forceinline__ int row(int unit) const { return unit / units; }
};

// How an image of H x W is cut into tiles, and its bitmap of roots: 32 columns a word, rows padded to whole words, so
// that a warp owns the words it writes and the words of an image stand in raster order.
struct Tiling {
    int32_t H, W, tiles_y, tiles_x, words;

    Tiling(int64_t H, int64_t W)
        : H(static_cast<int32_t>(H)),
          W(static_cast<int32_t>(W)),
          tiles_y(static_cast<int32_t>(ceil_div(H, kTile))),
          tiles_x(static_cast<int32_t>(ceil_div(W, kTile))),
          words(static_cast<int32_t>(ceil_div(W, 32))) {}
    // All of one image, so below H * W < 2^31: 32-bit divisions, which cost a tenth of 64-bit ones.
    SIMFAST_HD int32_t pixels() const { return H * W; }
    SIMFAST_HD int32_t tiles() const { return tiles_y * tiles_x; }
    SIMFAST_HD int32_t bitmap_words() const { return H * words; }
    SIMFAST_HD int32_t seam_pixels() const { return (tiles_y - 1) * W + (tiles_x - 1) * H; }
};

// Which image a block works on, and which of the image's `each` blocks it is: images follow one another along the
// grid's x, the only direction with room for large batches.
struct BlockPlace {
    int64_t b;
    int32_t index;
};
__device__ __forceinline__ BlockPlace block_place(int32_t each) {
    return {blockIdx.x / static_cast<unsigned>(each), static_cast<int32_t>(blockIdx.x % static_cast<unsigned>(each))};
}

// Where a tile lies in its image. Its pixels are numbered in rows of kTile.
struct TilePlace {
    int32_t y0, x0;
    unsigned rows, columns;

    __device__ __forceinline__ TilePlace(const Tiling& t, unsigned index)
        : y0(index / static_cast<unsigned>(t.tiles_x) * kTile),
          x0(index % static_cast<unsigned>(t.tiles_x) * kTile),
          rows(min(kTile, t.H - y0)),
          columns(min(kTile, t.W - x0)) {}
    __device__ __forceinline__ unsigned units() const { return rows * TilePitch::units; }
    __device__ __forceinline__ int32_t pixel(const Tiling& t, unsigned p) const {
        return (y0 + p / kTile) * t.W + x0 + p % kTile;
    }
};

// Calls use(pixel, label) for the tile's pixels that are in the map. A thread's pixels stand in one column; the loads
// of kTileLoads of them are in flight together.
constexpr int kTileLoads = 8;
template <typename T, typename Use>
__device__ __forceinline__ void load_tile(const TypedMap<T>& labels, int64_t b, const TilePlace& at, const Use& use) {
    constexpr int kStep = kTileThreads / kTile;
    const unsigned x = threadIdx.x % kTile, y = threadIdx.x / kTile;
    if (x >= at.columns) return;
    const T* row = labels.data + b * labels.stride_b + (at.y0 + y) * labels.stride_h + (at.x0 + x) * labels.stride_w;
    const auto load = [&](int first, auto all_rows) {
        constexpr bool kWhole = decltype(all_rows)::value;
        T label[kTileLoads];
#pragma unroll
        for (int i = 0; i < kTileLoads; ++i, row += kStep * labels.stride_h) {
            label[i] = kWhole || y + first + i * kStep < at.rows ? __ldg(row) : T{};
        }
#pragma unroll
        for (int i = 0; i < kTileLoads; ++i) {
            if (kWhole || y + first + i * kStep < at.rows) use((y + first + i * kStep) * kTile + x, label[i]);
        }
    };
#pragma unroll
    for (int first = 0; first < kTile; first += kTileLoads * kStep) {
        if (at.rows == kTile) {
            load(first, std::true_type{});
        } else {
            load(first, std::false_type{});
        }
    }
}

// Writes value(unit, pixel of the unit) for the tile's pixels that are in the map.
template <typename Value>
__device__ __forceinline__ void write_tile(int32_t* image, const Tiling& tiling, const TilePlace& at,
                                           const Value& value) {
    constexpr int kStep = kTileThreads / kTile;
    const unsigned x = threadIdx.x % kTile, y = threadIdx.x / kTile;
    if (x >= at.columns) return;
    int32_t* row = image + at.pixel(tiling, threadIdx.x);
    const auto put = [&](int i) {
        row[int64_t{i} * kStep * tiling.W] = value(threadIdx.x / kUnit + i * (kTileThreads / kUnit), x % kUnit);
    };
    if (at.rows == kTile) {
#pragma unroll
        for (int i = 0; i < kTile / kStep; ++i) put(i);
    } else {
        for (int i = 0; y + i * kStep < at.rows; ++i) put(i);
    }
}

// Of two units beside each other, the left one's thread writes the roots of both: a word of the bitmap.
__device__ __forceinline__ void put_root_bits(unsigned* bits, const Tiling& tiling, const TilePlace& at,
                                              unsigned roots) {
    const unsigned word = roots | __shfl_down_sync(kFullWarp, roots, 1) << kUnit;
    const unsigned y = threadIdx.x / TilePitch::units;
    const int32_t x = at.x0 + static_cast<int32_t>(threadIdx.x % TilePitch::units * kUnit);
    if (threadIdx.x % 2 == 0 && y < at.rows && x < tiling.W) bits[(at.y0 + y) * tiling.words + x / 32] = word;
}

// Unites pixel `item` of the seams of image b with its neighbours across the seam. First come the rows above which a
// tile ends, then the columns; lost(root) is called for every root that ceased to be one.
template <typename T, typename Active, typename Lost>
__device__ __forceinline__ void unite_across_seam(const TypedMap<T>& labels, const Tiling& tiling,
                                                  const LinkNodes& nodes, int64_t b, int32_t item, bool diagonal,
                                                  const Active& active, const Lost& lost) {
    const int32_t in_rows = (tiling.tiles_y - 1) * tiling.W;
    const bool in_row = item < in_rows;
    const int32_t length = in_row ? tiling.W : tiling.H, rest = in_row ? item : item - in_rows;
    const int32_t seam = (rest / length + 1) * kTile, along = rest % length;
    // at(side, position): the label on this side of the seam (0) or beyond it (1).
    const auto at = [&](int side, int32_t position) {
        return in_row ? labels.at(b, seam - side, position) : labels.at(b, position, seam - side);
    };
    const auto pixel = [&](int side, int32_t position) {
        return in_row ? (seam - side) * tiling.W + position : position * tiling.W + seam - side;
    };
    const T label = at(0, along);
    if (!active(label)) return;
    const auto join = [&](int32_t position) {
        // From root to root, which unite() would not need: chains over many tiles stay short, and every pixel will
        // follow them.
        const int32_t own = pixel(0, along), other = pixel(1, position);
        // Equal labels are both nodes, but where they were changed since the tiles were labelled.
        if (!nodes.holds(own) || !nodes.holds(other)) return;
        const int32_t root = unite(nodes, find_root(nodes, own), find_root(nodes, other));
        if (root >= 0) lost(root);
    };
    const bool before = along > 0 && at(0, along - 1) == label;
    if (at(1, along) == label) {
        // The pixel before may have made this union already. Not so at a tile's corner: there row and column seam would
        // each leave the union to the other.
        if (along % kTile == 0 || !before || at(1, along - 1) != label) join(along);
        return;
    }
    if (!diagonal) return;
    if (along > 0 && diagonal_links(false, before, at(1, along - 1) == label)) join(along - 1);
    if (along + 1 < length && diagonal_links(false, at(0, along + 1) == label, at(1, along + 1) == label))
        join(along + 1);
}

}  // namespace simfast
