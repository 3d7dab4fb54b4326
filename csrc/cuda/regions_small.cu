// find_regions on CUDA for a map that fits a block's shared memory whole: one launch, in which a block labels,
// measures, selects and writes one image. See kernels.h for the contract, runs.cuh for the engine.
#include "classes.cuh"
#include "device.cuh"
#include "runs.cuh"

namespace simfast {
namespace {

// All the threads that a block can have: the block is alone on its multiprocessor.
#ifndef SIMFAST_SMALL_THREADS
#define SIMFAST_SMALL_THREADS 1024
#endif
constexpr int kThreads = SIMFAST_SMALL_THREADS;
static_assert(kThreads % 32 == 0 && kThreads >= 256);
constexpr int kBatch = 8;            // pixels of one thread whose loads are in flight together
constexpr int kSmallPixels = 32768;  // padding included: what runs.cuh can number
constexpr int64_t kSmallSlots = 1 << 20;

// A component's place among those of its thing: by area, then by the earlier root; no two keys of a thing are equal.
struct alignas(8) Listed {
    unsigned key;
    int32_t thing;
};
constexpr int kListed = 256;  // as many are compared with each other at once; more are selected rank by rank

struct SmallShared {
    ClassTable table;
    int32_t stuff_areas[kMaxClasses];
    unsigned best[3][kMaxClasses];
    int32_t num_roots;
    Listed listed[kListed];
};

// Rows padded to whole units. unit / units without a division: with m = ceil(2^31 / units), the product unit * m / 2^31
// exceeds the true quotient by less than unit / 2^31, which is below 1 / units. 2 * unit keeps it to one multiply-high.
struct MapPitch {
    int width, height, units, rows_at_once;  // the last: that a block has threads for
    unsigned magic;

    MapPitch(int64_t W, int64_t H)
        : width(static_cast<int>(W)),
          height(static_cast<int>(H)),
          units(static_cast<int>(ceil_div(W, kUnit))),
          rows_at_once(max(1, kThreads / (units * kUnit))),
          magic(static_cast<unsigned>(ceil_div(int64_t{1} << 31, units))) {}
    __device__ __forceinline__ int row(unsigned unit) const { return __umulhi(2 * unit, magic); }
    __device__ __forceinline__ int all_units() const { return units * height; }
};

// Dynamic shared memory, a pixel: 4 bytes of entry, 1 of class; a unit: 2 of starts and 2 of roots. 91 x 161 takes
// 84 KB, and 99 KB (sm_86, sm_89, sm_120) hold 19,000 pixels. Areas and slots have no arrays of their own for that:
// a root's entry holds its component's area, and in the end, negative, what is to be written.
struct SmallMap {
    Runs runs;
    uint16_t* roots;
    uint8_t* classes;

    __device__ __forceinline__ SmallMap(unsigned char* at, int units) {
        classes = at + kUnit;  // the bytes before the first and after the last unit are read, and not used
        runs.entry = reinterpret_cast<int32_t*>(classes + (units + 1) * kUnit);
        runs.starts = reinterpret_cast<uint16_t*>(runs.entry + units * kUnit);
        roots = runs.starts + units + 1;
    }
    static int64_t bytes(int64_t units) { return (units + 2) * kUnit + units * kUnit * 4 + (2 * units + 1) * 2; }
};

// Calls use(x, y, whole) for batches of kBatch of this thread's pixels: column x and rows y, y + rows_at_once and so
// on. All of them are in the map if `whole`, a constant, else those above `height`. So there is no division a pixel,
// and hardly a condition.
template <typename Use>
__device__ __forceinline__ void for_own_pixels(const MapPitch& pitch, const Use& use) {
    const int columns = min(pitch.units * kUnit, kThreads), own_y = pitch.row(threadIdx.x / kUnit);
    const int own_x = static_cast<int>(threadIdx.x) - own_y * columns, rows = kBatch * pitch.rows_at_once;
    if (own_y >= pitch.rows_at_once) return;
    for (int x = own_x; x < pitch.width; x += columns) {
        int y = 0;
        for (; y + rows <= pitch.height; y += rows) use(x, y + own_y, std::true_type{});
        if (y + own_y < pitch.height) use(x, y + own_y, std::false_type{});
    }
}

template <typename T, typename ToClass>
__device__ __forceinline__ void load_classes(const TypedMap<T>& labels, const MapPitch& pitch, uint8_t* classes,
                                             const ToClass& to_class) {
    const T* image = labels.data + blockIdx.x * labels.stride_b;
    const int64_t step = pitch.rows_at_once * labels.stride_h;
    const int to_step = pitch.rows_at_once * pitch.units * kUnit;
    for_own_pixels(pitch, [&](int x, int y, auto whole) {
        constexpr bool kWhole = decltype(whole)::value;
        const T* from = image + y * labels.stride_h + x * labels.stride_w;
        uint8_t* to = classes + y * pitch.units * kUnit + x;
        T label[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            label[i] = kWhole || y + i * pitch.rows_at_once < pitch.height ? __ldg(from + i * step) : T{};
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (kWhole || y + i * pitch.rows_at_once < pitch.height) to[i * to_step] = to_class(label[i]);
        }
    });
}

__device__ __forceinline__ void write_segments(const Runs& runs, const MapPitch& pitch, int32_t* segments) {
    const int step = pitch.rows_at_once * pitch.width, unit_step = pitch.rows_at_once * pitch.units;
    for_own_pixels(pitch, [&](int x, int y, auto whole) {
        constexpr bool kWhole = decltype(whole)::value;
        const unsigned unit = y * pitch.units + x / static_cast<unsigned>(kUnit);
        int32_t* to = segments + y * pitch.width + x;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (!kWhole && y + i * pitch.rows_at_once >= pitch.height) break;
            to[i * step] = final_slot(runs.entry_of(unit + i * unit_step, x % kUnit));
        }
    });
}

// Gives slots to the largest components of each thing.
struct Selection {
    SmallShared& shared;
    const SmallMap& map;
    const RegionsArgs& a;
    int32_t* areas;
    unsigned units;

