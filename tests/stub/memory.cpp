// The device, its memory, and copies.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "stub.h"

using namespace stub;

namespace {

constexpr size_t kMemory = size_t{80} << 30;
constexpr size_t kPage = 4096;

// Device memory is a range of addresses that nobody may touch: a host which takes a device's pointer for its own dies
// as it would on a real one, and the memory of a real one costs nothing here. What the host reads from the device is
// zero.
struct Memory {
    std::map<uintptr_t, size_t> device, pinned;  // bytes by address
    size_t used = 0;
};

Memory& memory() {
    static Memory& it = *new Memory;
    return it;
}

// Whether one of the blocks holds a pointer.
bool in(const std::map<uintptr_t, size_t>& blocks, const void* pointer) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    const auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return false;
    const auto& [first, bytes] = *std::prev(after);
    return address < first + bytes;
}

bool on_device(const void* pointer) { return in(memory().device, pointer); }
bool is_pinned(const void* pointer) { return in(memory().pinned, pointer); }

struct Copy {
    std::string name;  // HtoD, DtoH, DtoD or HtoH, and " pageable" where the host's side is
    bool host, to_device;
};

Copy describe(const void* to, const void* from) {
    const bool to_device = on_device(to), from_device = on_device(from);
    Copy copy{std::string(from_device ? "D" : "H") + "to" + (to_device ? "D" : "H"), true, to_device};
    copy.host = !(to_device && from_device);
    if (copy.host && !is_pinned(to_device ? from : to)) copy.name += " pageable";
    return copy;
}

void copy_to_host(void* to, const void* from, size_t bytes) {
    if (on_device(from)) {
        std::memset(to, 0, bytes);
    } else {
        std::memcpy(to, from, bytes);
    }
}

cudaDeviceProp properties() {
    cudaDeviceProp p{};  // an H100's, as far as torch and simfast ask
    std::strcpy(p.name, "stub GPU, computes nothing");
    p.major = 9, p.minor = 0;
    p.multiProcessorCount = 132, p.warpSize = 32;
    p.totalGlobalMem = kMemory, p.totalConstMem = 65536, p.l2CacheSize = 50 << 20, p.memoryBusWidth = 5120;
    p.maxThreadsPerBlock = 1024, p.maxThreadsPerMultiProcessor = 2048, p.maxBlocksPerMultiProcessor = 32;
    p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024, p.maxThreadsDim[2] = 64;
    p.maxGridSize[0] = 2147483647, p.maxGridSize[1] = p.maxGridSize[2] = 65535;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.sharedMemPerBlock = 49152, p.sharedMemPerBlockOptin = 232448, p.sharedMemPerMultiprocessor = 233472;
    p.reservedSharedMemPerBlock = 1024;
    p.memPitch = 2147483647, p.textureAlignment = 512, p.asyncEngineCount = 3;
    p.concurrentKernels = p.unifiedAddressing = p.managedMemory = p.cooperativeLaunch = p.canMapHostMemory = 1;
    return p;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The device
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
STUB_API cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
STUB_API cudaError_t cudaSetDevice(int device) {
    need_context("cudaSetDevice");
    return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice);
}
STUB_API cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
STUB_API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
STUB_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) { return *found = properties(), cudaSuccess; }
STUB_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const cudaDeviceProp p = properties();
    const std::map<int, int> known = {
        {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
        {cudaDevAttrMaxBlockDimX, p.maxThreadsDim[0]},
        {cudaDevAttrMaxBlockDimY, p.maxThreadsDim[1]},
        {cudaDevAttrMaxBlockDimZ, p.maxThreadsDim[2]},
        {cudaDevAttrMaxGridDimX, p.maxGridSize[0]},
        {cudaDevAttrMaxGridDimY, p.maxGridSize[1]},
        {cudaDevAttrMaxGridDimZ, p.maxGridSize[2]},
        {cudaDevAttrMaxSharedMemoryPerBlock, int(p.sharedMemPerBlock)},
        {cudaDevAttrWarpSize, p.warpSize},
        {cudaDevAttrMaxRegistersPerBlock, p.regsPerBlock},
        {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
        {cudaDevAttrL2CacheSize, p.l2CacheSize},
        {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
        {cudaDevAttrComputeCapabilityMajor, p.major},
        {cudaDevAttrComputeCapabilityMinor, p.minor},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, int(p.sharedMemPerMultiprocessor)},
        {cudaDevAttrMaxRegistersPerMultiprocessor, p.regsPerMultiprocessor},
        {cudaDevAttrCooperativeLaunch, p.cooperativeLaunch},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, int(p.sharedMemPerBlockOptin)},
        {cudaDevAttrMaxBlocksPerMultiprocessor, p.maxBlocksPerMultiProcessor},
        {cudaDevAttrReservedSharedMemoryPerBlock, int(p.reservedSharedMemPerBlock)},
    };
    const auto it = known.find(attribute);
    *value = it == known.end() ? 0 : it->second;
    return cudaSuccess;
}
STUB_API cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int) {
    std::strncpy(id, "0000:00:00.0", bytes);
    return cudaSuccess;
}
STUB_API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
STUB_API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    Lock lock(mutex);
    *total = kMemory, *available = kMemory - memory().used;
    return cudaSuccess;
}
STUB_API cudaError_t cudaProfilerStart() { return cudaSuccess; }
STUB_API cudaError_t cudaProfilerStop() { return cudaSuccess; }

