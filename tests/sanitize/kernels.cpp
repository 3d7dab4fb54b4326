// Runs every CPU kernel under a sanitizer (see tests/test_build.py): arrays of exactly the promised size, workspaces
// full of junk, ranges in two threads. Results must not depend on how the work is cut; components are checked by flood
// fill. What values no caller should pass, and others that change while a kernel runs, are in hostile.cpp.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "arrays.h"
#include "kernels.h"

namespace {

void check_components(const LabelMap& labels, const Shape& s, int32_t connectivity,
                      const std::function<int64_t(int64_t)>& at) {
    const int64_t pixels = s.H * s.W;
    std::vector<Array<int32_t>> results;
    for (const int64_t strips : {int64_t{1}, (s.H + 1) / 2, s.H}) {
        Array<int32_t> ids(s.B * pixels), counts(s.B);
        ComponentsArgs a{};
        a.labels = labels, a.B = s.B, a.H = s.H, a.W = s.W;
        a.background = 255, a.connectivity = connectivity, a.num_strips = static_cast<int32_t>(strips);
        a.ids = ids.get(), a.counts = counts.get();
        Array<char> space(components_workspace_cpu(a));
        a.workspace = space.get();
        in_two_threads(s.B * strips, [&](int64_t b, int64_t e) { components_label_cpu(a, b, e); });
        in_two_threads(s.B, [&](int64_t b, int64_t e) { components_join_cpu(a, b, e); });
        in_two_threads(s.B * strips, [&](int64_t b, int64_t e) { components_number_cpu(a, b, e); });
        in_two_threads(s.B * strips, [&](int64_t b, int64_t e) { components_write_cpu(a, b, e); });
        results.push_back(std::move(ids));
        require(results.back() == results.front(), "components depend on the strips");
    }
    const int32_t* ids = results[0].get();
    std::vector<int64_t> stack;
    for (int64_t b = 0; b < s.B; ++b) {
        std::vector<int32_t> expected(pixels, 0);
        int32_t id = 0;
        for (int64_t first = 0; first < pixels; ++first) {
            const int64_t label = at(b * pixels + first);
            if (label == 255 || expected[first]) continue;
            expected[first] = ++id;
            stack.assign(1, first);
            while (!stack.empty()) {
                const int64_t p = stack.back(), y = p / s.W, x = p % s.W;
                stack.pop_back();
                for (int64_t v = y - 1; v <= y + 1; ++v) {
                    for (int64_t u = x - 1; u <= x + 1; ++u) {
                        if (u < 0 || v < 0 || u >= s.W || v >= s.H || (connectivity == 4 && u != x && v != y)) continue;
                        const int64_t q = v * s.W + u;
                        if (expected[q] || at(b * pixels + q) != label) continue;
                        expected[q] = id;
                        stack.push_back(q);
                    }
                }
            }
        }
        require(!std::memcmp(expected.data(), ids + b * pixels, pixels * 4), "components differ from a flood fill");
    }
}

void check_regions(const LabelMap& labels, const Shape& s, int32_t connectivity) {
    std::vector<Array<int32_t>> results;
    for (const int64_t strips : {int64_t{1}, s.H}) {
        RegionsArgs a{};
        a.labels = labels, a.B = s.B, a.H = s.H, a.W = s.W;
        for (int64_t i = 0; i < 6; ++i) a.classes[i] = i;
        a.classes[6] = -1;
        a.num_stuff = 3, a.num_things = 4, a.max_instances = 3, a.connectivity = connectivity;
        a.num_strips = static_cast<int32_t>(strips);
        Array<int32_t> segments(s.B * s.H * s.W), areas(s.B * regions_num_slots(a));
        a.segments = segments.get(), a.areas = areas.get();
        Array<char> space(regions_workspace_cpu(a));
        a.workspace = space.get();
        in_two_threads(s.B * strips, [&](int64_t b, int64_t e) { regions_label_cpu(a, b, e); });
        in_two_threads(s.B, [&](int64_t b, int64_t e) { regions_select_cpu(a, b, e); });
        in_two_threads(s.B * strips, [&](int64_t b, int64_t e) { regions_write_cpu(a, b, e); });
        std::vector<int32_t> counted(areas.size, 0);
        for (int64_t i = 0; i < segments.size; ++i) {
            const int32_t slot = segments.get()[i];
            if (slot >= 0) ++counted[i / (s.H * s.W) * regions_num_slots(a) + slot];
        }
        require(!std::memcmp(counted.data(), areas.get(), areas.size * 4), "areas differ from the segments");
        results.push_back(std::move(segments));
        require(results.back() == results.front(), "regions depend on the strips");
    }
}

template <typename T>
void check_means(const LabelMap& segments, const Shape& s, Dtype dtype, Layout layout, int64_t C) {
    const int64_t pixels = s.H * s.W, S = 5, size = s.B * C * pixels, sum_bytes = dtype == Dtype::f64 ? 8 : 4;
    Array<T> features(size);
    for (int64_t i = 0; i < size; ++i) features.get()[i] = static_cast<T>(i % 7);
    Array<int32_t> counts(s.B * S);
    Array<char> means(s.B * S * C * sum_bytes);
    const int64_t stride_c = layout == Layout::planes ? pixels : 1, stride_p = layout == Layout::planes ? 1 : C;
    SegmentMeanArgs a{};
    a.features = features.get(), a.features_dtype = dtype, a.layout = layout;
    a.stride_b = C * pixels, a.stride_c = stride_c, a.stride_p = stride_p;
    a.segments = segments, a.B = s.B, a.C = C, a.H = s.H, a.W = s.W, a.num_segments = S;
    a.counts = counts.get(), a.means = means.get();
    Array<char> space(segment_mean_workspace_cpu(a));
    a.workspace = space.get();
    in_two_threads(s.B, [&](int64_t b, int64_t e) { segment_mean_runs_cpu(a, b, e); });
    in_two_threads(s.B * C, [&](int64_t b, int64_t e) { segment_mean_sum_cpu(a, b, e); });

    Array<T> grad(size);
    SegmentMeanBackwardArgs g{};
    g.grad_means = means.get(), g.counts = counts.get();
    g.segments = segments, g.B = s.B, g.C = C, g.H = s.H, g.W = s.W, g.num_segments = S;
    g.grad_features = grad.get(), g.features_dtype = dtype, g.layout = layout;
    g.stride_b = C * pixels, g.stride_c = stride_c, g.stride_p = stride_p;
    Array<char> backward_space(segment_mean_backward_workspace_cpu(g));
    g.workspace = backward_space.get();
    in_two_threads(s.B, [&](int64_t b, int64_t e) { segment_mean_backward_runs_cpu(g, b, e); });
    const int64_t items = s.B * (layout == Layout::planes ? C : s.H);
    in_two_threads(items, [&](int64_t b, int64_t e) { segment_mean_backward_write_cpu(g, b, e); });
    // Every element has been written: running again over other junk gives the same.
    Array<T> again(size);
    std::memset(static_cast<void*>(again.get()), 0x3C, size * sizeof(T));
    g.grad_features = again.get();
    segment_mean_backward_runs_cpu(g, 0, s.B);
    segment_mean_backward_write_cpu(g, 0, items);
    require(again == grad, "gradient depends on what was there before");
}

void check_rings(int64_t N, int64_t D, Dtype dtype, int64_t bytes) {
    const int64_t K = 3, T = 9;
    std::vector<int64_t> classes(N), starts{1, 4, 8}, sizes{3, 4, 1};
    for (int64_t n = 0; n < N; ++n) classes[n] = n * 7 % 5 - 1;  // -1 and 3 are no rings
    Array<float> vectors(N * D);
    for (int64_t i = 0; i < vectors.size; ++i) vectors.get()[i] = static_cast<float>(i);
    std::vector<Array<char>> results;
    for (const bool whole : {true, false}) {
        Array<char> storage(T * D * bytes);
        Array<int64_t> written(K);
        std::fill_n(written.get(), K, int64_t{2});
        RingWriteArgs a{};
        a.vectors = vectors.get(), a.vectors_stride = D;
        a.classes = classes.data(), a.starts = starts.data(), a.sizes = sizes.data();
        a.N = N, a.K = K, a.D = D, a.T = T;
        a.storage = storage.get(), a.storage_dtype = dtype, a.written = written.get();
        if (whole) {
            ring_write_cpu(a, 0, K);
        } else {
            in_two_threads(K, [&](int64_t b, int64_t e) { ring_write_cpu(a, b, e); });
        }
        int64_t stored = 0;
        for (const int64_t k : classes) stored += k >= 0 && k < K;
        require(written.get()[0] + written.get()[1] + written.get()[2] == 6 + stored, "not all vectors were counted");
        results.push_back(std::move(storage));
    }
    require(results[0] == results[1], "rings depend on the order of their writing");
}

void check_slots(int64_t B, int64_t G) {
    const int64_t num_stuff = 2, num_things = 3, max_instances = 2, S = num_stuff + num_things * max_instances, L = 3;
    Array<int32_t> areas(B * S);
    Array<float> logits(B * G * L), distances(B * S), stuff(1), instances(1), grad(B * S);
    Array<int64_t> slot_rings(S), slot_classes(S), rings(B * S), rows(B * S);
    for (int64_t i = 0; i < B * S; ++i) {
        areas.get()[i] = static_cast<int32_t>(i % 3);
        distances.get()[i] = static_cast<float>(i);
        rows.get()[i] = i % 4 - 1;
    }
    for (int64_t i = 0; i < logits.size; ++i) logits.get()[i] = static_cast<float>(i * 5 % 7);
    for (int64_t s = 0; s < S; ++s) slot_rings.get()[s] = s, slot_classes.get()[s] = s % L;
    SelectRingsArgs a{};
    a.areas = areas.get(), a.slot_rings = slot_rings.get(), a.slot_classes = slot_classes.get();
    a.logits = G ? logits.get() : nullptr, a.logits_dtype = Dtype::f32, a.stride_n = L, a.stride_l = 1;
    a.B = B, a.S = S, a.G = G, a.L = L;
    a.rings = rings.get();
    in_two_threads(B * S, [&](int64_t b, int64_t e) { select_rings_cpu(a, b, e); });
    for (int64_t i = 0; i < B * S; ++i) {
        require(rings.get()[i] == -1 || (rings.get()[i] == i % S && areas.get()[i] > 0), "a slot has a wrong ring");
    }
    MatchingLossesArgs m{};
    m.distances = distances.get(), m.dtype = Dtype::f32, m.rows = rows.get(), m.rings = rings.get();
    m.B = B, m.num_stuff = num_stuff, m.num_things = num_things, m.max_instances = max_instances, m.divisor = 4;
    m.stuff = stuff.get(), m.instances = instances.get();
    matching_losses_cpu(m, 0, 1);
    MatchingLossesBackwardArgs g{};
    g.grad_stuff = stuff.get(), g.grad_instances = instances.get(), g.dtype = Dtype::f32;
    g.rows = rows.get(), g.rings = rings.get();
    g.B = B, g.num_stuff = num_stuff, g.num_things = num_things, g.max_instances = max_instances, g.divisor = 4;
    g.grad_distances = grad.get();
    in_two_threads(B, [&](int64_t b, int64_t e) { matching_losses_backward_cpu(g, b, e); });
    for (int64_t i = 0; i < B * S; ++i) require((rows.get()[i] >= 0) == (grad.get()[i] > 0), "a gradient is missing");
}

// Three ragged classes in one bank, counts and starts that lead outside of it, and queries of no class.
template <typename Q, typename B>
void check_nearest(Dtype queries_dtype, Dtype bank_dtype, int64_t D, int64_t stride) {
    const int64_t N = 45, T = 41, R = 35, sum_bytes = queries_dtype == Dtype::f64 ? 8 : 4;
    Array<Q> queries((N - 1) * D * stride + (D - 1) * stride + 1);
    Array<B> bank((T - 1) * D * stride + (D - 1) * stride + 1);
    for (int64_t i = 0; i < queries.size; ++i) queries.get()[i] = static_cast<Q>(i % 7);
    for (int64_t i = 0; i < bank.size; ++i) bank.get()[i] = static_cast<B>(i % 5);
    Array<int64_t> classes(N), starts(4), filled(4);
    for (int64_t n = 0; n < N; ++n) classes.get()[n] = n % 6 - 1;  // -1 and 4 have no bank
    const int64_t first[] = {0, 17, 30, -1}, count[] = {17, INT64_MAX, 1000, 3};
    std::copy_n(first, 4, starts.get());
    std::copy_n(count, 4, filled.get());
    Array<char> distances(N * sum_bytes);
    Array<int64_t> rows(N);
    Array<int8_t> signs(N * D);
    NearestArgs a{};
    a.queries = queries.get(), a.queries_dtype = queries_dtype;
    a.query_stride_n = D * stride, a.query_stride_d = stride;
    a.classes = classes.get();
    a.bank = bank.get(), a.bank_dtype = bank_dtype, a.bank_stride_t = D * stride, a.bank_stride_d = stride;
    a.starts = starts.get(), a.filled = filled.get();
    a.N = N, a.K = 4, a.T = T, a.D = D, a.R = R;
    a.distances = distances.get(), a.rows = rows.get(), a.signs = signs.get();
    Array<char> space(nearest_workspace_cpu(a));
    a.workspace = space.get();
    nearest_group_cpu(a, 0, 1);
    in_two_threads(kNearestShares, [&](int64_t b, int64_t e) { nearest_compare_cpu(a, b, e); });
    in_two_threads(N, [&](int64_t b, int64_t e) { nearest_pick_cpu(a, b, e); });
    for (int64_t n = 0; n < N; ++n) {
        const int64_t k = classes.get()[n], most[] = {17, 24, 11, 0}, row = rows.get()[n];
        const bool any = k >= 0 && k < 3;
        require(any ? row >= 0 && row < most[k] : row == -1, "a nearest row outside its class");
    }
    Array<int64_t> again(N);
    a.rows = again.get();
    nearest_compare_cpu(a, 0, kNearestShares);
    nearest_pick_cpu(a, 0, N);
    require(again == rows, "nearest rows depend on the split");

    Array<Q> grad_queries(N * D);
    NearestBackwardArgs g{};
    g.grad = distances.get(), g.grad_stride = 1, g.rows = rows.get(), g.signs = signs.get();
    g.N = N, g.D = D, g.grad_queries = grad_queries.get(), g.queries_dtype = queries_dtype;
    in_two_threads(N, [&](int64_t b, int64_t e) { nearest_backward_cpu(g, b, e); });
    Array<Q> junk(N * D);
    std::memset(static_cast<void*>(junk.get()), 0x3C, N * D * sizeof(Q));
    g.grad_queries = junk.get();
    nearest_backward_cpu(g, 0, N);
    require(junk == grad_queries, "gradient depends on what was there before");
}

}  // namespace

