// cuDNN's graph interface, with which torch makes its convolutions: one engine for each, with 16 MiB of workspace.
#include <cudnn.h>

#include "stub.h"

using namespace stub;

namespace {

constexpr int64_t kWorkspace = 16 << 20;

struct Descriptor {
    cudnnBackendDescriptorType_t type;
    std::string operation;  // of the convolution that it is about, handed on from descriptor to descriptor
};

Descriptor& of(cudnnBackendDescriptor_t descriptor) { return *static_cast<Descriptor*>(descriptor); }

std::string operation_of(const Descriptor& part) {
    switch (part.type) {
        case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR: return "cudnn convolution forward";
        case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR: return "cudnn convolution weights";
        case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR: return "cudnn convolution data";
        default: return part.operation;
    }
}

}  // namespace

STUB_API cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* made) {
    return *made = new Descriptor{type, ""}, CUDNN_STATUS_SUCCESS;
}
STUB_API cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
    return delete static_cast<Descriptor*>(descriptor), CUDNN_STATUS_SUCCESS;
}
STUB_API cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t) { return CUDNN_STATUS_SUCCESS; }
STUB_API cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t,
                                                cudnnBackendAttributeType_t type, int64_t count, const void* values) {
    if (type != CUDNN_TYPE_BACKEND_DESCRIPTOR) return CUDNN_STATUS_SUCCESS;
    for (int64_t i = 0; i < count; i++) {
        const auto* part = static_cast<Descriptor* const*>(values)[i];
        if (part != nullptr && !operation_of(*part).empty()) of(descriptor).operation = operation_of(*part);
    }
    return CUDNN_STATUS_SUCCESS;
}
STUB_API cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                                cudnnBackendAttributeType_t, int64_t room, int64_t* count,
                                                void* values) {
    const bool fits = room > 0 && values != nullptr;
    int64_t found = 1;
    if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS) {
        if (fits) of(static_cast<cudnnBackendDescriptor_t*>(values)[0]).operation = of(descriptor).operation;
    } else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
        if (fits) *static_cast<int64_t*>(values) = kWorkspace;
    } else if (name == CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT) {
        if (fits) *static_cast<int64_t*>(values) = 1;
    } else {
        found = 0;  // no notes, no knobs
    }
    if (count != nullptr) *count = found;
    return CUDNN_STATUS_SUCCESS;
}
STUB_API cudnnStatus_t cudnnGetProperty(libraryPropertyType type, int* value) {
    *value = type == MAJOR_VERSION ? CUDNN_MAJOR : type == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
    return CUDNN_STATUS_SUCCESS;
}
STUB_API cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                           cudnnBackendDescriptor_t) {
    Lock lock(mutex);
    cudaStream_t stream = nullptr;
    cudnnGetStream(handle, &stream);
    enqueue(stream_of(stream), "library", of(plan).operation);
    return CUDNN_STATUS_SUCCESS;
}
