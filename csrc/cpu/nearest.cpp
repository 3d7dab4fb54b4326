// nearest_l1 on the CPU: see kernels.h for the contract.
//
// Queries are listed by class, so that those of one class share the rows they read; a query without a class is in no
// list and costs nothing. A tile is kRows rows of one class against all its queries; tiles are dealt out to
// kNearestShares shares in turn, which are the items of the pass. A distance is summed in an order fixed by D alone:
// kLanes interleaved sums within kWidth values, then the blocks in turn. So equal rows have equal distances, and no
// order depends on the split.
//
// A row is read from memory once for all queries of a tile: the tile is worked through in blocks of D, and a block's
// rows are asked for while the block before is in the works. What is stored as it is summed is read in place.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/clones.h"
#include "cpu/floats.h"
#include "kernels.h"

namespace simfast {
namespace {

constexpr int64_t kRows = 16, kQueries = 16;  // of a tile, and of its queries at a time
constexpr int64_t kWidth = 256;  // values of D at a time: a block of each side stays in the first-level cache

int64_t num_tiles(int64_t rows) { return (rows + kRows - 1) / kRows; }

// The smallest distance of a query within a tile; row -1 where there is none.
struct Nearest {
    double distance;
    int64_t row;

    // NaN counts as smaller than any number, as arg-min has it; rows come in rising order and the first of equals
    // stays.
    void take(double other, int64_t other_row) {
        if (row < 0 || other < distance || (other != other && distance == distance)) *this = {other, other_row};
    }
};

// The rows of the bank that a class may be compared with.
struct ClassRows {
    int64_t first, count;
};

// The workspace: where each class's queries begin in `order`, the queries by class, their classes (-1 = none), each
// class's rows, and [N, num_tiles(R)] nearest rows. Classes and rows are looked up once and kept: whoever changes the
// arguments meanwhile changes no index.
struct Workspace {
    int64_t *begin, *order, *classes;
    ClassRows* rows;
    Nearest* nearest;

