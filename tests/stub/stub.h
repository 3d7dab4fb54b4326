// A GPU that computes nothing: stand-ins for the CUDA runtime and for the libraries above it, so that torch's whole
// host side (allocator, autograd, streams, graph capture, fused optimisers) runs without a GPU.
//
// What is asked of it is counted by kind and name; no kernel runs, and whatever the host reads from the device is zero.
// A capture refuses what CUDA refuses by its documentation, and what CUDA would take without a word and a graph would
// get wrong is a violation as well: a copy from or to the host's memory, work on a stream that is not captured.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#define STUB_API extern "C" __attribute__((visibility("default")))

namespace stub {

// One for all state: nothing here is worth a finer one.
extern std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

// By stream, how many of its operations come before. Events carry it from one stream to another.
using Clock = std::map<int, long>;

struct Node {
    std::string kind, name;
};

struct Graph {
    std::vector<Node> nodes;
};

struct Capture;

struct Stream {
    int id;
    Clock clock;
    Capture* capture = nullptr;  // that records it, else null
};

struct Event {
    Clock clock;
    Capture* capture = nullptr;  // in which it was recorded, else null
    double milliseconds = 0;     // of the host's clock, when it was recorded
};

// The legacy default stream for null and both of CUDA's other names of default streams.
Stream& stream_of(cudaStream_t stream);

// One operation of a stream: counted, and a node of the graph where the stream is captured.
void enqueue(Stream& stream, const std::string& kind, const std::string& name);

// A call that is no operation of a stream.
void count(const std::string& kind, const std::string& name);

// Remembers the first call that a real runtime would have made a context for.
void need_context(const char* function);

// The error as the calling thread's last one.
cudaError_t fail(cudaError_t error);

void violation(const std::string& what);

// A call that CUDA does not permit: a violation, an error, and the end of the capture that is going on.
cudaError_t refuse(const std::string& what, cudaError_t error);

// Whether a capture forbids the calling thread what CUDA names potentially unsafe calls (cudaStreamBeginCapture).
bool unsafe_calls_are_forbidden();

// A call of a function that the stub does not have: told on stderr and as a violation. Returns CUDA's "not supported".
int unknown(const char* function);

}  // namespace stub
