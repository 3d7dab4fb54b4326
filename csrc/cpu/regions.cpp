// find_regions on the CPU: see kernels.h for the contract, labelling.h for the engine.
//
// A node's final entry is ~code. Code 0 is no slot; 1..num_stuff is stuff; the components of things follow in raster
// order of their first pixels. A table then maps codes to slots.
#include <algorithm>
#include <cstdint>

#include "cpu/labelling.h"
#include "kernels.h"

namespace simfast {
namespace {

using namespace cpu;

// Index of a label among the classes, or -1.
int32_t class_index(const RegionsArgs& a, int64_t label) {
    const int32_t n = a.num_stuff + a.num_things;
    for (int32_t i = 0; i < n; ++i) {
        if (a.classes[i] == label) return i;
    }
    return -1;
}

// Code of an index: stuff has one at once, things are nodes to unite (-1), anything else has no slot.
int32_t class_code(const RegionsArgs& a, int32_t index) { return index < 0 ? 0 : index < a.num_stuff ? index + 1 : -1; }

template <typename Key>
struct Classes;

template <>
struct Classes<uint8_t> {
    int8_t codes[256] = {};

    Classes(const RegionsArgs& a, int64_t low) {
        for (int32_t i = 0; i < a.num_stuff + a.num_things; ++i) {
            // Unsigned, so that a class far outside the window cannot overflow.
            const uint64_t key = static_cast<uint64_t>(a.classes[i]) - static_cast<uint64_t>(low);
            if (key < 256) codes[key] = static_cast<int8_t>(class_code(a, i));
        }
    }
    uint64_t code_mask(const uint8_t*) const { return ~uint64_t{0}; }
    int32_t code(uint8_t key) const { return codes[key]; }
};
static_assert(kMaxClasses < 127);

template <>
struct Classes<int64_t> {
    const RegionsArgs& a;

    Classes(const RegionsArgs& args, int64_t) : a(args) {}
    uint64_t code_mask(const int64_t*) const { return ~uint64_t{0}; }
    int32_t code(int64_t key) const { return class_code(a, class_index(a, key)); }
};

struct Component {
    int32_t area, class_index;
};

// The workspace, one array after the other: B forests, B * num_strips scratches, and for each image the rest.
struct Workspace {
    Forest forest;
    char* scratches;
    int32_t* slots;         // [H * W + 1 + num_stuff] by code
    Component* components;  // [H * W] in raster order
    int32_t* owner;         // [num_slots] which component has the slot, where one has

    static int64_t slots_bytes(const RegionsArgs& a) { return align_up((a.H * a.W + 1 + a.num_stuff) * 4, 64); }
    static int64_t components_bytes(const RegionsArgs& a) { return a.H * a.W * int64_t{sizeof(Component)}; }
    static int64_t owner_bytes(const RegionsArgs& a) { return regions_num_slots(a) * int64_t{sizeof(int32_t)}; }
    static int64_t bytes(const RegionsArgs& a) {
        return a.B * (forest_bytes(a.H, a.W) + a.num_strips * scratch_bytes(a.W) + slots_bytes(a) +
                      components_bytes(a) + owner_bytes(a));
    }

