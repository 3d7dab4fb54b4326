// A CUDA device of one multiprocessor, on the CPU.
//
// Every thread of a block is a fibre that gives way at barriers, at warp collectives and, at random, at atomics and at
// loads marked coherent. Several blocks are resident at once and take turns, and warps differ in
// speed. Block order, thread order, speeds and the points of giving way follow from one seed (seed 0: plain order). It
// reports what hardware would hide or hang on: a barrier that part of a block never reaches or reaches at another line,
// a lane missing from its own mask, a store past the end of the shared memory. Shared memory starts as poison in every
// block. Asynchronous copies land when they are waited for, the latest that hardware may, and under a seed at random as
// soon as they start, the earliest. What it cannot show: speed, weak memory order.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace host_cuda {

// Settings, for the tests.
inline unsigned seed = 0;
inline int resident_blocks = 3;
inline int max_shared_bytes = 99 * 1024;  // of a block, static and dynamic together: what sm_86, 89 and 120 have
inline uint64_t launches = 0, switches = 0;

constexpr size_t kStackBytes = 64 * 1024, kRedZone = 256, kStaticBytes = 48 * 1024;
constexpr unsigned char kPoison = 0xCB;

struct Collective {  // of the lanes of one mask; two generations, as a fast lane may start the next before all have
                     // read
    unsigned mask = 0, arrived = 0, predicate[2] = {};
    int line = 0;
    uint64_t generation = 0, value[2][32] = {};
};
struct Warp {
    std::vector<std::unique_ptr<Collective>> collectives;
    unsigned speed =
        16;  // of 16 rounds, how many it takes part in: a slow warp falls behind unless a barrier holds the rest
    bool runs = true;
};

struct Copy {  // on its way to shared memory
    void* to;
    const void* from;
    size_t bytes;
    uint64_t group;
};

struct Block;
struct Fibre {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    jmp_buf resume;
    bool started, done;
    dim3 thread;
    unsigned index;
    const uint64_t* waits_on;  // runs again once *waits_on > waits_past
    uint64_t waits_past;
    std::vector<Copy> copies;
    uint64_t copy_groups;  // committed
    Block* block;
};

struct Block {
    dim3 index;
    std::vector<Fibre> fibres;
    std::vector<unsigned> order;
    std::vector<Warp> warps;
    unsigned alive = 0, at_barrier = 0;
    int barrier_line = 0, votes[2] = {};
    uint64_t barrier_generation = 0;
    std::vector<unsigned char> shared_static, shared_dynamic;
};

struct Machine {
    dim3 grid, block;
    Fibre* current = nullptr;
    jmp_buf scheduler;
    const std::function<void()>* kernel = nullptr;
    std::mt19937 random;
    std::string error;
    bool error_is_final = false;
    size_t static_used = 0;
};
inline Machine machine;

inline void give_way() {
    ++switches;
    if (!_setjmp(machine.current->resume)) _longjmp(machine.scheduler, 1);
}
[[noreturn]] inline void stop(const std::string& what) {
    const dim3 b = machine.current->block->index, t = machine.current->thread;
    machine.error = "host_cuda: " + what + " (block " + std::to_string(b.x) + "," + std::to_string(b.y) + " thread " +
                    std::to_string(t.x) + ")";
    machine.error_is_final = true;
    _longjmp(machine.scheduler, 1);
}
inline void wait_for(const uint64_t& generation, uint64_t past) {
    machine.current->waits_on = &generation;
    machine.current->waits_past = past;
    give_way();
}
// Where another thread's access may fall between two of ours.
inline void maybe_give_way() {
    if (seed && machine.random() % 32 == 0) give_way();
}

inline void release_barrier(Block& block) {
    block.at_barrier = 0;
    ++block.barrier_generation;
}
inline int barrier(int line, bool vote) {
    Block& block = *machine.current->block;
    if (block.at_barrier && block.barrier_line != line) stop("threads of a block wait at two different barriers");
    const uint64_t generation = block.barrier_generation;
    int& votes = block.votes[generation & 1];  // two, as a fast thread may reach the next barrier before all have read
    if (!block.at_barrier) votes = 0;
    block.barrier_line = line;
    votes += vote;
    if (++block.at_barrier == block.alive)
        release_barrier(block);
    else
        wait_for(block.barrier_generation, generation);
    return votes;
}

