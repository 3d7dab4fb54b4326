// Integers that no caller should pass, and integers that another thread changes while a kernel reads them: whatever the
// values, no index may leave its array and no sum overflow, and what an output promises of itself holds.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "arrays.h"
#include "kernels.h"

namespace {

constexpr int64_t kExtremes[] = {0,         1,         2,         -1,        3,       255, 256, -128,
                                 INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 1 << 20, 4,   6,   INT64_MAX - 1};

template <typename T>
void fill(const Array<T>& x, std::mt19937& random) {
    for (int64_t i = 0; i < x.size; ++i) x.get()[i] = static_cast<T>(kExtremes[random() % std::size(kExtremes)]);
}

// Every integer input of every op; and its passes, in order.
template <typename Label>
struct Ops {
    static constexpr int64_t kB = 2, kH = 9, kW = 70, kPixels = kH * kW, kStuff = 2, kThings = 2, kMax = 3;
    static constexpr int64_t kSlots = kStuff + kThings * kMax, kC = 5, kN = 37, kK = 4, kT = 41, kD = 11, kR = 20;

    Dtype dtype;
    Array<Label> labels{kB * kPixels};
    Array<int64_t> classes{kN}, starts{kK}, filled{kK}, sizes{kK}, written{kK}, slot_rings{kSlots},
        slot_classes{kSlots}, rows{kB * kSlots}, rings{kB * kSlots};
    Array<int32_t> areas{kB * kSlots}, counts{kB * kSlots};
    Array<float> features{kB * kC * kPixels}, queries{kN * kD}, storage{kT * kD}, grads{kB * kSlots * kC};

    explicit Ops(Dtype label_dtype) : dtype(label_dtype) {
        for (const auto* x : {&features, &queries, &storage, &grads}) {
            for (int64_t i = 0; i < x->size; ++i) x->get()[i] = static_cast<float>(i % 5);
        }
    }

    void set(std::mt19937& random) {
        fill(labels, random);
        for (const auto* x : {&classes, &starts, &filled, &sizes, &written, &slot_rings, &slot_classes, &rows, &rings})
            fill(*x, random);
        fill(areas, random);
        fill(counts, random);
    }

    LabelMap map() const { return {labels.get(), dtype, kPixels, kW, 1}; }

    void run() const {
        for (const int64_t strips : {int64_t{1}, kH}) {
            components(strips);
            regions(strips);
        }
        for (const Layout layout : {Layout::planes, Layout::pixels}) means(layout);
        nearest(true);
        nearest(false);
        slots();
        write_rings();
    }

    void components(int64_t strips) const {
        ComponentsArgs a{};
        a.labels = map(), a.B = kB, a.H = kH, a.W = kW;
        a.background = 255, a.connectivity = 8, a.num_strips = static_cast<int32_t>(strips);
        Array<int32_t> ids(kB * kPixels), num(kB);
        a.ids = ids.get(), a.counts = num.get();
        Array<char> space(components_workspace_cpu(a));
        a.workspace = space.get();
        in_two_threads(kB * strips, [&](int64_t b, int64_t e) { components_label_cpu(a, b, e); });
        in_two_threads(kB, [&](int64_t b, int64_t e) { components_join_cpu(a, b, e); });
        in_two_threads(kB * strips, [&](int64_t b, int64_t e) { components_number_cpu(a, b, e); });
        in_two_threads(kB * strips, [&](int64_t b, int64_t e) { components_write_cpu(a, b, e); });
        for (int64_t i = 0; i < ids.size; ++i) {
            require(ids.get()[i] >= 0 && ids.get()[i] <= num.get()[i / kPixels], "an id beyond the count");
        }
    }

