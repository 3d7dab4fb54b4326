// find_regions on CUDA for a map that fits a block's shared memory whole: one launch, in which a block labels,
// measures, selects and writes one image. See kernels.h for the contract, tile.cuh for the engine.
#include "classes.cuh"
#include "device.cuh"
#include "tile.cuh"

namespace simfast {
namespace {

constexpr int kThreads = 1024;
constexpr int kSmallPixels = 32768;  // a pixel number is 15 bits, and a thread's pixels are the bits of one word
constexpr int64_t kSmallSlots = 1 << 20;

struct SmallShared {
    ClassTable table;
    int32_t stuff_areas[kMaxClasses];
    unsigned best[3][kMaxClasses];
};

// Parents take 4 bytes a pixel and classes 1: 91 x 161 needs 73 KB, and 99 KB (sm_86, sm_89, sm_120) hold 20,000
// pixels. That is why areas and slots have no arrays of their own. Once every pixel points straight at its root, a
// root's entry is free for the root's own data: ~area, then kSelected + slot. Roots are told apart by being negative.
constexpr int32_t kSelected = INT32_MIN;
__device__ __forceinline__ bool is_selected(int32_t entry) { return entry < kSelected + kSmallSlots; }

int64_t small_bytes(int64_t pixels) { return pixels * 5; }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    regions_small_kernel(TypedMap<T> labels, const __grid_constant__ RegionsArgs a, MapPitch pitch) {
    SIMFAST_SHARED(SmallShared, shared);
    SIMFAST_DYNAMIC_SHARED(dynamic);
    const int64_t b = blockIdx.x;
    const int size = static_cast<int>(a.H * a.W), lane = threadIdx.x % 32;
    int32_t* parent = reinterpret_cast<int32_t*>(dynamic);
    uint8_t* classes = dynamic + size * sizeof(int32_t);
    const int64_t num_slots = slot_of(a, a.num_things, 0);
    int32_t* areas = a.areas + b * num_slots;

    fill_table(shared.table, a);
    if (threadIdx.x < kMaxClasses) {
        shared.stuff_areas[threadIdx.x] = 0;
        for (int i = 0; i < 3; ++i) shared.best[i][threadIdx.x] = 0;
    }
    for (int64_t s = a.num_stuff + threadIdx.x; s < num_slots; s += kThreads) areas[s] = 0;
    __syncthreads();
#pragma unroll 4
    for (int p = threadIdx.x; p < size; p += kThreads) {
        const int y = pitch.row(p);
        classes[p] = class_of(shared.table, a, static_cast<int64_t>(labels.at(b, y, p - y * pitch.pixels)));
    }
    __syncthreads();
    const auto active = [&](uint8_t class_number) { return is_thing(a, class_number); };
    label_tile<kThreads>(classes, parent, static_cast<int>(a.H), pitch.pixels, pitch, a.connectivity == 8, active);

    // Bit i: this thread's pixel threadIdx.x + i * kThreads is a root. Nobody reads another pixel's entry here.
    unsigned roots = 0;
    for (int p = threadIdx.x, i = 0; p < size; p += kThreads, ++i) {
        if (!active(classes[p]) || parent[p] != p) continue;
        roots |= 1u << i;
        parent[p] = ~0;
    }
    __syncthreads();  // every root holds area 0 before anybody adds to it
    const auto root_of = [&](int p) {
        const int32_t entry = load_volatile(parent + p);  // a root's entry may be changing
        return entry < 0 ? p : entry;
    };
    for (int chunk = threadIdx.x - lane; chunk < size; chunk += kThreads) {
        const int p = chunk + lane;
        const uint8_t own = p < size ? classes[p] : kNoClass;
        // A run may go on into the next row: only its class and root count, and in one class runs of one root are not
        // told apart. So "left" here means the pixel before, with the same root.
        const int owner = active(own) ? root_of(p) : -1 - own;
        const int owner_before = __shfl_up_sync(kFullWarp, owner, 1);
        const Run run = run_at(lane, __ballot_sync(kFullWarp, lane > 0 && owner == owner_before));
        if (!run.first || own == kNoClass) continue;
        if (owner >= 0) {
            atomicSub(parent + owner, run.length);  // ~(area + length) = ~area - length
        } else {
            atomicAdd(shared.stuff_areas + own, run.length);
        }
    }
    __syncthreads();

    // The next largest of every class at once. Keys order by area, then by the earlier root; no two are equal.
    const auto key_of = [&](int p) { return static_cast<unsigned>(~parent[p]) << 15 | (kSmallPixels - 1u - p); };
    for (int rank = 0; rank < a.max_instances; ++rank) {
        unsigned* best = shared.best[rank % 3];
        for (unsigned rest = roots; rest; rest &= rest - 1) {
            const int p = threadIdx.x + (__ffs(rest) - 1) * kThreads;
            unsigned* of_class = best + classes[p] - a.num_stuff;
            // Reading first keeps most roots of a noisy map away from the one address.
            if (key_of(p) > load_volatile(of_class)) atomicMax(of_class, key_of(p));
        }
        if (!__syncthreads_or(roots != 0)) break;
        for (unsigned rest = roots; rest; rest &= rest - 1) {
            const int i = __ffs(rest) - 1, p = threadIdx.x + i * kThreads, thing = classes[p] - a.num_stuff;
            if (key_of(p) != best[thing]) continue;
            const int64_t slot = slot_of(a, thing, rank);
            areas[slot] = ~parent[p];
            parent[p] = static_cast<int32_t>(kSelected + slot);
            roots &= ~(1u << i);
        }
        // Three sets of maxima, so that one barrier a rank is enough: the set of rank + 2 was last read before the
        // barrier above, and is first written after the next one.
        if (threadIdx.x < kMaxClasses) shared.best[(rank + 2) % 3][threadIdx.x] = 0;
    }
    __syncthreads();

    for (int s = threadIdx.x; s < a.num_stuff; s += kThreads) areas[s] = shared.stuff_areas[s];
    for (int p = threadIdx.x; p < size; p += kThreads) {
        const uint8_t own = classes[p];
        int32_t slot = own == kNoClass ? -1 : own;
        if (active(own)) {
            const int32_t entry = parent[root_of(p)];
            slot = is_selected(entry) ? static_cast<int32_t>(int64_t{entry} - kSelected) : -1;
        }
        a.segments[b * size + p] = slot;
    }
}

template <typename T>
const char* run_small(const RegionsArgs& a, cudaStream_t stream) {
    if (a.B > kMaxGrid) return "find_regions: the batch has too many images for one launch";
    const int bytes = static_cast<int>(small_bytes(a.H * a.W));
    const auto kernel = regions_small_kernel<T>;
    const auto error = allow_all_shared(kernel, sizeof(SmallShared));
    if (error != cudaSuccess) return error_text(error);
    SIMFAST_LAUNCH(kernel, grid_of(a.B), kThreads, bytes, stream, TypedMap<T>(a.labels), a, MapPitch(a.W));
    return launch_error();
}

}  // namespace

bool regions_is_small(const RegionsArgs& a) {
    const int64_t pixels = a.H * a.W;
    return pixels <= kSmallPixels && regions_num_slots(a) < kSmallSlots &&
           small_bytes(pixels) + ceil_div(int64_t{sizeof(SmallShared)}, 128) * 128 <= max_shared_bytes();
}

const char* regions_small_cuda(const RegionsArgs& a, cudaStream_t stream) {
    return for_label_type(a.labels.dtype, [&](auto example) { return run_small<decltype(example)>(a, stream); });
}

}  // namespace simfast