    Workspace(const RegionsArgs& a, int64_t b) {
        char* at = static_cast<char*>(a.workspace);
        const int64_t strips = a.B * a.num_strips;
        forest = forest_at(at + b * forest_bytes(a.H, a.W), a.H, a.W);
        at += a.B * forest_bytes(a.H, a.W);
        scratches = at + b * a.num_strips * scratch_bytes(a.W);
        at += strips * scratch_bytes(a.W);
        slots = reinterpret_cast<int32_t*>(at + b * slots_bytes(a));
        at += a.B * slots_bytes(a);
        components = reinterpret_cast<Component*>(at + b * components_bytes(a));
        at += a.B * components_bytes(a);
        owner = reinterpret_cast<int32_t*>(at + b * owner_bytes(a));
    }
    Scratch scratch(int64_t W, int64_t s) const { return scratch_at(scratches + s * scratch_bytes(W), W); }
};

int64_t label_at(const LabelMap& map, int64_t b, int64_t y, int64_t x) {
    const int64_t at = b * map.stride_b + y * map.stride_h + x * map.stride_w;
    switch (map.dtype) {
        case Dtype::u8: return static_cast<const uint8_t*>(map.data)[at];
        case Dtype::i16: return static_cast<const int16_t*>(map.data)[at];
        case Dtype::i32: return static_cast<const int32_t*>(map.data)[at];
        default: return static_cast<const int64_t*>(map.data)[at];
    }
}

// Numbers the image's components, counts areas of components and, into `areas`, of stuff. Returns the components'
// number.
int32_t measure(const RegionsArgs& a, const Workspace& ws, int64_t b, int32_t* areas) {
    const Forest& f = ws.forest;
    int32_t found = 0;
    for (int64_t y = 0; y < a.H; ++y) {
        for_each_run(f, y, [&](int64_t x0, int64_t x1, int32_t node) {
            const int32_t length = static_cast<int32_t>(x1 - x0), p = f.parent[node];
            if (p == node) {
                ws.components[found] = {length, class_index(a, label_at(a.labels, b, y, x0))};
                f.parent[node] = ~(1 + a.num_stuff + found++);
                return;
            }
            // A link points to an earlier node, so what it points to is final by now.
            const int32_t code = p < 0 ? ~p : ~f.parent[p];
            f.parent[node] = ~code;
            if (code > a.num_stuff) {
                ws.components[code - 1 - a.num_stuff].area += length;
            } else if (code > 0) {
                areas[code - 1] += length;
            }
        });
    }
    return found;
}

// Keeps each class's max_instances largest components in its slots of `areas`, largest first, by insertion;
// ws.owner[slot] is the component in it. A component does not pass one of equal area: it comes later in raster order.
void keep_largest(const RegionsArgs& a, const Workspace& ws, int32_t found, int32_t* areas) {
    for (int32_t i = 0; i < found; ++i) {
        const Component c = ws.components[i];
        if (c.class_index < a.num_stuff) continue;  // its label was changed since it was found to be a thing's
        const int64_t first = a.num_stuff + static_cast<int64_t>(c.class_index - a.num_stuff) * a.max_instances;
        int64_t slot = first + a.max_instances;
        if (c.area <= areas[slot - 1]) continue;
        for (--slot; slot > first && c.area > areas[slot - 1]; --slot) {
            areas[slot] = areas[slot - 1];
            ws.owner[slot] = ws.owner[slot - 1];
        }
        areas[slot] = c.area;
        ws.owner[slot] = i;
    }
}

}  // namespace

int64_t regions_workspace_cpu(const RegionsArgs& a) { return Workspace::bytes(a); }

SIMFAST_CLONES void regions_label_cpu(const RegionsArgs& a, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / a.num_strips, s = item % a.num_strips;
        const Workspace ws(a, b);
        const auto classes = [&](auto key, int64_t low) { return Classes<decltype(key)>(a, low); };
        label_strip_any(a.labels, b, strip_row(a.H, a.num_strips, s), strip_row(a.H, a.num_strips, s + 1),
                        a.connectivity, classes, ws.forest, ws.scratch(a.W, s));
    }
}

SIMFAST_CLONES void regions_select_cpu(const RegionsArgs& a, int64_t begin, int64_t end) {
    const int64_t num_slots = regions_num_slots(a);
    for (int64_t b = begin; b < end; ++b) {
        const Workspace ws(a, b);
        int32_t* areas = a.areas + b * num_slots;
        std::fill(areas, areas + num_slots, 0);
        join_strips(a.labels, b, a.H, a.num_strips, a.connectivity, ws.forest, ws.scratch(a.W, 0), [](int32_t) {});
        const int32_t found = measure(a, ws, b, areas);
        keep_largest(a, ws, found, areas);
        ws.slots[0] = -1;
        for (int32_t i = 0; i < a.num_stuff; ++i) ws.slots[1 + i] = i;
        int32_t* slots = ws.slots + 1 + a.num_stuff;
        std::fill(slots, slots + found, -1);
        for (int64_t slot = a.num_stuff; slot < num_slots; ++slot) {
            if (areas[slot] > 0) slots[ws.owner[slot]] = static_cast<int32_t>(slot);
        }
    }
}

SIMFAST_CLONES void regions_write_cpu(const RegionsArgs& a, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / a.num_strips, s = item % a.num_strips;
        const Workspace ws(a, b);
        write_rows(ws.forest, strip_row(a.H, a.num_strips, s), strip_row(a.H, a.num_strips, s + 1),
                   a.segments + b * a.H * a.W, [&](int32_t node) { return ws.slots[~ws.forest.parent[node]]; });
    }
}

}  // namespace simfast
