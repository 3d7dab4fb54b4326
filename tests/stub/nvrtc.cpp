// NVRTC: a library of its own, for torch opens it by its name. The code that it gives is never run.
#include <nvrtc.h>

#include <cstring>

#define STUB_API extern "C" __attribute__((visibility("default")))

extern "C" void stub_outside_captures(const char* function);

static char program_of_all;

STUB_API nvrtcResult nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char*, const char*, int, const char* const*,
                                        const char* const*) {
    return *program = reinterpret_cast<nvrtcProgram>(&program_of_all), NVRTC_SUCCESS;
}
STUB_API nvrtcResult nvrtcDestroyProgram(nvrtcProgram*) { return NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcAddNameExpression(nvrtcProgram, const char*) { return NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcCompileProgram(nvrtcProgram, int, const char* const*) {
    stub_outside_captures("nvrtcCompileProgram");
    return NVRTC_SUCCESS;
}
STUB_API nvrtcResult nvrtcGetLoweredName(nvrtcProgram, const char*, const char** name) {
    return *name = "lowered", NVRTC_SUCCESS;
}
STUB_API nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram, size_t* bytes) { return *bytes = 1, NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcGetProgramLog(nvrtcProgram, char* text) { return *text = 0, NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcGetPTXSize(nvrtcProgram, size_t* bytes) { return *bytes = 8, NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcGetPTX(nvrtcProgram, char* code) { return std::memset(code, 0, 8), NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcGetCUBINSize(nvrtcProgram, size_t* bytes) { return *bytes = 8, NVRTC_SUCCESS; }
STUB_API nvrtcResult nvrtcGetCUBIN(nvrtcProgram, char* code) { return std::memset(code, 0, 8), NVRTC_SUCCESS; }
STUB_API const char* nvrtcGetErrorString(nvrtcResult) { return "an error of the stub GPU"; }