    __device__ __forceinline__ unsigned key_of(int p) const {
        return static_cast<unsigned>(area_in(map.runs.entry[p])) << 15 | (kSmallPixels - 1u - p);
    }
    __device__ __forceinline__ int thing_of(int p) const { return map.classes[p] - a.num_stuff; }
    __device__ __forceinline__ void give(int p, int thing, int rank) const {
        const int64_t slot = slot_of(a, thing, rank);
        areas[slot] = area_in(map.runs.entry[p]);
        map.runs.entry[p] = final_entry(slot);
    }

    // All at once: a component's rank is the number of larger ones. For up to kListed components.
    __device__ __forceinline__ void by_counting() const {
        const int own = threadIdx.x, num_roots = shared.num_roots;
        Listed listed{};
        int p = 0;
        if (own < num_roots) {
            p = static_cast<int>(shared.listed[own].key);
            listed = {key_of(p), thing_of(p)};
            shared.listed[own] = listed;
        }
        __syncthreads();  // keys stand where the roots were
        if (own >= num_roots) return;
        int rank = 0;
#pragma unroll 4
        for (int i = 0; i < num_roots; ++i) {
            const Listed other = shared.listed[i];
            rank += other.thing == listed.thing && other.key > listed.key;
        }
        if (rank < a.max_instances) give(p, listed.thing, rank);
    }

