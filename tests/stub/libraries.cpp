// cuBLAS, cuBLASLt, cuFFT and cuDNN's plain functions: a call that computes is one operation of its handle's stream.
// CUPTI, with which a profiler finds that a device did nothing.
//
// Declared here and not by NVIDIA's headers: of a call's many arguments only the first is looked at, and a C function
// may leave the others alone. A handle, or a plan, is the stream that was set for it.
#include <cstring>

#include "stub.h"

using namespace stub;

namespace {

struct Handle {
    cudaStream_t stream = nullptr;
};

int compute(const char* function, cudaStream_t stream) {
    Lock lock(mutex);
    need_context(function);
    enqueue(stream_of(stream), "library", function);
    return 0;
}

std::vector<Handle>& plans() {
    static auto& it = *new std::vector<Handle>;
    return it;
}

}  // namespace

#define NOTHING(function) \
    STUB_API int function(...) { return 0; }
#define COMPUTES(function) \
    STUB_API int function(const Handle* handle, ...) { return compute(#function, handle->stream); }
#define DESCRIPTOR(create, destroy)                                                     \
    STUB_API int create(void** descriptor, ...) { return *descriptor = new Handle, 0; } \
    STUB_API int destroy(void* descriptor) { return delete static_cast<Handle*>(descriptor), 0; }

// ---------------------------------------------------------------------------------------------------------------------
// cuBLAS
// ---------------------------------------------------------------------------------------------------------------------

DESCRIPTOR(cublasCreate_v2, cublasDestroy_v2)
STUB_API int cublasSetStream_v2(Handle* handle, cudaStream_t stream) { return handle->stream = stream, 0; }
STUB_API int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
STUB_API int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, 0; }
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2)
COMPUTES(cublasSgemm_v2)
COMPUTES(cublasDgemm_v2)
COMPUTES(cublasGemmEx)
COMPUTES(cublasSgemmEx)
COMPUTES(cublasSgemmStridedBatched)
COMPUTES(cublasGemmStridedBatchedEx)
COMPUTES(cublasSgemv_v2)
COMPUTES(cublasSdot_v2)
COMPUTES(cublasDotEx)

STUB_API size_t cublasLtGetVersion() { return 130100; }
DESCRIPTOR(cublasLtMatmulDescCreate, cublasLtMatmulDescDestroy)
DESCRIPTOR(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceDestroy)
DESCRIPTOR(cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutSetAttribute)
STUB_API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int* found) {
    return *found = 1, 0;
}
STUB_API int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*,
                            void*, void*, void*, const void*, void*, size_t, cudaStream_t stream) {
    return compute("cublasLtMatmul", stream);
}

// ---------------------------------------------------------------------------------------------------------------------
// cuFFT
// ---------------------------------------------------------------------------------------------------------------------

STUB_API int cufftCreate(int* plan) {
    Lock lock(mutex);
    plans().emplace_back();
    return *plan = int(plans().size()) - 1, 0;
}
NOTHING(cufftDestroy)
NOTHING(cufftSetAutoAllocation)
NOTHING(cufftSetWorkArea)
STUB_API int cufftXtMakePlanMany(int, int, void*, void*, long long, long long, int, void*, long long, long long, int,
                                 long long, size_t* workspace, int) {
    count("plan", "cuFFT");
    return *workspace = 1 << 20, 0;
}
STUB_API int cufftSetStream(int plan, cudaStream_t stream) {
    Lock lock(mutex);
    return plans()[plan].stream = stream, 0;
}
STUB_API int cufftXtExec(int plan, ...) {
    Lock lock(mutex);
    return compute("cufftXtExec", plans()[plan].stream);
}

// ---------------------------------------------------------------------------------------------------------------------
// cuDNN
// ---------------------------------------------------------------------------------------------------------------------

DESCRIPTOR(cudnnCreate, cudnnDestroy)
STUB_API int cudnnSetStream(Handle* handle, cudaStream_t stream) { return handle->stream = stream, 0; }
STUB_API int cudnnGetStream(const Handle* handle, cudaStream_t* stream) { return *stream = handle->stream, 0; }
STUB_API size_t cudnnGetVersion() { return 91900; }
STUB_API size_t cudnnGetCudartVersion() { return 13000; }
STUB_API const char* cudnnGetErrorString(int) { return "an error of the stub GPU"; }
STUB_API void cudnnGetLastErrorString(char* text, size_t bytes) {
    if (bytes > 0) text[0] = 0;
}
DESCRIPTOR(cudnnCreateTensorDescriptor, cudnnDestroyTensorDescriptor)
DESCRIPTOR(cudnnCreateFilterDescriptor, cudnnDestroyFilterDescriptor)
DESCRIPTOR(cudnnCreateActivationDescriptor, cudnnDestroyActivationDescriptor)
DESCRIPTOR(cudnnCreateConvolutionDescriptor, cudnnDestroyConvolutionDescriptor)
NOTHING(cudnnSetTensorNdDescriptor)
NOTHING(cudnnSetFilterNdDescriptor)
NOTHING(cudnnSetActivationDescriptor)
NOTHING(cudnnDeriveBNTensorDescriptor)
STUB_API int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void*, int, int, void*, void*, void*, void*,
                                                                      void*, size_t* bytes) {
    return *bytes = 1 << 20, 0;
}
STUB_API int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*,
                                                               void*, void*, size_t* bytes) {
    return *bytes = 1 << 20, 0;
}
STUB_API int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*, size_t* bytes) {
    return *bytes = 1 << 16, 0;
}
COMPUTES(cudnnBatchNormalizationForwardTrainingEx)
COMPUTES(cudnnBatchNormalizationBackwardEx)
COMPUTES(cudnnBatchNormalizationForwardInference)

// ---------------------------------------------------------------------------------------------------------------------
// CUPTI
// ---------------------------------------------------------------------------------------------------------------------

STUB_API int cuptiGetVersion(unsigned* version) { return *version = 130000, 0; }
STUB_API int cuptiGetResultString(int, const char** text) { return *text = "an error of the stub GPU", 0; }
NOTHING(cuptiSubscribe)
NOTHING(cuptiUnsubscribe)
NOTHING(cuptiFinalize)
NOTHING(cuptiEnableCallback)
NOTHING(cuptiEnableDomain)
NOTHING(cuptiActivityRegisterCallbacks)
NOTHING(cuptiActivityRegisterTimestampCallback)
NOTHING(cuptiActivityEnable)
NOTHING(cuptiActivityDisable)
NOTHING(cuptiActivityEnableDriverApi)
NOTHING(cuptiActivityEnableRuntimeApi)
NOTHING(cuptiActivityEnableCudaEventDeviceTimestamps)
NOTHING(cuptiActivitySetAttribute)
NOTHING(cuptiActivityFlushAll)
NOTHING(cuptiActivityPushExternalCorrelationId)
NOTHING(cuptiActivityPopExternalCorrelationId)