struct Exchange {
    const uint64_t* values;
    unsigned predicate;
};
inline Exchange exchange(unsigned mask, uint64_t value, bool predicate, int line) {
    const unsigned lane = machine.current->index & 31;
    if (!(mask >> lane & 1)) stop("a lane is not in its own mask");
    auto& all = machine.current->block->warps[machine.current->index >> 5].collectives;
    Collective* c = nullptr;
    for (auto& each : all) {
        if (each->mask == mask) c = each.get();
    }
    if (!c) {
        all.push_back(std::make_unique<Collective>());
        c = all.back().get();
        c->mask = mask;
    }
    const uint64_t generation = c->generation;
    const int half = generation & 1;
    if (!c->arrived) c->predicate[half] = 0, c->line = line;
    if (c->line != line) stop("lanes of a warp meet in two different collectives");
    c->value[half][lane] = value;
    c->predicate[half] |= unsigned{predicate} << lane;
    c->arrived |= 1u << lane;
    if (c->arrived == mask) {
        c->arrived = 0;
        ++c->generation;
    } else {
        wait_for(c->generation, generation);
    }
    return {c->value[half], c->predicate[half]};
}
template <typename T>
uint64_t to_bits(T v) {
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    return bits;
}
template <typename T>
T shuffle(unsigned mask, T v, unsigned from, bool inside, int line) {
    static_assert(sizeof(T) <= 8);
    const Exchange e = exchange(mask, to_bits(v), false, line);
    if (!inside) return v;
    if (!(mask >> (from & 31) & 1)) stop("a shuffle reads a lane outside the mask");
    T result;
    std::memcpy(&result, &e.values[from & 31], sizeof result);
    return result;
}
template <typename T>
T reduce_add(unsigned mask, T v, int line) {
    const Exchange e = exchange(mask, to_bits(v), false, line);
    T sum = 0;
    for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) sum += static_cast<T>(e.values[i]);
    }
    return sum;
}
inline unsigned lane() { return machine.current->index & 31; }

inline void copy_async(void* to, const void* from, size_t bytes) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes) stop("a misaligned copy");
    if (seed && machine.random() % 2) {
        std::memcpy(to, from, bytes);
    } else {
        machine.current->copies.push_back({to, from, bytes, machine.current->copy_groups});
    }
}
inline void commit_copies() { ++machine.current->copy_groups; }
// Lands the copies of all groups but the last `left` that this thread has committed.
inline void wait_for_copies(uint64_t left) {
    auto& copies = machine.current->copies;
    const auto landed = std::partition_point(copies.begin(), copies.end(), [&](const Copy& copy) {
        return copy.group + left < machine.current->copy_groups;
    });
    for (auto copy = copies.begin(); copy != landed; ++copy) std::memcpy(copy->to, copy->from, copy->bytes);
    copies.erase(copies.begin(), landed);
}

// The one `__shared__` struct of a kernel, and its dynamic shared memory.
inline void* static_shared(size_t bytes) {
    if (bytes > kStaticBytes) stop("static shared memory over 48 KiB");
    machine.static_used = bytes;
    Block& block = *machine.current->block;
    if (block.shared_static.empty()) block.shared_static.assign(bytes + kRedZone, kPoison);
    return block.shared_static.data();
}
inline unsigned char* dynamic_shared() { return machine.current->block->shared_dynamic.data(); }

inline void fibre_main() {
    (*machine.kernel)();
    Fibre& f = *machine.current;
    f.done = true;
    if (--f.block->alive && f.block->at_barrier == f.block->alive) release_barrier(*f.block);
    _longjmp(machine.scheduler, 1);
}

inline void check_red_zone(const std::vector<unsigned char>& bytes, const char* which) {
    for (size_t i = bytes.size() < kRedZone ? 0 : bytes.size() - kRedZone; i < bytes.size(); ++i) {
        if (bytes[i] != kPoison) throw std::runtime_error(std::string("host_cuda: store past the end of ") + which);
    }
}

