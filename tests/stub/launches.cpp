// Kernels of torch and simfast: what their host code registers, and launches of it with their limits.
#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <unordered_map>

#include "stub.h"

using namespace stub;

namespace {

constexpr size_t kShared = 48 << 10, kSharedOptIn = 227 << 10;

struct Kernel {
    const char* mangled = "?";
    std::string name;  // filled in when it is launched first: torch registers tens of thousands
    size_t shared = kShared;
};

Kernel& kernel_of(const void* function) {
    static auto& kernels = *new std::unordered_map<const void*, Kernel>;
    return kernels[function];
}

struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};

thread_local std::vector<Configuration> configurations;

std::string demangled(const char* name) {
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> found(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
    return status == 0 ? found.get() : name;
}

cudaError_t launch(const void* function, const Configuration& how) {
    Lock lock(mutex);
    need_context("a launch");
    Kernel& kernel = kernel_of(function);
    if (kernel.name.empty()) kernel.name = demangled(kernel.mangled);
    const auto [grid, block, shared, stream] = how;
    const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0;
    const bool large = grid.x > 2147483647 || grid.y > 65535 || grid.z > 65535 || block.z > 64 ||
                       size_t{block.x} * block.y * block.z > 1024;
    if (empty || large) {
        return refuse("a launch of " + kernel.name + " whose grid or block is empty or too large",
                      cudaErrorInvalidConfiguration);
    }
    if (shared > kernel.shared) {
        return refuse("a launch of " + kernel.name + " with more shared memory than was asked for",
                      cudaErrorInvalidValue);
    }
    enqueue(stream_of(stream), "kernel", kernel.name);
    return cudaSuccess;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// What nvcc's host code calls
// ---------------------------------------------------------------------------------------------------------------------

STUB_API void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
STUB_API void __cudaRegisterFatBinaryEnd(void**) {}
STUB_API void __cudaUnregisterFatBinary(void**) {}
STUB_API char __cudaInitModule(void**) { return 1; }
STUB_API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                                     dim3*, int*) {
    Lock lock(mutex);
    kernel_of(function).mangled = name;
}
STUB_API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
STUB_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    configurations.push_back({grid, block, shared, stream});
    return 0;
}
STUB_API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    const Configuration& how = configurations.back();
    *grid = how.grid, *block = how.block, *shared = how.shared, *static_cast<cudaStream_t*>(stream) = how.stream;
    configurations.pop_back();
    return cudaSuccess;
}
STUB_API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
    return cudaSuccess;
}
STUB_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared,
                                        cudaStream_t stream) {
    return launch(kernel, {grid, block, shared, stream});
}

// ---------------------------------------------------------------------------------------------------------------------
// What programs call
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                                      cudaStream_t stream) {
    return launch(function, {grid, block, shared, stream});
}
STUB_API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                                                 cudaStream_t stream) {
    return launch(function, {grid, block, shared, stream});
}
STUB_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* function, void**) {
    return launch(function, {how->gridDim, how->blockDim, how->dynamicSmemBytes, how->stream});
}
STUB_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void* function) {
    Lock lock(mutex);
    *found = {};
    found->maxThreadsPerBlock = 1024, found->numRegs = 32;
    found->ptxVersion = found->binaryVersion = 90;
    found->maxDynamicSharedSizeBytes = int(kernel_of(function).shared);
    return cudaSuccess;
}
STUB_API cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    Lock lock(mutex);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || size_t(value) > kSharedOptIn)
        return refuse("more shared memory than there is", cudaErrorInvalidValue);
    kernel_of(function).shared = value;
    return cudaSuccess;
}
STUB_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                            unsigned) {
    return *blocks = 2, cudaSuccess;
}
STUB_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    return *blocks = 2, cudaSuccess;
}
