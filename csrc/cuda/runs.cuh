// The labelling engine of both region ops, for pixels in a block's shared memory.
//
// A thread owns a unit of 16 pixels of a row, and what it knows of them are bits of a word: it compares 16 labels with
// their neighbours in some ten instructions a direction, where a warp with a lane a pixel would take as many for 32.
// Nodes of the union-find are the runs of equal pixels of a row, each named by its first pixel. So no union is spent
// along rows, and between rows one a pair of runs that touch: their number follows the region borders, not the pixels.
#pragma once

#include "device.cuh"
#include "union_find.cuh"

namespace simfast {

constexpr int kUnit = 16;  // pixels; their labels' bytes are one 16-byte load

// A unit of a map whose rows are padded to whole units: pixel p is column p % (16 * units) of its row.
struct Unit {
    int p, above;                    // its first pixel, and the pixel above that (itself in the first row)
    bool top;                        // in the first row
    unsigned inside;                 // the pixels that are in the map, and those of them
    unsigned with_left, with_right;  // that have a neighbour in the map there
    unsigned end;                    // the bit behind the row's last pixel, if it is in this unit
};

// `Pitch` has the units of a row, and the row of a unit.
template <typename Pitch>
__device__ __forceinline__ Unit unit_at(int index, const Pitch& pitch, int columns) {
    const int y = pitch.row(index), x = (index - y * pitch.units) * kUnit;
    const int left_over = min(max(columns - x, 0), kUnit);
    Unit unit;
    unit.p = index * kUnit;
    unit.top = y == 0;
    unit.above = unit.top ? unit.p : unit.p - pitch.units * kUnit;
    unit.inside = 0xFFFFu >> (kUnit - left_over);
    unit.with_left = x ? unit.inside : unit.inside & ~1u;
    unit.with_right = unit.inside >> 1 | (columns - x > kUnit) << (kUnit - 1);
    unit.end = left_over < kUnit ? 1u << left_over : 0u;
    return unit;
}

__device__ __forceinline__ uint4 load_unit(const uint8_t* bytes) { return *reinterpret_cast<const uint4*>(bytes); }

// The sign bits of four bytes, put in front of the bits already in `rest`.
__device__ __forceinline__ unsigned push_signs(unsigned bytes, unsigned rest) {
    return __funnelshift_l((bytes & 0x80808080u) * 0x00204081u, rest, 4);
}

// Bit 7 of each byte that is equal in a and b; other bits are anything.
__device__ __forceinline__ unsigned equal_signs(unsigned a, unsigned b) {
    const unsigned different = a ^ b;
    return ~(((different & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | different);
}

__device__ __forceinline__ unsigned equal_bits(const uint4& a, const uint4& b) {
    unsigned bits = push_signs(equal_signs(a.w, b.w), 0);
    bits = push_signs(equal_signs(a.z, b.z), bits);
    bits = push_signs(equal_signs(a.y, b.y), bits);
    return push_signs(equal_signs(a.x, b.x), bits);
}

__device__ __forceinline__ unsigned equal_bits(const uint4& a, uint8_t byte) {
    const unsigned four = byte * 0x01010101u;
    return equal_bits(a, uint4{four, four, four, four});
}

// Which pixels of a unit equal their neighbours in every byte of their labels that was looked at: one plane of bytes
// after the other narrows it. Bits of pixels without such a neighbour are anything.
struct Alike {
    unsigned left = kFullWarp, up = kFullWarp, up_left = kFullWarp, up_right = kFullWarp;
    bool before_up = true;  // the pixel before the unit equals the one above it

    __device__ __forceinline__ void narrow(const uint8_t* plane, const Unit& unit) {
        const uint8_t *at = plane + unit.p, *over = plane + unit.above;
        const uint4 own = load_unit(at), row = load_unit(over);
        const unsigned before = at[-1], row_before = over[-1], row_after = over[kUnit];
        left &= equal_bits(own, moved_in(before, own));
        up &= equal_bits(own, row);
        up_left &= equal_bits(own, moved_in(row_before, row));
        up_right &= equal_bits(own, uint4{__funnelshift_r(row.x, row.y, 8), __funnelshift_r(row.y, row.z, 8),
                                          __funnelshift_r(row.z, row.w, 8), row.w >> 8 | row_after << 24});
        before_up = before_up && before == row_before;
    }

  private:
    static __device__ __forceinline__ uint4 moved_in(unsigned before, const uint4& own) {
        return {own.x << 8 | before, __funnelshift_l(own.x, own.y, 8), __funnelshift_l(own.y, own.z, 8),
                __funnelshift_l(own.z, own.w, 8)};
    }
};

// Unions of a unit's pixels with the row above. What a pixel's bit says follows from the labels alone, so that of two
// runs that touch, one pixel has the bit for certain, in this unit or another.
struct Links {
    unsigned straight = 0, before = 0, after = 0;

    Links() = default;
    __device__ __forceinline__ Links(const Alike& alike, const Unit& unit, unsigned active, bool diagonal) {
        if (unit.top) return;
        const unsigned left = alike.left & unit.with_left, up = alike.up & active;
        straight = straight_links<unsigned>(up, left, alike.before_up);
        if (!diagonal) return;
        before = diagonal_links(up, left, alike.up_left & unit.with_left & active);
        // Whether the run of the last pixel goes on is not looked up: at worst the next unit makes the same union.
        after = diagonal_links(up, left >> 1, alike.up_right & unit.with_right & active);
    }
};

// The runs of a map in shared memory: `starts`, a word of bits a unit and one more, and `entry`, a word a pixel.
//
// The entry of a run's first pixel is its parent << 16, with the component's area below that in a root's: adding to
// the area leaves the parent as it is. Both fit for up to 32,768 pixels, and no entry is negative: negative ones are
// the kernels' own, for runs that are no nodes.
//
// Entries are read while others store or lower them, without a barrier between: the word that is read is an old or a
// new one, both lead to the root (union_find.cuh), and area is read only after a barrier.
struct Runs {
    uint16_t* starts;
    int32_t* entry;

    __device__ __forceinline__ int32_t load(int32_t p) const { return load_volatile(entry + p) >> 16; }
    __device__ __forceinline__ int32_t fetch_min(int32_t p, int32_t value) const {
        return atomicMin(entry + p, value << 16) >> 16;
    }

    // First pixel of pixel p's run. A row's first unit has bit 0 set, which ends the way back.
    __device__ __forceinline__ int first_of(unsigned p) const {
        int unit = p / kUnit;
        unsigned bits = starts[unit] & ((2u << p % kUnit) - 1);
        while (!bits) bits = starts[--unit];
        return unit * kUnit + 31 - __clz(bits);
    }

    // Pixels of the run that starts at p. Behind a row's last pixel stands a bit, or the next row.
    __device__ __forceinline__ int length_from(unsigned p) const {
        int unit = p / kUnit;
        unsigned bits = starts[unit] & (0xFFFEu << p % kUnit);
        while (!bits) bits = starts[++unit];
        return unit * kUnit + __ffs(bits) - 1 - p;
    }

    // Sets and returns where the unit's runs start. A barrier must follow before the runs are looked up.
    __device__ __forceinline__ unsigned set_starts(const Unit& unit, unsigned left) const {
        const unsigned bits = unit.inside & ~(left & unit.with_left);
        starts[unit.p / kUnit] = static_cast<uint16_t>(bits | unit.end);
        return bits;
    }

    __device__ __forceinline__ void unite_links(const Unit& unit, const Links& links) const {
        // All links in one list, so that lanes with few of one kind go along with those that have many.
        for (unsigned rest = links.straight | links.before | links.after << kUnit; rest; rest &= rest - 1) {
            const int bit = __ffs(rest) - 1, i = bit % kUnit;
            const int beside = bit < kUnit ? -static_cast<int>(links.before >> i & 1) : 1;
            unite(*this, first_of(unit.p + i), first_of(unit.above + i + beside));
        }
    }

    // Once all unions are made: the root of run `node`, which is also left as parent in p's entry. Each step up is
    // left there at once: others who climb through p then skip it, so that long ways halve for all.
    __device__ __forceinline__ int32_t settle(int p, int node) const {
        int32_t root = load(node);
        if (root == p) return p;
        for (int32_t above;; root = above) {
            const_cast<volatile int32_t&>(entry[p]) = root << 16;  // not kept in a register until the end
            above = load(root);
            if (above == root) return root;
        }
    }

    // Pixels are looked up by way of their unit. So its first pixel has an entry even where it starts no run: this
    // settles it like the run it belongs to.
    __device__ __forceinline__ void settle_first(const Unit& unit) const {
        if (!(unit.inside & 1) || starts[unit.p / kUnit] & 1) return;
        const int node = first_of(unit.p);
        const int32_t own = load_volatile(entry + node);
        if (own < 0) {
            entry[unit.p] = own;
        } else {
            settle(unit.p, node);
        }
    }

    // After settling, and a barrier: the entry that stands for pixel i of a unit, its run's or that of the unit's first
    // pixel.
    __device__ __forceinline__ int32_t entry_of(unsigned unit, unsigned i) const {
        const unsigned bits = (starts[unit] | 1u) & ((2u << i) - 1);
        return entry[unit * kUnit + 31 - __clz(bits)];
    }
};

// A plane of bytes, or several, whose units' neighbours may be read beyond both ends.
template <int kPixels, int kPlanes>
struct Planes {
    static constexpr int kStride = kPixels + kUnit;
    alignas(16) uint8_t bytes[kUnit + kPlanes * kStride];
    __device__ __forceinline__ uint8_t* plane(int i) { return bytes + kUnit + i * kStride; }
};

}  // namespace simfast