    static int64_t bytes(const NearestArgs& a) {
        return (a.K + 1 + 2 * a.N) * int64_t{sizeof(int64_t)} + a.K * int64_t{sizeof(ClassRows)} +
               a.N * num_tiles(a.R) * int64_t{sizeof(Nearest)};
    }
    explicit Workspace(const NearestArgs& a)
        : begin(static_cast<int64_t*>(a.workspace)),
          order(begin + a.K + 1),
          classes(order + a.N),
          rows(reinterpret_cast<ClassRows*>(classes + a.N)),
          nearest(reinterpret_cast<Nearest*>(rows + a.K)) {}
};

// No value in `filled` or `starts` leads outside the bank.
ClassRows rows_of(const NearestArgs& a, int64_t k) {
    const int64_t first = a.starts ? a.starts[k] : k * a.R, filled = a.filled[k];
    if (first < 0 || first > a.T) return {0, 0};
    return {first, std::clamp<int64_t>(filled, 0, std::min(a.R, a.T - first))};
}

// `width` values of a row from `offset` on, as sums, and zeros up to the next full vector: zeros on both sides add
// nothing. The dtype is looked at here alone, so that what follows exists once for each type of sum.
template <typename Sum>
void pack(const void* data, Dtype dtype, int64_t offset, int64_t stride, int64_t width, int64_t padded, Sum* to) {
    with_dtype(dtype, [&](auto f) {
        using F = decltype(f);
        const auto* from = static_cast<const typename F::Stored*>(data) + offset;
        if (stride == 1) {
            for (int64_t i = 0; i < width; ++i) to[i] = static_cast<Sum>(F::load(from[i]));
        } else {
            for (int64_t i = 0; i < width; ++i) to[i] = static_cast<Sum>(F::load(from[i * stride]));
        }
    });
    std::fill(to + width, to + padded, Sum{0});
}

// Where to read values d .. d + width of row `row` of `data`: in place if they are stored as they are summed and fill
// whole vectors, else packed in `space`.
template <typename Sum>
const Sum* block(const void* data, Dtype dtype, int64_t row, int64_t stride_row, int64_t stride_d, int64_t d,
                 int64_t width, int64_t padded, Sum* space) {
    const int64_t offset = row * stride_row + d * stride_d;
    constexpr Dtype kSum = sizeof(Sum) == 8 ? Dtype::f64 : Dtype::f32;
    if (dtype == kSum && stride_d == 1 && width == padded) return static_cast<const Sum*>(data) + offset;
    pack(data, dtype, offset, stride_d, width, padded, space);
    return space;
}

template <typename Sum>
const Sum* query_block(const NearestArgs& a, int64_t n, int64_t d, int64_t width, int64_t padded, Sum* space) {
    return block(a.queries, a.queries_dtype, n, a.query_stride_n, a.query_stride_d, d, width, padded, space);
}

template <typename Sum>
const Sum* row_block(const NearestArgs& a, int64_t t, int64_t d, int64_t width, int64_t padded, Sum* space) {
    return block(a.bank, a.bank_dtype, t, a.bank_stride_t, a.bank_stride_d, d, width, padded, space);
}

// What to ask memory for while values d .. of a class's row are in the works, `rows` of which are valid: the row's next
// block, or after its last the first one of the row's place in the next tile. Hardware foresees neither.
const char* ahead_of(const NearestArgs& a, int64_t start, int64_t row, int64_t rows, int64_t d) {
    const bool last = d + kWidth >= a.D;
    const int64_t next_row = last ? std::min(row + kRows, rows - 1) : row, next_d = last ? 0 : d + kWidth;
    const char* next = nullptr;
    with_dtype(a.bank_dtype, [&](auto f) {
        const auto* bank = static_cast<const typename decltype(f)::Stored*>(a.bank);
        next = reinterpret_cast<const char*>(bank + (start + next_row) * a.bank_stride_t + next_d * a.bank_stride_d);
    });
    return next;
}

// distances[i][j] += sum of |queries[i] - rows[j]| over `width` values. 4 queries by 2 rows need 8 accumulators and 6
// loads for 8 vectors of work: the loads, of which a core has two a cycle, then keep up with the arithmetic. A few
// lines of what lies ahead are asked for at each turn: all at once they would wait for one another.
template <typename Sum, int kQ>
void add_distances(const Sum* const* queries, const Sum* const* rows, const char* const* ahead, int64_t width,
                   Sum* distances) {
    using Bit = std::conditional_t<sizeof(Sum) == 8, int64_t, int32_t>;
    using Bits = Lanes<Bit>;
    using F = std::conditional_t<sizeof(Sum) == 8, F64, F32>;
    const Bits magnitude = Bits{} + std::numeric_limits<Bit>::max();  // all but the sign
    Lanes<Sum> sums[kQ][2] = {};
    for (int64_t d = 0; d < width; d += kLanes) {
        Lanes<Sum> row0, row1, query;
        F::load8(rows[0] + d, row0);
        F::load8(rows[1] + d, row1);
        __builtin_prefetch(ahead[0] + d * int64_t{sizeof(Sum)});
        __builtin_prefetch(ahead[1] + d * int64_t{sizeof(Sum)});
        for (int i = 0; i < kQ; ++i) {
            F::load8(queries[i] + d, query);
            sums[i][0] += reinterpret_cast<Lanes<Sum>>(reinterpret_cast<Bits>(query - row0) & magnitude);
            sums[i][1] += reinterpret_cast<Lanes<Sum>>(reinterpret_cast<Bits>(query - row1) & magnitude);
        }
    }
    for (int i = 0; i < kQ; ++i) {
        for (int j = 0; j < 2; ++j) {
            Sum total = 0;
            for (int64_t l = 0; l < kLanes; ++l) total += sums[i][j][l];
            distances[i * kRows + j] += total;
        }
    }
}

// Tile t of class k against its queries number [first, last).
template <typename Sum>
void compare(const NearestArgs& a, const Workspace& space, int64_t k, int64_t t, int64_t first, int64_t last) {
    alignas(64) Sum query_space[kQueries * kWidth], row_space[kRows * kWidth], distances[kQueries * kRows] = {};
    const Sum *queries[kQueries], *rows[kRows + 1];
    const char* ahead[kRows + 1];
    const int64_t num_queries = last - first, row0 = t * kRows, start = space.rows[k].first;
    const int64_t filled = space.rows[k].count;
    const int64_t num_rows = std::min(kRows, filled - row0);
    for (int64_t d = 0; d < a.D; d += kWidth) {
        const int64_t width = std::min(kWidth, a.D - d), padded = (width + kLanes - 1) / kLanes * kLanes;
        for (int64_t i = 0; i < num_queries; ++i) {
            queries[i] = query_block(a, space.order[first + i], d, width, padded, query_space + i * kWidth);
        }
        for (int64_t j = 0; j < num_rows; ++j) {
            rows[j] = row_block(a, start + row0 + j, d, width, padded, row_space + j * kWidth);
            ahead[j] = ahead_of(a, start, row0 + j, filled, d);
        }
        // Of an odd number, the last pair's other row: never looked at.
        rows[num_rows] = rows[num_rows - 1], ahead[num_rows] = ahead[num_rows - 1];
        for (int64_t j = 0; j < num_rows; j += 2) {
            Sum* out = distances + j;
            int64_t i = 0;
            for (; i + 4 <= num_queries; i += 4) {
                add_distances<Sum, 4>(queries + i, rows + j, ahead + j, padded, out + i * kRows);
            }
            for (; i + 2 <= num_queries; i += 2) {
                add_distances<Sum, 2>(queries + i, rows + j, ahead + j, padded, out + i * kRows);
            }
            if (i < num_queries) add_distances<Sum, 1>(queries + i, rows + j, ahead + j, padded, out + i * kRows);
        }
    }
    for (int64_t i = 0; i < num_queries; ++i) {
        Nearest nearest{0, -1};
        for (int64_t j = 0; j < num_rows; ++j) nearest.take(distances[i * kRows + j], row0 + j);
        space.nearest[space.order[first + i] * num_tiles(a.R) + t] = nearest;
    }
}

template <typename Sum>
void pick(const NearestArgs& a, const Workspace& space, int64_t n) {
    Nearest nearest{std::numeric_limits<double>::infinity(), -1};
    const int64_t k = space.classes[n];
    if (k >= 0) {
        const int64_t tiles = num_tiles(space.rows[k].count);
        for (int64_t t = 0; t < tiles; ++t) {
            const Nearest& other = space.nearest[n * num_tiles(a.R) + t];
            nearest.take(other.distance, other.row);
        }
    }
    static_cast<Sum*>(a.distances)[n] = static_cast<Sum>(nearest.distance);
    a.rows[n] = nearest.row;
    int8_t* signs = a.signs + n * a.D;
    if (nearest.row < 0) {
        std::fill_n(signs, a.D, int8_t{0});
        return;
    }
    alignas(64) Sum query_space[kWidth], row_space[kWidth];
    for (int64_t d = 0; d < a.D; d += kWidth) {
        const int64_t width = std::min(kWidth, a.D - d);
        const Sum* query = query_block(a, n, d, width, width, query_space);
        const Sum* row = row_block(a, space.rows[k].first + nearest.row, d, width, width, row_space);
        for (int64_t i = 0; i < width; ++i)
            signs[d + i] = static_cast<int8_t>((query[i] > row[i]) - (query[i] < row[i]));
    }
}

// Tiles of the shares [begin, end).
template <typename Sum>
void compare_shares(const NearestArgs& a, int64_t begin, int64_t end) {
    const Workspace space(a);
    int64_t tile = 0;
    for (int64_t k = 0; k < a.K; ++k) {
        if (space.begin[k] == space.begin[k + 1]) continue;
        const int64_t tiles = num_tiles(space.rows[k].count);
        for (int64_t t = 0; t < tiles; ++t, ++tile) {
            if (tile % kNearestShares < begin || tile % kNearestShares >= end) continue;
            for (int64_t first = space.begin[k]; first < space.begin[k + 1]; first += kQueries) {
                compare<Sum>(a, space, k, t, first, std::min(first + kQueries, space.begin[k + 1]));
            }
        }
    }
}

// Row n of the gradient.
template <typename F>
void scale_signs(const NearestBackwardArgs& a, int64_t n) {
    using Stored = typename F::Stored;
    using Sum = typename F::Sum;
    Stored* to = static_cast<Stored*>(a.grad_queries) + n * a.D;
    if (a.rows[n] < 0) {
        // Not a product with 0: what came from an infinite distance may be infinite or NaN.
        std::fill_n(to, a.D, Stored{});
        return;
    }
    const Sum scale = static_cast<const Sum*>(a.grad)[n * a.grad_stride];
    const int8_t* signs = a.signs + n * a.D;
    const Stored above = F::store(scale), below = F::store(scale * Sum{-1}), equal = F::store(scale * Sum{0});
    for (int64_t d = 0; d < a.D; ++d) to[d] = signs[d] > 0 ? above : signs[d] < 0 ? below : equal;
}

}  // namespace

int64_t nearest_workspace_cpu(const NearestArgs& a) { return Workspace::bytes(a); }

void nearest_group_cpu(const NearestArgs& a, int64_t, int64_t) {
    const Workspace space(a);
    std::fill_n(space.begin, a.K + 1, int64_t{0});
    for (int64_t k = 0; k < a.K; ++k) space.rows[k] = rows_of(a, k);
    for (int64_t n = 0; n < a.N; ++n) {
        const int64_t k = a.classes[n];
        space.classes[n] = k < a.K ? std::max<int64_t>(k, -1) : -1;
    }
    for (int64_t n = 0; n < a.N; ++n) {
        if (space.classes[n] >= 0) ++space.begin[space.classes[n] + 1];
    }
    for (int64_t k = 0; k < a.K; ++k) space.begin[k + 1] += space.begin[k];
    // begin[k] serves as the place of the class's next query and is moved back afterwards.
    for (int64_t n = 0; n < a.N; ++n) {
        if (space.classes[n] >= 0) space.order[space.begin[space.classes[n]]++] = n;
    }
    for (int64_t k = a.K; k > 0; --k) space.begin[k] = space.begin[k - 1];
    space.begin[0] = 0;
}

SIMFAST_CLONES void nearest_compare_cpu(const NearestArgs& a, int64_t begin, int64_t end) {
    if (a.queries_dtype == Dtype::f64) return compare_shares<double>(a, begin, end);
    compare_shares<float>(a, begin, end);
}

SIMFAST_CLONES void nearest_pick_cpu(const NearestArgs& a, int64_t begin, int64_t end) {
    const Workspace space(a);
    for (int64_t n = begin; n < end; ++n) {
        if (a.queries_dtype == Dtype::f64) {
            pick<double>(a, space, n);
        } else {
            pick<float>(a, space, n);
        }
    }
}

SIMFAST_CLONES void nearest_backward_cpu(const NearestBackwardArgs& a, int64_t begin, int64_t end) {
    with_dtype(a.queries_dtype, [&](auto f) {
        for (int64_t n = begin; n < end; ++n) scale_signs<decltype(f)>(a, n);
    });
}

}  // namespace simfast
