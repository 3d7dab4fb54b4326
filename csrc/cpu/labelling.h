// The labelling engine of the CPU kernels: maximal runs of equal labels in a row are the nodes of a union-find forest.
//
// A row is turned into bit masks, 64 pixels a word: where a run starts, where a pixel equals the one above it. Unions
// are needed only at a few of these bits, so the cost follows the number of region borders rather than pixels. Nodes
// are numbered in raster order and the smaller root wins, so a component's root is the run that holds its first pixel.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/clones.h"
#include "kernels.h"

namespace simfast::cpu {

inline int64_t align_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// ---------------------------------------------------------------------------------------------------------------------
// Union-find with the smaller root winning: parent[n] <= n for a live node. A negative entry ~code is final: the node
// takes part in no union (background, stuff), or has been numbered.
// ---------------------------------------------------------------------------------------------------------------------

inline int32_t find(int32_t* parent, int32_t n) {
    while (parent[n] != n) n = parent[n] = parent[parent[n]];
    return n;
}

// Returns the root that ceased to be one, or -1 if both already had the same root.
inline int32_t unite(int32_t* parent, int32_t a, int32_t b) {
    a = find(parent, a);
    b = find(parent, b);
    if (a == b) return -1;
    const int32_t low = a < b ? a : b, high = a < b ? b : a;
    parent[high] = low;
    return high;
}

// ---------------------------------------------------------------------------------------------------------------------
// What one image leaves in the workspace.
// ---------------------------------------------------------------------------------------------------------------------

struct Forest {
    int64_t W, words;   // words of 64 pixels in a row
    uint64_t* starts;   // [H, words] bit x: pixel x starts a run
    int32_t* row_node;  // [H] node of the first run of each row
    int32_t* parent;    // [H * W] nodes of the strip from row r are numbered from r * W; most entries stay untouched
};

// Room for one strip's rows while they are read: keys of two rows with a word of padding on both sides, and the number
// of runs before each word of either row.
struct Scratch {
    char* keys[2];
    int32_t* base[2];
};

inline int64_t forest_bytes(int64_t H, int64_t W) {
    return align_up(H * ((W + 63) / 64) * 8, 64) + align_up(H * 4, 64) + align_up(H * W * 4, 64);
}

inline int64_t scratch_bytes(int64_t W) {
    const int64_t words = (W + 63) / 64;
    return 2 * ((words + 2) * 64 * 8 + align_up(words * 4, 64));
}

inline Forest forest_at(char* at, int64_t H, int64_t W) {
    Forest f{W, (W + 63) / 64, nullptr, nullptr, nullptr};
    f.starts = reinterpret_cast<uint64_t*>(at);
    at += align_up(H * f.words * 8, 64);
    f.row_node = reinterpret_cast<int32_t*>(at);
    at += align_up(H * 4, 64);
    f.parent = reinterpret_cast<int32_t*>(at);
    return f;
}

inline Scratch scratch_at(char* at, int64_t W) {
    const int64_t words = (W + 63) / 64, key_row = (words + 2) * 64 * 8, base_row = align_up(words * 4, 64);
    return Scratch{
        {at + 64 * 8, at + key_row + 64 * 8},
        {reinterpret_cast<int32_t*>(at + 2 * key_row), reinterpret_cast<int32_t*>(at + 2 * key_row + base_row)}};
}

inline int64_t strip_row(int64_t H, int64_t num_strips, int64_t s) { return H * s / num_strips; }

// ---------------------------------------------------------------------------------------------------------------------
// Keys. Rows are copied once, dense and padded. Labels of any dtype that lie in a window of 256 values starting at
// `low` become 8-bit keys (19 classes, 255, or -1 with small classes); a strip with other values is read as 64-bit
// keys.
// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
bool load_row_as(const LabelMap& map, int64_t offset, int64_t W, int64_t low, uint8_t* keys) {
    const T* row = static_cast<const T*>(map.data) + offset;
    const int64_t step = map.stride_w;
    uint64_t outside = 0;
    if (step == 1) {
        for (int64_t x = 0; x < W; ++x) {
            const uint64_t key = static_cast<uint64_t>(row[x]) - static_cast<uint64_t>(low);
            keys[x] = static_cast<uint8_t>(key);
            outside |= key;
        }
    } else {
        for (int64_t x = 0; x < W; ++x) {
            const uint64_t key = static_cast<uint64_t>(row[x * step]) - static_cast<uint64_t>(low);
            keys[x] = static_cast<uint8_t>(key);
            outside |= key;
        }
    }
    return (outside & ~uint64_t{255}) == 0;
}

template <typename T>
bool load_row_as(const LabelMap& map, int64_t offset, int64_t W, int64_t, int64_t* keys) {
    const T* row = static_cast<const T*>(map.data) + offset;
    for (int64_t x = 0; x < W; ++x) keys[x] = static_cast<int64_t>(row[x * map.stride_w]);
    return true;
}

// Fills keys[0..W) with row y of image b less `low`. Returns false if a label does not fit the key. `low` is 0 for
// 64-bit keys; for 8-bit ones the difference is taken unsigned, so that no label overflows.
template <typename Key>
bool load_row(const LabelMap& map, int64_t b, int64_t y, int64_t W, int64_t low, Key* keys) {
    const int64_t offset = b * map.stride_b + y * map.stride_h;
    switch (map.dtype) {
        case Dtype::u8: return load_row_as<uint8_t>(map, offset, W, low, keys);
        case Dtype::i16: return load_row_as<int16_t>(map, offset, W, low, keys);
        case Dtype::i32: return load_row_as<int32_t>(map, offset, W, low, keys);
        default: return load_row_as<int64_t>(map, offset, W, low, keys);
    }
}

// Bit i: a[i] == b[i].
template <typename Key>
inline uint64_t equal_mask(const Key* a, const Key* b) {
    uint64_t mask = 0;
    for (int group = 0; group < 8; ++group) {
        // Eight comparisons as bytes of 0 or 1; the product gathers byte i's lowest bit into bit 56 + i.
        uint8_t same[8];
        for (int i = 0; i < 8; ++i) same[i] = a[8 * group + i] == b[8 * group + i];
        uint64_t bytes;
        std::memcpy(&bytes, same, 8);
        if constexpr (std::endian::native == std::endian::big) bytes = __builtin_bswap64(bytes);
        mask |= ((bytes * 0x0102040810204080u) >> 56) << (8 * group);
    }
    return mask;
}

#if defined(__SSE2__)
template <>
inline uint64_t equal_mask<uint8_t>(const uint8_t* a, const uint8_t* b) {
    uint64_t mask = 0;
    for (int q = 0; q < 4; ++q) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a) + q);
        const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b) + q);
        mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(x, y)))) << (16 * q);
    }
    return mask;
}
#endif