    void regions(int64_t strips) const {
        RegionsArgs a{};
        a.labels = map(), a.B = kB, a.H = kH, a.W = kW;
        const int64_t ids[] = {0, INT64_MIN, 1, -1};
        std::copy_n(ids, kStuff + kThings, a.classes);
        a.num_stuff = kStuff, a.num_things = kThings, a.max_instances = kMax, a.connectivity = 8;
        a.num_strips = static_cast<int32_t>(strips);
        Array<int32_t> segments(kB * kPixels), found(kB * kSlots);
        a.segments = segments.get(), a.areas = found.get();
        Array<char> space(regions_workspace_cpu(a));
        a.workspace = space.get();
        in_two_threads(kB * strips, [&](int64_t b, int64_t e) { regions_label_cpu(a, b, e); });
        in_two_threads(kB, [&](int64_t b, int64_t e) { regions_select_cpu(a, b, e); });
        in_two_threads(kB * strips, [&](int64_t b, int64_t e) { regions_write_cpu(a, b, e); });
        std::vector<int32_t> counted(found.size, 0);
        for (int64_t i = 0; i < segments.size; ++i) {
            const int32_t slot = segments.get()[i];
            require(slot >= -1 && slot < kSlots, "a slot that does not exist");
            if (slot >= 0) ++counted[i / kPixels * kSlots + slot];
        }
        require(std::equal(counted.begin(), counted.end(), found.get()), "areas differ from the segments");
    }

    void means(Layout layout) const {
        const bool planes = layout == Layout::planes;
        Array<int32_t> num(kB * kSlots);
        Array<float> result(kB * kSlots * kC), gradient(kB * kC * kPixels);
        SegmentMeanArgs a{};
        a.features = features.get(), a.features_dtype = Dtype::f32, a.layout = layout;
        a.stride_b = kC * kPixels, a.stride_c = planes ? kPixels : 1, a.stride_p = planes ? 1 : kC;
        a.segments = map(), a.B = kB, a.C = kC, a.H = kH, a.W = kW, a.num_segments = kSlots;
        a.counts = num.get(), a.means = result.get();
        Array<char> space(segment_mean_workspace_cpu(a));
        a.workspace = space.get();
        in_two_threads(kB, [&](int64_t b, int64_t e) { segment_mean_runs_cpu(a, b, e); });
        in_two_threads(kB * kC, [&](int64_t b, int64_t e) { segment_mean_sum_cpu(a, b, e); });
        SegmentMeanBackwardArgs g{};
        g.grad_means = grads.get(), g.counts = counts.get();  // not those that forward wrote
        g.segments = map(), g.B = kB, g.C = kC, g.H = kH, g.W = kW, g.num_segments = kSlots;
        g.grad_features = gradient.get(), g.features_dtype = Dtype::f32, g.layout = layout;
        g.stride_b = a.stride_b, g.stride_c = a.stride_c, g.stride_p = a.stride_p;
        Array<char> backward_space(segment_mean_backward_workspace_cpu(g));
        g.workspace = backward_space.get();
        in_two_threads(kB, [&](int64_t b, int64_t e) { segment_mean_backward_runs_cpu(g, b, e); });
        in_two_threads(kB * (planes ? kC : kH),
                       [&](int64_t b, int64_t e) { segment_mean_backward_write_cpu(g, b, e); });
    }

    void nearest(bool ragged) const {
        Array<float> distances(kN), gradient(kN * kD);
        Array<int64_t> found(kN);
        Array<int8_t> signs(kN * kD);
        NearestArgs a{};
        a.queries = queries.get(), a.bank = storage.get(), a.queries_dtype = a.bank_dtype = Dtype::f32;
        a.query_stride_n = a.bank_stride_t = kD, a.query_stride_d = a.bank_stride_d = 1;
        a.classes = classes.get(), a.filled = filled.get(), a.starts = ragged ? starts.get() : nullptr;
        a.N = kN, a.K = kK, a.T = kT, a.D = kD, a.R = ragged ? kR : kT / kK;
        a.distances = distances.get(), a.rows = found.get(), a.signs = signs.get();
        Array<char> space(nearest_workspace_cpu(a));
        a.workspace = space.get();
        nearest_group_cpu(a, 0, 1);
        in_two_threads(kNearestShares, [&](int64_t b, int64_t e) { nearest_compare_cpu(a, b, e); });
        in_two_threads(kN, [&](int64_t b, int64_t e) { nearest_pick_cpu(a, b, e); });
        for (int64_t n = 0; n < kN; ++n) {
            require(found.get()[n] >= -1 && found.get()[n] < a.R, "a row that no class has");
        }
        NearestBackwardArgs g{};
        g.grad = distances.get(), g.grad_stride = 1, g.rows = rows.get(), g.signs = signs.get();
        g.N = std::min(kN, rows.size), g.D = kD, g.grad_queries = gradient.get(), g.queries_dtype = Dtype::f32;
        in_two_threads(g.N, [&](int64_t b, int64_t e) { nearest_backward_cpu(g, b, e); });
    }

