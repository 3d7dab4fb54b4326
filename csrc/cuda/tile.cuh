// The labelling engine of both region ops: a tile of pixels in shared memory, and the seams between tiles.
//
// Runs of equal labels come from a warp's ballot on the pixels that equal their left neighbour, so that within 32
// pixels every pixel starts out as a child of its run's first pixel and no union is spent along rows. Unions between
// rows are needed where a run meets another, a few per run: their number follows the region borders, not the pixels.
#pragma once

#include "device.cuh"

namespace simfast {

constexpr int kTile = 64;  // rows and columns; 4,096 pixels, and 64 columns are two words of 32 root bits
constexpr int kTilePixels = kTile * kTile;

// Row of pixel p of a tile whose rows are kTile pixels apart.
struct TilePitch {
    static constexpr int pixels = kTile;
    __device__ __forceinline__ int row(int p) const { return p / kTile; }
};

// The same for a whole map of up to 32,768 pixels. p / pixels without a division: with m = ceil(2^31 / pixels), the
// product p * m exceeds the true quotient by less than p * pixels / 2^31 < 1 / pixels. 2p keeps it to one
// multiply-high.
struct MapPitch {
    int pixels;
    unsigned magic;

    explicit MapPitch(int64_t width) : pixels(static_cast<int>(width)), magic(ceil_div(int64_t{1} << 31, width)) {}
    __device__ __forceinline__ int row(int p) const { return __umulhi(2u * p, magic); }
};

// Labels `rows` x `columns` pixels whose rows lie pitch.pixels apart, by a block of kThreads threads. labels[p] is
// read; active(label) says whether such pixels form components. On return, after a barrier, parent[p] of an active
// pixel is the first pixel, in raster order, of its component in the tile.
template <int kThreads, typename Label, typename Pitch, typename Active>
__device__ __forceinline__ void label_tile(const Label* labels, int32_t* parent, int rows, int columns, Pitch pitch,
                                           bool diagonal, const Active& active) {
    const int lane = threadIdx.x % 32, size = rows * pitch.pixels;
    const SharedNodes nodes{parent};
    for (int chunk = threadIdx.x - lane; chunk < size; chunk += kThreads) {
        const int p = chunk + lane, x = p - pitch.row(p) * pitch.pixels;
        const bool same_left = p < size && x < columns && x > 0 && labels[p] == labels[p - 1];
        const unsigned starts = ~__ballot_sync(kFullWarp, same_left) & bits_upto(lane);
        // A run that began in the 32 pixels before is entered through its last pixel there.
        if (p < size) parent[p] = starts ? chunk + 31 - __clz(starts) : chunk - 1;
    }
    __syncthreads();  // unions climb through parents that other warps have written
    for (int chunk = threadIdx.x - lane; chunk < size; chunk += kThreads) {
        const int p = chunk + lane, y = pitch.row(p), x = p - y * pitch.pixels, above = p - pitch.pixels;
        const bool inside = p < size && x < columns;
        const Label label = inside ? labels[p] : Label{};
        const bool linkable = inside && y > 0 && active(label);
        const bool same_left = inside && x > 0 && label == labels[p - 1];
        const bool same_up = linkable && label == labels[above];
        const unsigned left = __ballot_sync(kFullWarp, same_left), up = __ballot_sync(kFullWarp, same_up);
        if (straight_links(up, left, 0u) >> lane & 1) unite(nodes, p, above);
        if (diagonal && linkable && !same_up) {
            if (x > 0 && diagonal_links(same_up, same_left, label == labels[above - 1])) unite(nodes, p, above - 1);
            if (x + 1 < columns && diagonal_links(same_up, label == labels[p + 1], label == labels[above + 1])) {
                unite(nodes, p, above + 1);
            }
        }
    }
    __syncthreads();  // roots are final
    for (int p = threadIdx.x; p < size; p += kThreads) {
        if (p - pitch.row(p) * pitch.pixels < columns && active(labels[p])) parent[p] = find_root(nodes, p);
    }
    __syncthreads();
}

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
        const int32_t root = unite(nodes, pixel(0, along), pixel(1, position));
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