    // The next largest of every thing at once, until none is left or all ranks are given.
    __device__ __forceinline__ void rank_by_rank() const {
        for (int rank = 0; rank < a.max_instances; ++rank) {
            unsigned* best = shared.best[rank % 3];
            bool any = false;
            for (unsigned unit = threadIdx.x; unit < units; unit += kThreads) {
                for (unsigned rest = map.roots[unit]; rest; rest &= rest - 1) {
                    const int p = unit * kUnit + __ffs(rest) - 1;
                    unsigned* of_thing = best + thing_of(p);
                    any = true;
                    // Reading first keeps most roots of a noisy map away from the one address.
                    if (key_of(p) > load_volatile(of_thing)) atomicMax(of_thing, key_of(p));
                }
            }
            if (!__syncthreads_or(any)) break;
            for (unsigned unit = threadIdx.x; unit < units; unit += kThreads) {
                unsigned left = map.roots[unit];
                for (unsigned rest = left; rest; rest &= rest - 1) {
                    const int p = unit * kUnit + __ffs(rest) - 1, thing = thing_of(p);
                    if (key_of(p) != best[thing]) continue;
                    give(p, thing, rank);
                    left &= ~(rest & -rest);
                }
                map.roots[unit] = static_cast<uint16_t>(left);
            }
            // Three sets of maxima, so that one barrier a rank is enough: the set of rank + 2 was last read before the
            // barrier above, and is first written after the next one.
            if (threadIdx.x < kMaxClasses) shared.best[(rank + 2) % 3][threadIdx.x] = 0;
        }
    }
};

// What is to be written for the pixels of run `node`, as p's entry.
__device__ __forceinline__ void finish(const Runs& runs, int p, int node) {
    int32_t own = load_volatile(runs.entry + node);
    if (own >= 0) {
        // A root that was not selected still holds its area, or its owner was here and left -1: the same.
        own = load_volatile(runs.entry + (own >> 16));
        if (own >= 0) own = final_entry(-1);
        runs.entry[p] = own;
    } else if (p != node) {
        runs.entry[p] = own;
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    regions_small_kernel(TypedMap<T> labels, const __grid_constant__ RegionsArgs a, MapPitch pitch, bool wide) {
    SIMFAST_SHARED(SmallShared, shared);
    SIMFAST_DYNAMIC_SHARED(dynamic);
    const unsigned units = pitch.all_units();
    const SmallMap map(dynamic, units);
    const Runs& runs = map.runs;
    const int64_t num_slots = slot_of(a, a.num_things, 0);
    int32_t* areas = a.areas + blockIdx.x * num_slots;

    if (threadIdx.x < 32) fill_table(shared.table, a, threadIdx.x);
    if (threadIdx.x < kMaxClasses) {
        shared.stuff_areas[threadIdx.x] = 0;
        for (int i = 0; i < 3; ++i) shared.best[i][threadIdx.x] = 0;
    }
#pragma unroll 1
    for (int64_t s = a.num_stuff + threadIdx.x; s < num_slots; s += kThreads) areas[s] = 0;
    if (threadIdx.x == 0) {
        shared.num_roots = 0;
        runs.starts[units] = 1;  // the last row's end
    }
    __syncthreads();
    if (wide) {
        load_classes(labels, pitch, map.classes, [&](T label) { return search_class(a, label); });
    } else {
        load_classes(labels, pitch, map.classes, [&](T label) { return class_in(shared.table, label); });
    }
    __syncthreads();

    for (unsigned first = 0; first < units; first += kThreads) {
        Unit unit{};
        Links links;
        if (first + threadIdx.x < units) {
            unit = unit_at(first + threadIdx.x, pitch, pitch.width);
            links = enter_runs(runs, unit, map.classes, a);
        }
        __syncthreads();  // unions look up runs, and climb through entries, of other warps
        runs.unite_links(unit, links);
    }
    __syncthreads();  // roots are final
    for (unsigned index = threadIdx.x; index < units; index += kThreads) {
        const Unit unit = unit_at(index, pitch, pitch.width);
        const unsigned roots = measure_runs(runs, unit, shared.stuff_areas);
        map.roots[index] = static_cast<uint16_t>(roots);
        for (unsigned rest = roots; rest; rest &= rest - 1) {
            const int place = atomicAdd(&shared.num_roots, 1);
            if (place < kListed) shared.listed[place].key = unit.p + __ffs(rest) - 1;
        }
    }
    __syncthreads();  // areas are final
    const Selection selection{shared, map, a, areas, units};
    if (shared.num_roots <= kListed) {
        selection.by_counting();
    } else {
        selection.rank_by_rank();
    }
    __syncthreads();  // slots are final

#pragma unroll 1
    for (int s = threadIdx.x; s < a.num_stuff; s += kThreads) areas[s] = shared.stuff_areas[s];
    for (unsigned index = threadIdx.x; index < units; index += kThreads) {
        const Unit unit = unit_at(index, pitch, pitch.width);
        const unsigned starts = runs.starts[index] & unit.inside;
        for (unsigned rest = starts; rest; rest &= rest - 1) {
            const int p = unit.p + __ffs(rest) - 1;
            finish(runs, p, p);
        }
        if (!(starts & 1)) finish(runs, unit.p, runs.first_of(unit.p));  // see Runs::settle_first
    }
    __syncthreads();  // every entry is final
    write_segments(runs, pitch, a.segments + static_cast<int64_t>(blockIdx.x) * pitch.width * pitch.height);
}

template <typename T>
const char* run_small(const RegionsArgs& a, cudaStream_t stream) {
    if (a.B > kMaxGrid) return "the batch has too many images for one launch";
    const int bytes = static_cast<int>(SmallMap::bytes(a.H * ceil_div(a.W, kUnit)));
    const auto kernel = regions_small_kernel<T>;
    const auto error = allow_all_shared(kernel, sizeof(SmallShared));
    if (error != cudaSuccess) return error_text(error);
    SIMFAST_LAUNCH(kernel, grid_of(a.B), kThreads, bytes, stream, TypedMap<T>(a.labels), a, MapPitch(a.W, a.H),
                   has_wide_classes(a));
    return launch_error();
}

}  // namespace

bool regions_is_small(const RegionsArgs& a) {
    if (a.H * a.W > kSmallPixels || regions_num_slots(a) >= kSmallSlots) return false;
    const int64_t units = a.H * ceil_div(a.W, kUnit);
    return units * kUnit <= kSmallPixels &&
           SmallMap::bytes(units) + ceil_div(int64_t{sizeof(SmallShared)}, 128) * 128 <= max_shared_bytes();
}

const char* regions_small_cuda(const RegionsArgs& a, cudaStream_t stream) {
    return for_label_type(a.labels.dtype, [&](auto example) { return run_small<decltype(example)>(a, stream); });
}

}  // namespace simfast