// ---------------------------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    Lock lock(mutex);
    need_context("cudaMalloc");
    if (unsafe_calls_are_forbidden()) return refuse("cudaMalloc in a capture", cudaErrorStreamCaptureUnsupported);
    count("malloc", "device");
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (memory().used + bytes > kMemory) return fail(cudaErrorMemoryAllocation);
    const size_t whole = (bytes + kPage - 1) / kPage * kPage;
    void* range = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
    memory().device[reinterpret_cast<uintptr_t>(range)] = whole;
    memory().used += whole;
    *pointer = range;
    return cudaSuccess;
}

STUB_API cudaError_t cudaFree(void* pointer) {
    Lock lock(mutex);
    need_context("cudaFree");
    if (unsafe_calls_are_forbidden()) return refuse("cudaFree in a capture", cudaErrorStreamCaptureUnsupported);
    if (pointer == nullptr) return cudaSuccess;
    count("free", "device");
    const auto it = memory().device.find(reinterpret_cast<uintptr_t>(pointer));
    if (it == memory().device.end()) return refuse("cudaFree of no device memory", cudaErrorInvalidValue);
    munmap(pointer, it->second);
    memory().used -= it->second;
    memory().device.erase(it);
    return cudaSuccess;
}

STUB_API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    Lock lock(mutex);
    need_context("cudaHostAlloc");
    if (unsafe_calls_are_forbidden()) return refuse("cudaHostAlloc in a capture", cudaErrorStreamCaptureUnsupported);
    count("malloc", "pinned");
    *pointer = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
    memory().pinned[reinterpret_cast<uintptr_t>(*pointer)] = bytes;
    return cudaSuccess;
}

STUB_API cudaError_t cudaFreeHost(void* pointer) {
    Lock lock(mutex);
    if (unsafe_calls_are_forbidden()) return refuse("cudaFreeHost in a capture", cudaErrorStreamCaptureUnsupported);
    memory().pinned.erase(reinterpret_cast<uintptr_t>(pointer));
    std::free(pointer);
    return cudaSuccess;
}

STUB_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
    Lock lock(mutex);
    *found = {};
    found->type = on_device(pointer)   ? cudaMemoryTypeDevice
                  : is_pinned(pointer) ? cudaMemoryTypeHost
                                       : cudaMemoryTypeUnregistered;
    if (found->type != cudaMemoryTypeUnregistered) found->devicePointer = const_cast<void*>(pointer);
    if (found->type == cudaMemoryTypeHost) found->hostPointer = const_cast<void*>(pointer);
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// Copies
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t on) {
    Lock lock(mutex);
    need_context("cudaMemcpyAsync");
    Stream& stream = stream_of(on);
    const Copy copy = describe(to, from);
    enqueue(stream, "memcpy", copy.name);
    if (stream.capture != nullptr) {
        // CUDA takes it, and every replay reads or writes what is then at that place of the host's memory.
        if (copy.host) violation("captured copy " + copy.name + " of " + std::to_string(bytes) + " bytes");
    } else if (!copy.to_device) {
        copy_to_host(to, from, bytes);
    }
    return cudaSuccess;
}

STUB_API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    Lock lock(mutex);
    need_context("cudaMemcpy");
    if (unsafe_calls_are_forbidden()) return refuse("cudaMemcpy in a capture", cudaErrorStreamCaptureImplicit);
    const Copy copy = describe(to, from);
    enqueue(stream_of(nullptr), "memcpy", copy.name);
    count("sync", "cudaMemcpy");
    if (!copy.to_device) copy_to_host(to, from, bytes);
    return cudaSuccess;
}

STUB_API cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t on) {
    Lock lock(mutex);
    need_context("cudaMemsetAsync");
    enqueue(stream_of(on), "memset", "");
    return cudaSuccess;
}

STUB_API cudaError_t cudaMemset(void*, int, size_t) {
    Lock lock(mutex);
    if (unsafe_calls_are_forbidden()) return refuse("cudaMemset in a capture", cudaErrorStreamCaptureImplicit);
    enqueue(stream_of(nullptr), "memset", "");
    return cudaSuccess;
}
