// The binding: one file an op, named as in cpu/ and cuda/, that registers it through torch's stable ABI, so that one
// library serves every torch from 2.11 on. This folder is all that includes torch, and kernels.h all that it knows of
// the kernels.
//
// Each file states its op's schema, turns tensors into the kernels' arguments (checks what a kernel relies on, and
// allocates), and runs the passes in torch's own thread pool (torch.set_num_threads governs it) or launches on torch's
// current stream. Gradients, shape inference and most messages that a user sees: simfast/ops/*.py. No Autocast key is
// registered: dtypes pass through as they came.
//
// Here is what the files share.
#pragma once

#include <dlfcn.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "kernels.h"

namespace simfast::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

template <typename... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    return message.str();
}

template <typename... Parts>
void check(bool holds, const Parts&... parts) {
    if (!holds) throw std::runtime_error(text(parts...));
}

// A symbol of a library that torch has loaded, null where this torch has none of that name.
template <typename Function>
Function loaded(const char* library, const char* name) {
    void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    return handle ? reinterpret_cast<Function>(dlsym(handle, name)) : nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes
// ---------------------------------------------------------------------------------------------------------------------

// Expanded tensors have sizes that no memory bounds. Whatever is allocated, counted or indexed by a product of sizes
// has it checked here: no machine holds 2^48 elements, and as many times what a kernel keeps for each stay in 63 bits.
inline constexpr int64_t kMostElements = int64_t{1} << 48;

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// As "[2, 3]" in a message, made only where one is.
struct Listed {
    Sizes sizes;
    friend std::ostream& operator<<(std::ostream& out, const Listed& list) {
        out << '[';
        for (size_t i = 0; i < list.sizes.size(); ++i) out << (i ? ", " : "") << list.sizes[i];
        return out << ']';
    }
};

inline int64_t product(const char* what, Sizes sizes) {
    int64_t total = std::find(sizes.begin(), sizes.end(), 0) == sizes.end();
    for (const int64_t size : sizes) {
        check(total == 0 || (size > 0 && total <= (kMostElements - 1) / size), what,
              " must have less than 2^48 elements, got ", Listed{sizes});
        total *= size;
    }
    return total;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors to arguments
// ---------------------------------------------------------------------------------------------------------------------

inline const char* name_of(ScalarType type) {
    switch (type) {
        case ScalarType::Byte: return "uint8";
        case ScalarType::Char: return "int8";
        case ScalarType::Short: return "int16";
        case ScalarType::Int: return "int32";
        case ScalarType::Long: return "int64";
        case ScalarType::Half: return "float16";
        case ScalarType::BFloat16: return "bfloat16";
        case ScalarType::Float: return "float32";
        case ScalarType::Double: return "float64";
        case ScalarType::Bool: return "bool";
        default: return "another dtype";
    }
}

// As ", got int64 [2, 3]" in a message.
struct Came {
    const Tensor& x;
    friend std::ostream& operator<<(std::ostream& out, const Came& came) {
        return out << ", got " << name_of(came.x.scalar_type()) << ' ' << Listed{came.x.sizes()};
    }
};

inline Dtype map_dtype(const char* what, const Tensor& map) {
    switch (map.scalar_type()) {
        case ScalarType::Byte: return Dtype::u8;
        case ScalarType::Short: return Dtype::i16;
        case ScalarType::Int: return Dtype::i32;
        case ScalarType::Long: return Dtype::i64;
        default: check(false, what, " must be uint8, int16, int32 or int64", Came{map}); return Dtype::u8;
    }
}

inline Dtype feature_dtype(const char* what, ScalarType type, bool cuda) {
    switch (type) {
        case ScalarType::Float: return Dtype::f32;
        case ScalarType::Half: return Dtype::f16;
        case ScalarType::BFloat16: return Dtype::bf16;
        default:
            check(type == ScalarType::Double && !cuda, what,
                  " must be float32, float16 or bfloat16, or float64 on the CPU, got ", name_of(type));
            return Dtype::f64;
    }
}

// float32, or float64 on the CPU.
inline Dtype unrounded_dtype(const char* what, ScalarType type, bool cuda) {
    check(type == ScalarType::Float || (type == ScalarType::Double && !cuda), what,
          " must be float32 (float64 on the CPU), got ", name_of(type));
    return type == ScalarType::Float ? Dtype::f32 : Dtype::f64;
}

// What values of a dtype are summed in.
inline ScalarType sum_type_of(Dtype dtype) { return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

// Python's MemoryError, with a text of its own.
struct OutOfMemory : std::bad_alloc {
    std::string message;
    explicit OutOfMemory(std::string text) : message(std::move(text)) {}
    const char* what() const noexcept override { return message.c_str(); }
};

// What `allocate` of torch's returns. That it failed is all that the stable ABI hands over before torch 2.13, so the
// message says what there was no room for.
template <typename Allocate>
Tensor allocated(const char* what, ScalarType type, Sizes sizes, const Allocate& allocate) {
    product(what, sizes);
    try {
        return allocate();
    } catch (const std::exception&) {
        using What = const char* (*)();
        static const What reason = loaded<What>("libtorch_cpu.so", "torch_exception_get_what_without_backtrace");
        const std::string why = reason ? reason() : "";
        const auto says = [&](const char* words) { return why.find(words) != std::string::npos; };
        const std::string message =
            text(what, ": no memory for ", name_of(type), " ", Listed{sizes}, why.empty() ? "" : ": ", why);
        if (why.empty() || says("out of memory") || says("allocate memory")) throw OutOfMemory(message);
        throw std::runtime_error(message);
    }
}

inline Tensor contiguous(const char* what, const Tensor& x) {
    if (x.is_contiguous()) return x;
    return allocated(what, x.scalar_type(), x.sizes(), [&] { return torch::stable::contiguous(x); });
}

inline LabelMap label_map(const char* what, const Tensor& map) {
    check(map.dim() == 3 && product(what, map.sizes()) > 0, what, " must be a non-empty integer [B, H, W]", Came{map});
    check(map.size(1) * map.size(2) <= INT32_MAX, what, " must have less than 2^31 pixels an image", Came{map});
    return {map.const_data_ptr(), map_dtype(what, map), map.stride(0), map.stride(1), map.stride(2)};
}

inline Tensor integers(const char* what, const Tensor& x, int64_t length) {
    check(x.dim() == 1 && x.size(0) == length && x.scalar_type() == ScalarType::Long, what, " must be int64 [", length,
          "]", Came{x});
    return contiguous(what, x);
}

// Of one dimension, which gives an op one of its sizes.
inline int64_t length_of(const char* what, const Tensor& x) {
    check(x.dim() == 1, what, " must be int64 with one dimension", Came{x});
    return x.size(0);
}

inline void check_connectivity(const char* op, int64_t connectivity) {
    check(connectivity == 4 || connectivity == 8, op, ": connectivity must be 4 or 8, got ", connectivity);
}

template <typename T>
const T* in(const Tensor& x) {
    return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* out(const Tensor& x) {
    return static_cast<T*>(x.mutable_data_ptr());
}

inline void check_same_device(const char* what, const Tensor& a, const Tensor& b) {
    check(a.get_device_index() == b.get_device_index() && a.is_cuda() == b.is_cuda(), what);
}

// Fresh memory comes page by page, which costs more than writing it: large arrays ask for large pages, as NumPy's do.
inline const Tensor& with_large_pages(const Tensor& x) {
#ifdef __linux__
    constexpr uintptr_t kPage = uintptr_t{2} << 20;
    const auto begin = reinterpret_cast<uintptr_t>(x.const_data_ptr());
    const uintptr_t end = begin + static_cast<uintptr_t>(x.numel()) * x.element_size();
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
    if (x.is_cpu() && last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    return x;
}

inline Tensor uninitialised(const char* what, const Tensor& like, std::vector<int64_t> size, ScalarType type) {
    return with_large_pages(allocated(what, type, size, [&] { return torch::stable::new_empty(like, size, type); }));
}

inline Tensor workspace(const char* what, const Tensor& like, int64_t bytes) {
    return uninitialised(what, like, {bytes}, ScalarType::Byte);
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU: passes over ranges in torch's pool
// ---------------------------------------------------------------------------------------------------------------------

template <typename Args>
void run_pass(void (*pass)(const Args&, int64_t, int64_t), const Args& args, int64_t items, int64_t grain = 1) {
    torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) { pass(args, begin, end); });
}

// Channels or rows that a thread takes at least: 32768 values.
inline int64_t grain(int64_t values_each) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, values_each)); }

// Strips per image, such that all strips divide evenly among the threads and none is too small to be worth waking one.
inline int32_t choose_strips(int64_t B, int64_t H, int64_t W) {
    constexpr int64_t kLeastPixels = 16384;
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t even = threads / std::gcd(B, threads);
    return static_cast<int32_t>(std::max<int64_t>(1, std::min({even, H, H * W / kLeastPixels})));
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA: the current stream of a device
// ---------------------------------------------------------------------------------------------------------------------

#ifdef SIMFAST_WITH_CUDA

// torch 2.13 has a stable call for it; before, the symbol lives in libtorch_cuda, which a CPU torch does not have and
// this library therefore does not link.
inline void* current_stream(int32_t device) {
    using Native = AOTITorchError (*)(StreamHandle, void**);
    using Current = AOTITorchError (*)(int32_t, void**);
    static const Native native = loaded<Native>("libtorch_cpu.so", "torch_stream_native_handle");
    static const Current current =
        native ? nullptr : loaded<Current>("libtorch_cuda.so", "aoti_torch_get_current_cuda_stream");
    void* stream = nullptr;
    if (native) {
        StreamHandle handle = nullptr;
        check(aoti_torch_get_current_stream(device, &handle) == AOTI_TORCH_SUCCESS, "no current stream");
        const AOTITorchError error = native(handle, &stream);
        aoti_torch_delete_stream(handle);
        check(error == AOTI_TORCH_SUCCESS, "the current stream has no native handle");
    } else {
        check(current && current(device, &stream) == AOTI_TORCH_SUCCESS, "this torch offers no CUDA stream");
    }
    return stream;
}

template <typename Args>
void launch(const char* op, const char* (*run)(const Args&, void*), const Args& args, const Tensor& on) {
    const char* error = run(args, current_stream(on.get_device_index()));
    check(!error, op, ": ", error ? error : "");
}

// The same with a workspace. It is given back before the kernels have run: torch's allocator hands its memory out again
// to this stream alone, whose work comes after them.
template <typename Args>
void launch(const char* op, int64_t (*workspace_bytes)(const Args&), const char* (*run)(const Args&, void*), Args& args,
            const Tensor& on) {
    const Tensor space = workspace(op, on, workspace_bytes(args));
    args.workspace = space.mutable_data_ptr();
    launch(op, run, args, on);
}

#endif

}  // namespace simfast::binding
