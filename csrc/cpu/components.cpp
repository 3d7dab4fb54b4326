// connected_components on the CPU: see kernels.h for the contract, labelling.h for the engine.
#include <cstdint>

#include "cpu/labelling.h"
#include "kernels.h"

namespace simfast {
namespace {

using namespace cpu;

// Keys of one value, the background, form no components: code 0.
template <typename Key>
struct Background {
    Key repeated[64];
    bool present;

    Background(int64_t background, int64_t low) {
        const uint64_t key = static_cast<uint64_t>(background) - static_cast<uint64_t>(low);
        present = sizeof(Key) == 8 || key < 256;
        for (Key& k : repeated) k = static_cast<Key>(key);
    }
    uint64_t code_mask(const Key* keys) const { return present ? equal_mask(keys, repeated) : 0; }
    int32_t code(Key) const { return 0; }
};

// The workspace: B forests, B * num_strips scratches, B * num_strips numbers of components.
struct Workspace {
    Forest forest;
    char* scratches;
    int32_t* components;

    Workspace(const ComponentsArgs& a, int64_t b) {
        char* at = static_cast<char*>(a.workspace);
        const int64_t each = forest_bytes(a.H, a.W), strips = a.B * a.num_strips;
        forest = forest_at(at + b * each, a.H, a.W);
        scratches = at + a.B * each + b * a.num_strips * scratch_bytes(a.W);
        components = reinterpret_cast<int32_t*>(at + a.B * each + strips * scratch_bytes(a.W)) + b * a.num_strips;
    }
    Scratch scratch(int64_t W, int64_t s) const { return scratch_at(scratches + s * scratch_bytes(W), W); }
};

// `yes` or `no` without a branch, which compilers make of ?: here and a map of short runs mispredicts.
inline int32_t select(bool condition, int32_t yes, int32_t no) {
    const int32_t mask = -static_cast<int32_t>(condition);
    return (yes & mask) | (no & ~mask);
}

}  // namespace

int64_t components_workspace_cpu(const ComponentsArgs& a) {
    return a.B * (forest_bytes(a.H, a.W) + a.num_strips * (scratch_bytes(a.W) + int64_t{sizeof(int32_t)}));
}

SIMFAST_CLONES void components_label_cpu(const ComponentsArgs& a, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / a.num_strips, s = item % a.num_strips;
        const Workspace ws(a, b);
        const auto classes = [&](auto key, int64_t low) { return Background<decltype(key)>(a.background, low); };
        ws.components[s] =
            label_strip_any(a.labels, b, strip_row(a.H, a.num_strips, s), strip_row(a.H, a.num_strips, s + 1),
                            a.connectivity, classes, ws.forest, ws.scratch(a.W, s));
    }
}

// Leaves in components[s] how many components of the image have their first pixel in an earlier strip.
SIMFAST_CLONES void components_join_cpu(const ComponentsArgs& a, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
        const Workspace ws(a, b);
        join_strips(a.labels, b, a.H, a.num_strips, a.connectivity, ws.forest, ws.scratch(a.W, 0), [&](int32_t root) {
            int64_t s = 0;
            while (root >= strip_row(a.H, a.num_strips, s + 1) * a.W) ++s;
            --ws.components[s];
        });
        int32_t before = 0;
        for (int64_t s = 0; s < a.num_strips; ++s) {
            const int32_t own = ws.components[s];
            ws.components[s] = before;
            before += own;
        }
        a.counts[b] = before;
    }
}

// Replaces every root by its final id, and every other node of the strip by its root's id or, if that root lies in an
// earlier strip (which may be being numbered right now), leaves the link. An image of one strip is numbered as it is
// written: one walk over the nodes less.
SIMFAST_CLONES void components_number_cpu(const ComponentsArgs& a, int64_t begin, int64_t end) {
    if (a.num_strips == 1) return;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / a.num_strips, s = item % a.num_strips;
        const Workspace ws(a, b);
        const Forest& f = ws.forest;
        const int64_t y0 = strip_row(a.H, a.num_strips, s), y1 = strip_row(a.H, a.num_strips, s + 1);
        const int32_t first = static_cast<int32_t>(y0 * a.W);
        int32_t last = f.row_node[y1 - 1];
        for (int64_t w = 0; w < f.words; ++w) last += std::popcount(f.starts[(y1 - 1) * f.words + w]);
        int32_t id = ws.components[s];
        for (int32_t n = first; n < last; ++n) {
            const int32_t p = f.parent[n];
            if (p < first) continue;  // final already, or rooted in an earlier strip
            id += p == n;
            f.parent[n] = select(p == n, ~id, f.parent[p]);
        }
    }
}

SIMFAST_CLONES void components_write_cpu(const ComponentsArgs& a, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / a.num_strips, s = item % a.num_strips;
        const Workspace ws(a, b);
        int32_t* parent = ws.forest.parent;
        int32_t* ids = a.ids + b * a.H * a.W;
        if (a.num_strips == 1) {
            int32_t last_id = 0;
            write_rows(ws.forest, 0, a.H, ids, [&](int32_t node) {
                const int32_t p = parent[node];
                if (p < 0) return ~p;  // background
                last_id += p == node;
                parent[node] = select(p == node, ~last_id, parent[p]);
                return ~parent[node];
            });
            continue;
        }
        write_rows(ws.forest, strip_row(a.H, a.num_strips, s), strip_row(a.H, a.num_strips, s + 1), ids,
                   [&](int32_t node) {
                       int32_t p = parent[node];
                       while (p >= 0) p = parent[p];
                       return ~p;
                   });
    }
}

}  // namespace simfast