    void slots() const {
        const int64_t G = 3, L = 4;
        Array<int64_t> chosen(kB * kSlots);
        SelectRingsArgs a{};
        a.areas = areas.get(), a.slot_rings = slot_rings.get(), a.slot_classes = slot_classes.get();
        a.logits = queries.get(), a.logits_dtype = Dtype::f32, a.stride_n = L, a.stride_l = 1;
        a.B = kB, a.S = kSlots, a.G = G, a.L = L;
        a.rings = chosen.get();
        in_two_threads(kB * kSlots, [&](int64_t b, int64_t e) { select_rings_cpu(a, b, e); });
        Array<float> stuff(1), instances(1), gradient(kB * kSlots);
        MatchingLossesArgs m{};
        m.distances = features.get(), m.dtype = Dtype::f32, m.rows = rows.get(), m.rings = rings.get();
        m.B = kB, m.num_stuff = kStuff, m.num_things = kThings, m.max_instances = kMax, m.divisor = 4;
        m.stuff = stuff.get(), m.instances = instances.get();
        matching_losses_cpu(m, 0, 1);
        MatchingLossesBackwardArgs g{};
        g.grad_stuff = stuff.get(), g.grad_instances = instances.get(), g.dtype = Dtype::f32;
        g.rows = rows.get(), g.rings = rings.get();
        g.B = kB, g.num_stuff = kStuff, g.num_things = kThings, g.max_instances = kMax, g.divisor = 4;
        g.grad_distances = gradient.get();
        in_two_threads(kB, [&](int64_t b, int64_t e) { matching_losses_backward_cpu(g, b, e); });
    }

    void write_rings() const {
        RingWriteArgs a{};
        a.vectors = queries.get(), a.vectors_stride = kD;
        a.classes = classes.get(), a.starts = starts.get(), a.sizes = sizes.get();
        a.N = kN, a.K = kK, a.D = kD, a.T = kT;
        a.storage = storage.get(), a.storage_dtype = Dtype::f32, a.written = written.get();
        ring_write_cpu(a, 0, kK);  // rings that bad values make overlap are one thread's
    }
};

template <typename Label>
void run_bad_values(Dtype dtype, std::mt19937& random) {
    Ops<Label> ops(dtype);
    for (int round = 0; round < 40; ++round) {
        ops.set(random);
        ops.run();
    }
}

// Labels flip between two whole maps and single values, the other integers between anything.
template <typename Label>
void run_concurrent_changes(Dtype dtype, int rounds) {
    Ops<Label> ops(dtype);
    std::mt19937 random(1);
    ops.set(random);
    std::atomic<bool> stop{false};
    std::thread other([&] {
        std::mt19937 own(2);
        while (!stop) {
            ops.set(own);
            for (int64_t i = 0; i < ops.labels.size; ++i) ops.labels.get()[i] = static_cast<Label>(i / 3 % 3);
        }
    });
    for (int round = 0; round < rounds; ++round) ops.run();
    stop = true;
    other.join();
}

}  // namespace

void check_bad_values() {
    std::mt19937 random(0);
    run_bad_values<uint8_t>(Dtype::u8, random);
    run_bad_values<int16_t>(Dtype::i16, random);
    run_bad_values<int32_t>(Dtype::i32, random);
    run_bad_values<int64_t>(Dtype::i64, random);
}

void check_concurrent_changes() {
#ifndef __SANITIZE_THREAD__  // it would report the changes themselves
    run_concurrent_changes<uint8_t>(Dtype::u8, 150);
    run_concurrent_changes<int64_t>(Dtype::i64, 150);
#endif
}
