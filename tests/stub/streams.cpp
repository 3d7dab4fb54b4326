// Streams, events, and the capture of graphs, by the rules of the CUDA programming guide.
#include <chrono>
#include <set>
#include <thread>

#include "stub.h"

namespace stub {

struct Capture {
    cudaStreamCaptureMode mode;
    std::thread::id thread;  // that began it
    Stream* origin;
    std::set<Stream*> streams;  // the origin, and what waited for an event of one of them
    Graph* graph;
    cudaError_t error = cudaSuccess;  // that ended it before its time
};

void trace(int stream, const std::string& kind, const std::string& name);

namespace {

Stream legacy{0, {}};
Capture* current = nullptr;  // torch captures one graph at a time
std::vector<Node> last_graph;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool is_captured(const Event& event) { return event.capture != nullptr && event.capture == current; }

cudaError_t synchronise(const char* function, bool captured) {
    Lock lock(mutex);
    need_context(function);
    count("sync", function);
    if (captured || unsafe_calls_are_forbidden()) {
        return refuse(std::string(function) + " in a capture", cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

double milliseconds() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Stream& stream_of(cudaStream_t stream) {
    const bool by_default = stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
    return by_default ? legacy : *reinterpret_cast<Stream*>(stream);
}

void enqueue(Stream& stream, const std::string& kind, const std::string& name) {
    stream.clock[stream.id]++;
    trace(stream.id, kind, name);
    count(kind, name);
    if (stream.capture != nullptr) {
        current->graph->nodes.push_back({kind, name});
    } else if (current != nullptr && std::this_thread::get_id() == current->thread) {
        // It runs once, now, and is in no replay.
        violation(kind + " " + name + " on a stream that is not captured, in a capture");
    }
}

cudaError_t fail(cudaError_t error) { return last_error = error; }

cudaError_t refuse(const std::string& what, cudaError_t error) {
    violation(what);
    if (current != nullptr) current->error = error;
    return fail(error);
}

bool unsafe_calls_are_forbidden() {
    if (current == nullptr || thread_mode == cudaStreamCaptureModeRelaxed) return false;
    if (current->mode == cudaStreamCaptureModeGlobal) return true;
    return current->mode == cudaStreamCaptureModeThreadLocal && std::this_thread::get_id() == current->thread;
}

}  // namespace stub

using namespace stub;

// The nodes of the graph that was captured last.
std::string stub_graph_lines() {
    std::string lines;
    for (const Node& node : last_graph) lines += "node\t" + node.kind + "\t" + node.name + "\n";
    return lines;
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
STUB_API cudaError_t cudaPeekAtLastError() { return last_error; }
STUB_API const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorNotSupported: return "operation not supported by the stub GPU";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
        case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
        case cudaErrorStreamCaptureImplicit: return "operation would make the legacy stream depend on a capturing one";
        case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
        default: return "another error of the stub GPU";
    }
}
STUB_API const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

// ---------------------------------------------------------------------------------------------------------------------
// Streams
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    Lock lock(mutex);
    need_context("cudaStreamCreate");
    static int created = 0;
    *stream = reinterpret_cast<cudaStream_t>(new Stream{++created, {}});
    return cudaSuccess;
}
STUB_API cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
STUB_API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }  // a few bytes: events may know it
STUB_API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
STUB_API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
STUB_API cudaError_t cudaStreamQuery(cudaStream_t on) {
    Lock lock(mutex);
    if (stream_of(on).capture == nullptr && !unsafe_calls_are_forbidden()) return cudaSuccess;
    return refuse("cudaStreamQuery in a capture", cudaErrorStreamCaptureUnsupported);
}
STUB_API cudaError_t cudaStreamSynchronize(cudaStream_t on) {
    return synchronise("cudaStreamSynchronize", stream_of(on).capture != nullptr);
}
STUB_API cudaError_t cudaDeviceSynchronize() { return synchronise("cudaDeviceSynchronize", false); }
STUB_API cudaError_t cudaStreamWaitEvent(cudaStream_t on, cudaEvent_t handle, unsigned) {
    Lock lock(mutex);
    Stream& stream = stream_of(on);
    const Event& event = *reinterpret_cast<Event*>(handle);
    if (is_captured(event)) {
        stream.capture = current;
        current->streams.insert(&stream);
    } else if (stream.capture != nullptr) {
        return refuse("a captured stream waits for what is not captured", cudaErrorStreamCaptureIsolation);
    }
    std::string others;  // whose work it has to wait for
    for (const auto& [id, time] : event.clock) {
        if (time > stream.clock[id]) others += (others.empty() ? "" : " ") + std::to_string(id);
        stream.clock[id] = std::max(stream.clock[id], time);
    }
    trace(stream.id, "wait", others);
    return cudaSuccess;
}
STUB_API cudaError_t cudaLaunchHostFunc(cudaStream_t on, cudaHostFn_t function, void* data) {
    {
        Lock lock(mutex);
        enqueue(stream_of(on), "host function", "");
        if (stream_of(on).capture != nullptr) return cudaSuccess;
    }
    function(data);
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// Events
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    need_context("cudaEventCreate");
    *event = reinterpret_cast<cudaEvent_t>(new Event);
    return cudaSuccess;
}
STUB_API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
STUB_API cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Lock lock(mutex);
    delete reinterpret_cast<Event*>(event);
    return cudaSuccess;
}
STUB_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t on, unsigned) {
    Lock lock(mutex);
    const Stream& stream = stream_of(on);
    *reinterpret_cast<Event*>(handle) = {stream.clock, stream.capture, milliseconds()};
    return cudaSuccess;
}
STUB_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t on) {
    return cudaEventRecordWithFlags(event, on, 0);
}
STUB_API cudaError_t cudaEventQuery(cudaEvent_t handle) {
    Lock lock(mutex);
    if (is_captured(*reinterpret_cast<Event*>(handle))) {
        return refuse("cudaEventQuery of a captured event", cudaErrorCapturedEvent);
    }
    if (!unsafe_calls_are_forbidden()) return cudaSuccess;
    return refuse("cudaEventQuery in a capture", cudaErrorStreamCaptureUnsupported);
}
STUB_API cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    return synchronise("cudaEventSynchronize", is_captured(*reinterpret_cast<Event*>(handle)));
}
STUB_API cudaError_t cudaEventElapsedTime(float* time, cudaEvent_t from, cudaEvent_t to) {
    *time = float(reinterpret_cast<Event*>(to)->milliseconds - reinterpret_cast<Event*>(from)->milliseconds);
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// Capture
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}
STUB_API cudaError_t cudaStreamBeginCapture(cudaStream_t on, cudaStreamCaptureMode mode) {
    Lock lock(mutex);
    Stream& stream = stream_of(on);
    if (&stream == &legacy) return refuse("a capture of the default stream", cudaErrorStreamCaptureUnsupported);
    if (current != nullptr) return refuse("a second capture at the same time", cudaErrorStreamCaptureUnsupported);
    current = new Capture{mode, std::this_thread::get_id(), &stream, {&stream}, new Graph};
    stream.capture = current;
    return cudaSuccess;
}
STUB_API cudaError_t cudaStreamEndCapture(cudaStream_t on, cudaGraph_t* graph) {
    Lock lock(mutex);
    *graph = nullptr;
    if (current == nullptr || current->origin != &stream_of(on)) return fail(cudaErrorIllegalState);
    Capture* done = current;  // not freed: events compare themselves with it
    current = nullptr;
    for (Stream* stream : done->streams) {
        stream->capture = nullptr;
        if (done->origin->clock[stream->id] < stream->clock[stream->id] && done->error == cudaSuccess) {
            done->error = cudaErrorStreamCaptureUnjoined;
            violation("the captured stream waits in the end for no event of a stream that forked from it");
        }
    }
    last_graph = done->graph->nodes;
    if (done->error == cudaErrorStreamCaptureUnjoined) return fail(done->error);
    if (done->error != cudaSuccess) return fail(cudaErrorStreamCaptureInvalidated);
    *graph = reinterpret_cast<cudaGraph_t>(done->graph);
    return cudaSuccess;
}
STUB_API cudaError_t cudaStreamIsCapturing(cudaStream_t on, cudaStreamCaptureStatus* status) {
    Lock lock(mutex);
    const Capture* capture = stream_of(on).capture;
    *status = capture == nullptr              ? cudaStreamCaptureStatusNone
              : capture->error == cudaSuccess ? cudaStreamCaptureStatusActive
                                              : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}
STUB_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t on, cudaStreamCaptureStatus* status, unsigned long long* id,
                                              cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                              const cudaGraphEdgeData** edges, size_t* count) {
    Lock lock(mutex);
    cudaStreamIsCapturing(on, status);
    const Capture* capture = stream_of(on).capture;
    if (id) *id = reinterpret_cast<unsigned long long>(capture);
    if (graph) *graph = capture ? reinterpret_cast<cudaGraph_t>(capture->graph) : nullptr;
    if (dependencies) *dependencies = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// Graphs
// ---------------------------------------------------------------------------------------------------------------------

STUB_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    *made = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
}
STUB_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    return cudaGraphInstantiate(made, graph, 0);
}
STUB_API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t on) {
    Lock lock(mutex);
    enqueue(stream_of(on), "graph", "");
    return cudaSuccess;
}
STUB_API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
    *count = reinterpret_cast<Graph*>(graph)->nodes.size();
    return cudaSuccess;
}
STUB_API cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete reinterpret_cast<Graph*>(graph), cudaSuccess; }
STUB_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    return delete reinterpret_cast<Graph*>(graph), cudaSuccess;
}
