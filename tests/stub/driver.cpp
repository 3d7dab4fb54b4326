// The driver, as far as torch uses it: kernels that it writes and compiles at run time, see nvrtc.cpp.
#include <cuda.h>
#include <dlfcn.h>

#include <array>
#include <utility>

#include "stub.h"

namespace stub {
bool has_context();
}

using namespace stub;

namespace {

// Something that is not null, for handles that nobody looks into.
char something;

template <typename Handle>
Handle any() {
    return reinterpret_cast<Handle>(&something);
}

// Functions for pointers to what the stub does not have: each tells its own name.
constexpr int kMissing = 128;
std::array<std::string, kMissing> missing;

template <int i>
int call_missing() {
    return unknown(missing[i].c_str());
}

template <int... i>
constexpr std::array<int (*)(), kMissing> all_missing(std::integer_sequence<int, i...>) {
    return {call_missing<i>...};
}

void* pointer_to_missing(const char* function) {
    static constexpr auto calls = all_missing(std::make_integer_sequence<int, kMissing>{});
    for (int i = 0; i < kMissing; i++) {
        if (missing[i].empty()) missing[i] = function;
        if (missing[i] == function) return reinterpret_cast<void*>(calls[i]);
    }
    return nullptr;
}

}  // namespace

// A call that takes long, is nothing's operation, and does not belong into a capture.
STUB_API void stub_outside_captures(const char* function) {
    count("compile", function);
    if (unsafe_calls_are_forbidden()) violation(std::string(function) + " in a capture");
}

STUB_API cudaError_t cudaGetDriverEntryPointByVersion(const char* function, void** pointer, unsigned,
                                                      unsigned long long, cudaDriverEntryPointQueryResult* result) {
    Lock lock(mutex);
    *pointer = dlsym(RTLD_DEFAULT, function);
    if (*pointer == nullptr) *pointer = pointer_to_missing(function);
    if (result != nullptr) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// Driver
// ---------------------------------------------------------------------------------------------------------------------

STUB_API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
STUB_API CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
STUB_API CUresult cuDeviceGet(CUdevice* device, int number) { return *device = number, CUDA_SUCCESS; }
STUB_API CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
STUB_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), 0);
    return CUDA_SUCCESS;
}
STUB_API CUresult cuGetErrorString(CUresult, const char** text) {
    return *text = "an error of the stub GPU", CUDA_SUCCESS;
}
STUB_API CUresult cuLogsRegisterCallback(CUlogsCallback, void*, CUlogsCallbackHandle* handle) {
    return *handle = any<CUlogsCallbackHandle>(), CUDA_SUCCESS;
}
STUB_API CUresult cuLogsUnregisterCallback(CUlogsCallbackHandle) { return CUDA_SUCCESS; }
STUB_API CUresult cuCtxGetCurrent(CUcontext* context) {
    return *context = has_context() ? any<CUcontext>() : nullptr, CUDA_SUCCESS;
}
STUB_API CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
STUB_API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
    if (flags != nullptr) *flags = 0;
    return *active = has_context(), CUDA_SUCCESS;
}
STUB_API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    need_context("cuDevicePrimaryCtxRetain");
    return *context = any<CUcontext>(), CUDA_SUCCESS;
}
STUB_API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr) {
    if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) return CUDA_ERROR_NOT_SUPPORTED;
    return *static_cast<int*>(value) = 0, CUDA_SUCCESS;
}
STUB_API CUresult cuModuleLoadData(CUmodule* module, const void*) {
    stub_outside_captures("cuModuleLoadData");
    return *module = any<CUmodule>(), CUDA_SUCCESS;
}
STUB_API CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char*) {
    return *function = any<CUfunction>(), CUDA_SUCCESS;
}
STUB_API CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 CUstream stream, void**, void**) {
    Lock lock(mutex);
    need_context("cuLaunchKernel");
    enqueue(stream_of(stream), "kernel", "compiled by NVRTC");
    return CUDA_SUCCESS;
}
