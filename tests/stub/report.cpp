// What was asked of the stub: counts by kind and name, violations, the operations in order; stub_gpu.py reads it.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "stub.h"

namespace stub {

std::recursive_mutex mutex;

namespace {

struct Log {
    std::map<std::pair<std::string, std::string>, long> counts;
    std::vector<std::string> violations, trace;
    std::string context;
    bool tracing = false;
};

// Never destroyed: torch's threads outlive static objects.
Log& log() {
    static Log& it = *new Log;
    return it;
}

}  // namespace

void count(const std::string& kind, const std::string& name) {
    Lock lock(mutex);
    log().counts[{kind, name}]++;
}

// An operation of a stream, for the trace alone.
void trace(int stream, const std::string& kind, const std::string& name) {
    if (log().tracing) log().trace.push_back(std::to_string(stream) + "\t" + kind + "\t" + name);
}

void need_context(const char* function) {
    Lock lock(mutex);
    if (log().context.empty()) log().context = function;
}

bool has_context() { return !log().context.empty(); }

void violation(const std::string& what) {
    Lock lock(mutex);
    log().violations.push_back(what);
    if (std::getenv("STUB_GPU_STOP")) {  // faulthandler then shows where in Python it came from
        std::fprintf(stderr, "stub GPU: %s\n", what.c_str());
        std::abort();
    }
}

int unknown(const char* function) {
    std::fprintf(stderr, "stub GPU: %s is not implemented; tests/stub has the functions that are\n", function);
    violation(std::string(function) + " is not implemented");
    return cudaErrorNotSupported;
}

}  // namespace stub

using namespace stub;

// Forgets counts, violations and trace; memory, streams, the context and the last graph stay.
STUB_API void stub_reset() {
    Lock lock(mutex);
    log().counts.clear();
    log().violations.clear();
    log().trace.clear();
}

STUB_API void stub_trace(int on) { log().tracing = on != 0; }

extern std::string stub_graph_lines();

// One line each, tab-separated: its sort, then what it says. Valid until the next call.
STUB_API const char* stub_report() {
    static std::string& text = *new std::string;
    Lock lock(mutex);
    std::ostringstream out;
    for (const auto& [key, times] : log().counts) {
        out << "count\t" << times << "\t" << key.first << "\t" << key.second << "\n";
    }
    for (const auto& line : log().violations) out << "violation\t" << line << "\n";
    for (const auto& line : log().trace) out << "trace\t" << line << "\n";
    if (!log().context.empty()) out << "context\t" << log().context << "\n";
    out << stub_graph_lines();
    text = out.str();
    return text.c_str();
}

// For launches that reach no library: Triton's, see stub_triton.py.
STUB_API void stub_enqueue(void* stream, const char* kind, const char* name) {
    Lock lock(mutex);
    need_context(kind);
    enqueue(stream_of(static_cast<cudaStream_t>(stream)), kind, name);
}

STUB_API void stub_violation(const char* what) { violation(what); }
