// segment_mean and its backward on the CPU: see kernels.h for the contract.
//
// The segments become a list of runs: pixels p, p + 1, ... of one segment, those without one left out. A sum is taken
// run by run, in the order of the pixels, and within a run in an order fixed by its length: no order depends on the
// split. Up to 32 values are added in their own precision, such sums in double: with one fp32 after another the
// mean of a large segment would be wrong by parts in a hundred.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/clones.h"
#include "cpu/floats.h"
#include "kernels.h"

namespace simfast {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Segments and runs
// ---------------------------------------------------------------------------------------------------------------------

struct Run {
    int32_t begin, end, segment;
};

// The workspace: per image the number of runs, then its runs (room for one a pixel).
struct Runs {
    int32_t* count;
    Run* runs;

    static int64_t bytes(int64_t B, int64_t P) { return B * 8 + B * P * int64_t{sizeof(Run)}; }
    Runs(void* workspace, int64_t B, int64_t P, int64_t b) {
        char* at = static_cast<char*>(workspace);
        count = reinterpret_cast<int32_t*>(at + b * 8);
        runs = reinterpret_cast<Run*>(at + B * 8) + b * P;
    }
};

// Calls visit(y, x, segment) for the pixels of rows [y0, y1), with -1 for every value outside [0, S).
template <typename T, typename Visit>
void for_each_pixel_as(const LabelMap& map, int64_t b, int64_t y0, int64_t y1, int64_t W, int64_t S,
                       const Visit& visit) {
    for (int64_t y = y0; y < y1; ++y) {
        const T* row = static_cast<const T*>(map.data) + b * map.stride_b + y * map.stride_h;
        for (int64_t x = 0; x < W; ++x) {
            const int64_t s = static_cast<int64_t>(row[x * map.stride_w]);
            visit(y, x, static_cast<int32_t>(s >= 0 && s < S ? s : -1));
        }
    }
}

template <typename Visit>
void for_each_pixel(const LabelMap& map, int64_t b, int64_t y0, int64_t y1, int64_t W, int64_t S, const Visit& visit) {
    switch (map.dtype) {
        case Dtype::u8: return for_each_pixel_as<uint8_t>(map, b, y0, y1, W, S, visit);
        case Dtype::i16: return for_each_pixel_as<int16_t>(map, b, y0, y1, W, S, visit);
        case Dtype::i32: return for_each_pixel_as<int32_t>(map, b, y0, y1, W, S, visit);
        default: return for_each_pixel_as<int64_t>(map, b, y0, y1, W, S, visit);
    }
}

void list_runs(const LabelMap& map, int64_t b, int64_t H, int64_t W, int64_t S, const Runs& out) {
    int32_t n = 0, segment = -1, begin = 0;
    for_each_pixel(map, b, 0, H, W, S, [&](int64_t y, int64_t x, int32_t s) {
        if (s == segment) return;
        const int32_t p = static_cast<int32_t>(y * W + x);
        if (segment >= 0) out.runs[n++] = {begin, p, segment};
        segment = s;
        begin = p;
    });
    if (segment >= 0) out.runs[n++] = {begin, static_cast<int32_t>(H * W), segment};
    *out.count = n;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
T sum_of_lanes(const Lanes<T>& x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// Sum of fewer than 32 values: eight interleaved sums, then these by twos. `readable` values may be touched, so that
// the last ones can be read eight at a time too; what lies beyond `length`, NaN or not, is masked away.
template <typename F>
typename F::Sum sum_short(const typename F::Stored* values, int64_t length, int64_t readable) {
    using Sum = typename F::Sum;
    using Bits = Lanes<typename F::Bits>;
    Lanes<Sum> sums = {}, next;
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
        F::load8(values + i, next);
        sums += next;
    }
    if (i < length) {
        if (i + kLanes <= readable) {
            F::load8(values + i, next);
        } else {
            next = Lanes<Sum>{};
            for (int64_t k = 0; i + k < length; ++k) next[k] = F::load(values[i + k]);
        }
        const Bits lane = {0, 1, 2, 3, 4, 5, 6, 7};
        const Bits wanted = lane < static_cast<typename F::Bits>(length - i);
        sums += reinterpret_cast<Lanes<Sum>>(reinterpret_cast<Bits>(next) & wanted);
    }
    return sum_of_lanes<Sum>(sums);
}

// Sum of `blocks` times 32 values: each 32 by twos to eight, these in double.
template <typename F>
double sum_blocks(const typename F::Stored* values, int64_t blocks) {
    Lanes<double> sums = {};
    for (; blocks; --blocks, values += 4 * kLanes) {
        Lanes<typename F::Sum> x[4];
        for (int64_t k = 0; k < 4; ++k) F::load8(values + k * kLanes, x[k]);
        sums += __builtin_convertvector((x[0] + x[1]) + (x[2] + x[3]), Lanes<double>);
    }
    return sum_of_lanes<double>(sums);
}

// Channels [c0, c1) of an NCHW image. Eight planes share one walk over the runs: eight independent sums are in flight.
template <typename F>
void sum_planes(const SegmentMeanArgs& a, int64_t b, int64_t c0, int64_t c1, const Runs& list) {
    using Sum = typename F::Sum;
    constexpr int64_t kPlanes = 8;
    const auto* image = static_cast<const typename F::Stored*>(a.features) + b * a.stride_b;
    const int32_t* counts = a.counts + b * a.num_segments;
    Sum* means = static_cast<Sum*>(a.means) + b * a.num_segments * a.C;
    std::vector<double> sums(a.num_segments * kPlanes);
    for (int64_t c = c0; c < c1; c += kPlanes) {
        const int64_t planes = std::min(kPlanes, c1 - c);
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int32_t r = 0; r < *list.count; ++r) {
            const Run run = list.runs[r];
            const auto* values = image + c * a.stride_c + run.begin;
            double* into = sums.data() + run.segment * kPlanes;
            int64_t length = run.end - run.begin, stride = a.stride_c;
            if (length == 1) {
                for (int64_t k = 0; k < planes; ++k) into[k] += F::load(values[k * stride]);
                continue;
            }
            if (const int64_t blocks = length / 32; blocks > 0) {
                for (int64_t k = 0; k < planes; ++k) into[k] += sum_blocks<F>(values + k * stride, blocks);
                values += blocks * 32;
                length -= blocks * 32;
            }
            const int64_t readable = a.H * a.W - (run.end - length);
            for (int64_t k = 0; k < planes; ++k) into[k] += sum_short<F>(values + k * stride, length, readable);
        }
        for (int64_t s = 0; s < a.num_segments; ++s) {
            const double count = std::max(counts[s], 1);
            for (int64_t k = 0; k < planes; ++k)
                means[s * a.C + c + k] = static_cast<Sum>(sums[s * kPlanes + k] / count);
        }
    }
}

// Channels [c0, c1) of a channels-last image, a block of channels at a time that stays in the first-level cache: pieces
// of 32 pixels by fours in the values' precision, these in double.
template <typename F>
void sum_pixels(const SegmentMeanArgs& a, int64_t b, int64_t c0, int64_t c1, const Runs& list) {
    using Sum = typename F::Sum;
    using Stored = typename F::Stored;
    constexpr int64_t kBlock = 1024, kPiece = 32;
    const int32_t* counts = a.counts + b * a.num_segments;
    Sum* means = static_cast<Sum*>(a.means) + b * a.num_segments * a.C;
    std::vector<double> totals(a.num_segments * std::min(kBlock, c1 - c0));
    for (int64_t c = c0; c < c1; c += kBlock) {
        const int64_t width = std::min(kBlock, c1 - c), step = a.stride_p;
        const Stored* image = static_cast<const Stored*>(a.features) + b * a.stride_b + c;
        std::fill(totals.begin(), totals.end(), 0.0);
        for (int32_t r = 0; r < *list.count; ++r) {
            const Run run = list.runs[r];
            double* into = totals.data() + run.segment * width;
            for (int64_t begin = run.begin; begin < run.end; begin += kPiece) {
                Sum sums[kBlock];
                const Stored* pixel = image + begin * step;
                for (int64_t k = 0; k < width; ++k) sums[k] = F::load(pixel[k]);
                int64_t left = std::min(kPiece, run.end - begin) - 1;
                pixel += step;
                for (; left >= 4; left -= 4, pixel += 4 * step) {
                    for (int64_t k = 0; k < width; ++k) {
                        sums[k] += (F::load(pixel[k]) + F::load(pixel[k + step])) +
                                   (F::load(pixel[k + 2 * step]) + F::load(pixel[k + 3 * step]));
                    }
                }
                for (; left; --left, pixel += step) {
                    for (int64_t k = 0; k < width; ++k) sums[k] += F::load(pixel[k]);
                }
                for (int64_t k = 0; k < width; ++k) into[k] += sums[k];
            }
        }
        for (int64_t s = 0; s < a.num_segments; ++s) {
            const double count = std::max(counts[s], 1);
            for (int64_t k = 0; k < width; ++k)
                means[s * a.C + c + k] = static_cast<Sum>(totals[s * width + k] / count);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward
// ---------------------------------------------------------------------------------------------------------------------

// The quotient, rounded once to the features' dtype. An empty segment has no pixel to give it to.
template <typename F>
typename F::Stored gradient(typename F::Sum grad_mean, int32_t count) {
    return F::store(grad_mean / static_cast<typename F::Sum>(std::max(count, 1)));
}

// Fills pixels [begin, end) of kPlanes planes, each with its value, in whole blocks: what runs over the end is
// overwritten by the runs after it. Only at the end of the planes, which nothing comes after, single values are
// written.
template <int64_t kPlanes, typename Stored>
void fill_run(Stored* planes, int64_t stride, int64_t begin, int64_t end, int64_t pixels, const Stored* values) {
    constexpr int64_t kBlock = 32 / sizeof(Stored);
    for (; begin < end && begin + kBlock <= pixels; begin += kBlock) {
        for (int64_t k = 0; k < kPlanes; ++k) {
            const Stored value = values[k];
            for (int64_t i = 0; i < kBlock; ++i) planes[k * stride + begin + i] = value;
        }
    }
    for (; begin < end; ++begin) {
        for (int64_t k = 0; k < kPlanes; ++k) planes[k * stride + begin] = values[k];
    }
}

// Planes [c, c + kPlanes). They share one walk over the runs, whose lengths no processor can foresee: it goes astray
// once a run, not once a run and plane. `values`: room for [num_segments + 1][kPlanes].
template <typename F, int64_t kPlanes>
void write_some_planes(const SegmentMeanBackwardArgs& a, int64_t b, int64_t c, const Runs& list,
                       typename F::Stored* values) {
    using Stored = typename F::Stored;
    const auto* grads = static_cast<const typename F::Sum*>(a.grad_means) + b * a.num_segments * a.C;
    const int32_t* counts = a.counts + b * a.num_segments;
    for (int64_t s = 0; s < a.num_segments; ++s) {
        for (int64_t k = 0; k < kPlanes; ++k) values[s * kPlanes + k] = gradient<F>(grads[s * a.C + c + k], counts[s]);
    }
    const Stored* zeros = std::fill_n(values + a.num_segments * kPlanes, kPlanes, Stored{0}) - kPlanes;
    Stored* planes = static_cast<Stored*>(a.grad_features) + b * a.stride_b + c * a.stride_c;
    const int64_t pixels = a.H * a.W;
    int64_t p = 0;
    for (int32_t r = 0; r < *list.count; ++r) {
        const Run run = list.runs[r];
        if (p < run.begin) fill_run<kPlanes>(planes, a.stride_c, p, run.begin, pixels, zeros);
        fill_run<kPlanes>(planes, a.stride_c, run.begin, run.end, pixels, values + run.segment * kPlanes);
        p = run.end;
    }
    fill_run<kPlanes>(planes, a.stride_c, p, pixels, pixels, zeros);
}

template <typename F>
void write_planes(const SegmentMeanBackwardArgs& a, int64_t b, int64_t c0, int64_t c1, const Runs& list) {
    constexpr int64_t kPlanes = 4;
    std::vector<typename F::Stored> values((a.num_segments + 1) * kPlanes);
    int64_t c = c0;
    for (; c + kPlanes <= c1; c += kPlanes) write_some_planes<F, kPlanes>(a, b, c, list, values.data());
    for (; c < c1; ++c) write_some_planes<F, 1>(a, b, c, list, values.data());
}

// The table [B, S, C] of all values a channels-last gradient holds.
template <typename F>
void fill_table(const SegmentMeanBackwardArgs& a, int64_t b) {
    const int64_t size = a.num_segments * a.C;
    const auto* grads = static_cast<const typename F::Sum*>(a.grad_means) + b * size;
    auto* table = static_cast<typename F::Stored*>(a.workspace) + b * size;
    for (int64_t s = 0; s < a.num_segments; ++s) {
        const int32_t count = a.counts[b * a.num_segments + s];
        for (int64_t c = 0; c < a.C; ++c) table[s * a.C + c] = gradient<F>(grads[s * a.C + c], count);
    }
}

template <typename F>
void write_pixels(const SegmentMeanBackwardArgs& a, int64_t b, int64_t y0, int64_t y1) {
    using Stored = typename F::Stored;
    const Stored* table = static_cast<const Stored*>(a.workspace) + b * a.num_segments * a.C;
    Stored* image = static_cast<Stored*>(a.grad_features) + b * a.stride_b;
    for_each_pixel(a.segments, b, y0, y1, a.W, a.num_segments, [&](int64_t y, int64_t x, int32_t s) {
        Stored* pixel = image + (y * a.W + x) * a.stride_p;
        if (s < 0) {
            std::memset(pixel, 0, a.C * sizeof(Stored));
        } else {
            std::memcpy(pixel, table + s * a.C, a.C * sizeof(Stored));
        }
    });
}

// Splits items [begin, end) of B * n into ranges within one image: call(b, first, last).
template <typename Call>
void for_each_image(int64_t begin, int64_t end, int64_t n, const Call& call) {
    while (begin < end) {
        const int64_t b = begin / n, last = std::min(end, (b + 1) * n);
        call(b, begin - b * n, last - b * n);
        begin = last;
    }
}

}  // namespace

int64_t segment_mean_workspace_cpu(const SegmentMeanArgs& a) { return Runs::bytes(a.B, a.H * a.W); }

SIMFAST_CLONES void segment_mean_runs_cpu(const SegmentMeanArgs& a, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
        const Runs list(a.workspace, a.B, a.H * a.W, b);
        list_runs(a.segments, b, a.H, a.W, a.num_segments, list);
        int32_t* counts = a.counts + b * a.num_segments;
        std::fill(counts, counts + a.num_segments, 0);
        for (int32_t r = 0; r < *list.count; ++r) counts[list.runs[r].segment] += list.runs[r].end - list.runs[r].begin;
    }
}

SIMFAST_CLONES void segment_mean_sum_cpu(const SegmentMeanArgs& a, int64_t begin, int64_t end) {
    for_each_image(begin, end, a.C, [&](int64_t b, int64_t c0, int64_t c1) {
        const Runs list(a.workspace, a.B, a.H * a.W, b);
        with_dtype(a.features_dtype, [&](auto f) {
            if (a.layout == Layout::planes) {
                sum_planes<decltype(f)>(a, b, c0, c1, list);
            } else {
                sum_pixels<decltype(f)>(a, b, c0, c1, list);
            }
        });
    });
}

int64_t segment_mean_backward_workspace_cpu(const SegmentMeanBackwardArgs& a) {
    return a.layout == Layout::planes ? Runs::bytes(a.B, a.H * a.W) : a.B * a.num_segments * a.C * 8;
}

SIMFAST_CLONES void segment_mean_backward_runs_cpu(const SegmentMeanBackwardArgs& a, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
        if (a.layout == Layout::planes) {
            list_runs(a.segments, b, a.H, a.W, a.num_segments, Runs(a.workspace, a.B, a.H * a.W, b));
        } else {
            with_dtype(a.features_dtype, [&](auto f) { fill_table<decltype(f)>(a, b); });
        }
    }
}

SIMFAST_CLONES void segment_mean_backward_write_cpu(const SegmentMeanBackwardArgs& a, int64_t begin, int64_t end) {
    const bool planes = a.layout == Layout::planes;
    for_each_image(begin, end, planes ? a.C : a.H, [&](int64_t b, int64_t first, int64_t last) {
        with_dtype(a.features_dtype, [&](auto f) {
            if (planes) {
                write_planes<decltype(f)>(a, b, first, last, Runs(a.workspace, a.B, a.H * a.W, b));
            } else {
                write_pixels<decltype(f)>(a, b, first, last);
            }
        });
    });
}

}  // namespace simfast