int main() {
    std::mt19937 random(0);
    const Shape shapes[] = {{1, 1, 1}, {2, 1, 70}, {1, 65, 1}, {2, 7, 63}, {1, 9, 64}, {3, 6, 65}, {1, 33, 130}};
    for (const Shape& s : shapes) {
        for (const int64_t blob : {1, 3, 20}) {
            const auto bytes = random_labels<uint8_t>(s, random, 253, 256, blob);  // 253, 254, 255, 0
            const auto shorts = random_labels<int16_t>(s, random, -2, 4, blob);
            const auto longs = random_labels<int64_t>(s, random, 253, 300, blob);
            for (const int32_t connectivity : {4, 8}) {
                check_components(map_of(bytes, Dtype::u8, s), s, connectivity,
                                 [&](int64_t i) { return bytes.get()[i]; });
                check_components(map_of(shorts, Dtype::i16, s), s, connectivity,
                                 [&](int64_t i) { return shorts.get()[i]; });
                check_components(map_of(longs, Dtype::i64, s), s, connectivity,
                                 [&](int64_t i) { return longs.get()[i]; });
                check_regions(map_of(bytes, Dtype::u8, s), s, connectivity);
                check_regions(map_of(shorts, Dtype::i16, s), s, connectivity);
                check_regions(map_of(longs, Dtype::i64, s), s, connectivity);
            }
            for (const Layout layout : {Layout::planes, Layout::pixels}) {
                for (const int64_t C : {1, 11, 40}) {
                    const LabelMap segments = map_of(shorts, Dtype::i16, s);
                    check_means<uint16_t>(segments, s, Dtype::f16, layout, C);
                    check_means<uint16_t>(segments, s, Dtype::bf16, layout, C);
                    check_means<float>(segments, s, Dtype::f32, layout, C);
                    check_means<double>(segments, s, Dtype::f64, layout, C);
                }
            }
        }
    }
    for (const int64_t N : {1, 5, 40}) {
        for (const int64_t D : {1, 7, 8}) {
            check_rings(N, D, Dtype::f32, 4);
            check_rings(N, D, Dtype::bf16, 2);
            check_rings(N, D, Dtype::f16, 2);
        }
    }
    for (const int64_t B : {1, 3}) {
        for (const int64_t G : {0, 2, 8}) check_slots(B, G);
    }
    for (const int64_t D : {1, 8, 255, 257, 530}) {
        for (const int64_t stride : {1, 2}) {
            check_nearest<float, float>(Dtype::f32, Dtype::f32, D, stride);
            check_nearest<float, uint16_t>(Dtype::f32, Dtype::bf16, D, stride);
            check_nearest<uint16_t, uint16_t>(Dtype::bf16, Dtype::f16, D, stride);
            check_nearest<uint16_t, float>(Dtype::f16, Dtype::f32, D, stride);
            check_nearest<double, double>(Dtype::f64, Dtype::f64, D, stride);
        }
    }
    check_bad_values();
    check_concurrent_changes();
    std::puts("all CPU kernels ran");
}