// Bits of word w that are pixels of the row.
inline uint64_t valid_mask(int64_t W, int64_t w) {
    return W - w * 64 >= 64 ? ~uint64_t{0} : (uint64_t{1} << (W - w * 64)) - 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// One row: its runs, and its links to the row above.
// ---------------------------------------------------------------------------------------------------------------------

// Writes in base[w] the number of the row's runs before word w. Returns the number of runs.
inline int32_t count_runs(const Forest& f, const uint64_t* starts, int32_t* base) {
    int32_t runs = 0;
    for (int64_t w = 0; w < f.words; ++w) {
        base[w] = runs;
        runs += std::popcount(starts[w]);
    }
    return runs;
}

// The same, and writes the start bits.
template <typename Key>
int32_t find_runs(const Key* keys, const Forest& f, uint64_t* starts, int32_t* base) {
    for (int64_t w = 0; w < f.words; ++w) {
        starts[w] = ~equal_mask(keys + w * 64, keys + w * 64 - 1) & valid_mask(f.W, w);
    }
    starts[0] |= 1;
    return count_runs(f, starts, base);
}

struct Row {
    const uint64_t* starts;
    const int32_t* base;
    int32_t first;  // node of the first run

    int32_t node(int64_t x) const {
        const uint64_t upto = starts[x >> 6] & (~uint64_t{0} >> (63 - (x & 63)));
        return first + base[x >> 6] + std::popcount(upto) - 1;
    }
};

// Unites the runs of a row with those of equal label above; calls lost(root) for every root that ceased to be one.
template <typename Key, typename Lost>
void link_rows(const Key* keys, const Key* above_keys, const Row& row, const Row& above, const Forest& f,
               int32_t connectivity, const Lost& lost) {
    uint64_t carry = 0;  // did the last pixel of the word before equal the one above it?
    for (int64_t w = 0; w < f.words; ++w) {
        const Key* cur = keys + w * 64;
        const Key* up = above_keys + w * 64;
        const uint64_t valid = valid_mask(f.W, w), start = row.starts[w];
        const uint64_t same = equal_mask(cur, up) & valid;
        // Within a run, equal pixels above next to one another belong to one run above: the first of them is enough.
        const uint64_t straight = same & (start | ~((same << 1) | carry));
        carry = same >> 63;
        const auto unite_all = [&](uint64_t bits, int64_t shift) {
            for (; bits; bits &= bits - 1) {
                const int64_t x = w * 64 + std::countr_zero(bits);
                const int32_t node = row.node(x), other = above.node(x + shift);
                // Equal keys are of one kind, but where labels were changed between two looks at them.
                if (f.parent[node] < 0 || f.parent[other] < 0) continue;
                const int32_t root = unite(f.parent, node, other);
                if (root >= 0) lost(root);
            }
        };
        unite_all(straight, 0);
        if (connectivity != 8 || same == valid) continue;
        // A diagonal adds something only at an end of a run, and only where the pixel straight above differs.
        uint64_t left = start & ~same & valid;
        if (w == 0) left &= ~uint64_t{1};
        if (left) unite_all(left & equal_mask(cur, up - 1), -1);
        uint64_t right = ~same & valid & ~equal_mask(cur, cur + 1);
        if (f.W - w * 64 <= 64) right &= valid >> 1;
        if (right) unite_all(right & equal_mask(cur, up + 1), 1);
    }
}

// Labels the rows of strip s of image b. `Classes` answers for a key which code its runs get at once (>= 0), or -1 if
// they are nodes to unite; code_mask() says where code() can be >= 0. Returns the strip's number of components, or -1
// if a label does not fit the key.
template <typename Key, typename Classes>
int32_t label_strip(const LabelMap& map, int64_t b, int64_t y0, int64_t y1, int64_t low, int32_t connectivity,
                    const Classes& classes, const Forest& f, const Scratch& scratch) {
    int32_t next = static_cast<int32_t>(y0 * f.W), components = 0;
    Row above{};
    for (int64_t y = y0; y < y1; ++y) {
        Key* keys = reinterpret_cast<Key*>(scratch.keys[y & 1]);
        if (!load_row(map, b, y, f.W, low, keys)) return -1;
        uint64_t* starts = f.starts + y * f.words;
        int32_t* base = scratch.base[y & 1];
        const int32_t runs = find_runs(keys, f, starts, base);
        for (int32_t n = next; n < next + runs; ++n) f.parent[n] = n;
        const Row row{starts, base, next};
        f.row_node[y] = next;
        next += runs;
        components += runs;
        for (int64_t w = 0; w < f.words; ++w) {
            if (!starts[w]) continue;
            uint64_t bits = starts[w] & classes.code_mask(keys + w * 64);
            for (; bits; bits &= bits - 1) {
                const int64_t x = w * 64 + std::countr_zero(bits);
                const int32_t code = classes.code(keys[x]);
                if (code < 0) continue;
                f.parent[row.node(x)] = ~code;
                --components;
            }
        }
        if (y > y0) {
            const Key* above_keys = reinterpret_cast<const Key*>(scratch.keys[(y - 1) & 1]);
            link_rows(keys, above_keys, row, above, f, connectivity, [&](int32_t) { --components; });
        }
        above = row;
    }
    return components;
}

// label_strip with the narrowest keys that fit. make_classes(key, low) returns the class table for that kind of key.
template <typename MakeClasses>
int32_t label_strip_any(const LabelMap& map, int64_t b, int64_t y0, int64_t y1, int32_t connectivity,
                        const MakeClasses& make_classes, const Forest& f, const Scratch& scratch) {
    for (const int64_t low : {int64_t{0}, int64_t{-128}}) {
        const auto classes = make_classes(uint8_t{}, low);
        const int32_t components = label_strip<uint8_t>(map, b, y0, y1, low, connectivity, classes, f, scratch);
        if (components >= 0) return components;
    }
    return label_strip<int64_t>(map, b, y0, y1, 0, connectivity, make_classes(int64_t{}, 0), f, scratch);
}

// Links the first row of every strip but the first to the row above it; lost(root) as in link_rows. The labels are read
// a second time: what lies where is told by the runs as they were found, so that no label, whoever may have changed it
// meanwhile, leads to a node that does not exist.
template <typename Lost>
void join_strips(const LabelMap& map, int64_t b, int64_t H, int64_t num_strips, int32_t connectivity, const Forest& f,
                 const Scratch& scratch, const Lost& lost) {
    for (int64_t s = 1; s < num_strips; ++s) {
        const int64_t y = strip_row(H, num_strips, s);
        Row rows[2];
        for (int i = 0; i < 2; ++i) {
            int64_t* keys = reinterpret_cast<int64_t*>(scratch.keys[i]);
            load_row(map, b, y - 1 + i, f.W, 0, keys);
            const uint64_t* starts = f.starts + (y - 1 + i) * f.words;
            count_runs(f, starts, scratch.base[i]);
            rows[i] = Row{starts, scratch.base[i], f.row_node[y - 1 + i]};
        }
        link_rows(reinterpret_cast<const int64_t*>(scratch.keys[1]), reinterpret_cast<const int64_t*>(scratch.keys[0]),
                  rows[1], rows[0], f, connectivity, lost);
    }
}

// Calls visit(x0, x1, node) for every run of row y, from left to right.
template <typename Visit>
void for_each_run(const Forest& f, int64_t y, const Visit& visit) {
    const uint64_t* starts = f.starts + y * f.words;
    int32_t node = f.row_node[y];
    int64_t x0 = 0;
    for (int64_t w = 0; w < f.words; ++w) {
        for (uint64_t bits = w ? starts[w] : starts[w] & ~uint64_t{1}; bits; bits &= bits - 1) {
            const int64_t x1 = w * 64 + std::countr_zero(bits);
            visit(x0, x1, node++);
            x0 = x1;
        }
    }
    visit(x0, f.W, node);
}

// Writes value(node) over every run of rows [y0, y1) of one image's map [H, W].
template <typename Value>
void write_rows(const Forest& f, int64_t y0, int64_t y1, int32_t* map, const Value& value) {
    constexpr int64_t kBlock = 8;
    for (int64_t y = y0; y < y1; ++y) {
        int32_t* row = map + y * f.W;
        if (y + 1 == y1) {
            for_each_run(f, y, [&](int64_t x0, int64_t x1, int32_t node) {
                const int32_t v = value(node);
                for (int64_t x = x0; x < x1; ++x) row[x] = v;
            });
        } else {
            // Whole blocks: what runs over a run's end is overwritten by the runs after it, in this row or the next.
            // Without it a map of short runs would cost a mispredicted branch each. (A last row has no next: exact,
            // above.)
            const int64_t room = (y1 - y) * f.W;
            for_each_run(f, y, [&](int64_t x0, int64_t x1, int32_t node) {
                const int32_t v = value(node);
                int64_t x = x0;
                for (; x < x1 && x + kBlock <= room; x += kBlock) {
                    for (int64_t i = 0; i < kBlock; ++i) row[x + i] = v;
                }
                for (; x < x1; ++x) row[x] = v;
            });
        }
    }
}

}  // namespace simfast::cpu
