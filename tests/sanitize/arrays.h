// What the checks of the CPU kernels share: arrays in which one element too far is seen, passes in two threads, maps.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels.h"

using namespace simfast;

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::exit(1);
}

// An array of its own on the heap, so that one element too far is seen; filled with junk.
template <typename T>
struct Array {
    int64_t size;
    std::unique_ptr<T[]> data;
    explicit Array(int64_t n) : size(n), data(new T[n]) {
        std::memset(static_cast<void*>(data.get()), 0xA5, n * sizeof(T));
    }
    T* get() const { return data.get(); }
    bool operator==(const Array& other) const { return !std::memcmp(get(), other.get(), size * sizeof(T)); }
};

using Pass = std::function<void(int64_t, int64_t)>;

// The two halves of a pass at the same time.
inline void in_two_threads(int64_t items, const Pass& pass) {
    const int64_t half = items / 2;
    std::thread other([&] { pass(0, half); });
    pass(half, items);
    other.join();
}

struct Shape {
    int64_t B, H, W;
};

template <typename T>
Array<T> random_labels(const Shape& shape, std::mt19937& random, int64_t low, int64_t high, int64_t blob) {
    Array<T> labels(shape.B * shape.H * shape.W);
    std::vector<int64_t> value(97);
    for (int64_t& v : value) v = low + static_cast<int64_t>(random() % (high - low + 1));
    for (int64_t i = 0; i < labels.size; ++i) {
        const int64_t x = i % shape.W, y = i / shape.W;
        labels.get()[i] = static_cast<T>(value[(x / blob * 31 + y / blob * 17 + random() % 2) % 97]);
    }
    return labels;
}

template <typename T>
LabelMap map_of(const Array<T>& labels, Dtype dtype, const Shape& s) {
    return {labels.get(), dtype, s.H * s.W, s.W, 1};
}

// hostile.cpp
void check_bad_values();
void check_concurrent_changes();