inline void start(Block& block, unsigned linear, size_t dynamic_bytes) {
    const dim3 g = machine.grid, d = machine.block;
    block.index = dim3(linear % g.x, linear / g.x % g.y, linear / g.x / g.y);
    const unsigned n = d.x * d.y * d.z;
    block.alive = n;
    block.at_barrier = 0;
    block.warps = std::vector<Warp>((n + 31) / 32);
    block.shared_static.clear();
    block.shared_dynamic.assign(dynamic_bytes + kRedZone, kPoison);
    block.fibres.resize(n);
    block.order.resize(n);
    for (unsigned i = 0; i < n; ++i) {
        Fibre& f = block.fibres[i];
        f.started = f.done = false;
        f.index = i;
        f.thread = dim3(i % d.x, i / d.x % d.y, i / d.x / d.y);
        f.waits_on = nullptr;
        f.copies.clear();
        f.copy_groups = 0;
        f.block = &block;
        block.order[i] = i;
    }
    if (!seed) return;
    std::shuffle(block.order.begin(), block.order.end(), machine.random);
    for (Warp& warp : block.warps) warp.speed = 16u >> machine.random() % 4;
}

// Runs every thread that can run, once, of all warps or of those whose turn it is. Returns how many could.
inline unsigned run_round(Block& block, bool all) {
    unsigned ran = 0;
    for (Warp& warp : block.warps) warp.runs = all || machine.random() % 16 < warp.speed;
    for (const unsigned i : block.order) {
        Fibre& f = block.fibres[i];
        if (f.done || !block.warps[i / 32].runs || (f.waits_on && *f.waits_on <= f.waits_past)) continue;
        f.waits_on = nullptr;
        ++ran;
        machine.current = &f;
        if (!_setjmp(machine.scheduler)) {
            if (f.started) _longjmp(f.resume, 1);
            f.started = true;
            if (!f.stack) f.stack = std::make_unique<char[]>(kStackBytes);
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.get();
            f.context.uc_stack.ss_size = kStackBytes;
            f.context.uc_link = nullptr;
            makecontext(&f.context, fibre_main, 0);
            setcontext(&f.context);
        }
        if (machine.error_is_final) throw std::runtime_error(machine.error);
    }
    return ran;
}

inline void launch(dim3 grid, dim3 block, size_t dynamic_bytes, void*, const std::function<void()>& kernel) {
    if (block.x * block.y * block.z > 1024) throw std::runtime_error("host_cuda: more than 1024 threads in a block");
    if (uint64_t{grid.x} * grid.y * grid.z == 0 || block.x * block.y * block.z == 0) {
        throw std::runtime_error("host_cuda: a launch of no blocks or of no threads");
    }
    if (grid.y > 65535 || grid.z > 65535) throw std::runtime_error("host_cuda: grid.y or grid.z over 65535");
    ++launches;
    machine.grid = grid;
    machine.block = block;
    machine.kernel = &kernel;
    machine.error_is_final = false;
    machine.static_used = 0;
    machine.random.seed(seed);
    std::vector<unsigned> waiting(size_t{grid.x} * grid.y * grid.z);
    for (unsigned i = 0; i < waiting.size(); ++i) waiting[i] = waiting.size() - 1 - i;
    if (seed) std::shuffle(waiting.begin(), waiting.end(), machine.random);
    static std::vector<std::unique_ptr<Block>> pool;
    std::vector<Block*> running;
    while (pool.size() < size_t(resident_blocks)) pool.push_back(std::make_unique<Block>());
    std::vector<Block*> idle;
    for (int i = 0; i < resident_blocks; ++i) idle.push_back(pool[i].get());
    while (!waiting.empty() || !running.empty()) {
        while (!waiting.empty() && !idle.empty()) {
            start(*idle.back(), waiting.back(), dynamic_bytes);
            waiting.pop_back();
            running.push_back(idle.back());
            idle.pop_back();
        }
        const size_t pick = seed ? machine.random() % running.size() : 0;
        Block& b = *running[pick];
        if (!run_round(b, seed == 0) && !run_round(b, true)) {
            throw std::runtime_error("host_cuda: deadlock, " + std::to_string(b.alive) + " threads of block " +
                                     std::to_string(b.index.x) + " wait at line " + std::to_string(b.barrier_line) +
                                     " or in a warp collective that the others never reach");
        }
        if (machine.static_used + dynamic_bytes > size_t(max_shared_bytes)) {
            throw std::runtime_error("host_cuda: more shared memory than a block can have");
        }
        if (b.alive) continue;
        check_red_zone(b.shared_static, "the static shared memory");
        check_red_zone(b.shared_dynamic, "the dynamic shared memory");
        idle.push_back(&b);
        running.erase(running.begin() + pick);
    }
}

}  // namespace host_cuda
