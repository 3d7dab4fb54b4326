// The CUDA launchers, run on the CPU, as a Python module that takes NumPy arrays. Outputs and workspace start as poison
// and end in guard bytes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host_cuda.h"
#include "kernels.h"

namespace py = pybind11;
using namespace simfast;

namespace {

constexpr size_t kGuard = 512;
constexpr unsigned char kFresh = 0xFF;  // -1 as an integer, NaN as a float

struct Guarded {
    std::vector<unsigned char> bytes;
    explicit Guarded(size_t size) : bytes(size + kGuard + 256, kFresh) {}
    void* data() {  // 256-byte aligned, as the contract says
        return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 255) / 256 * 256);
    }
    void check(size_t size) {
        const auto* end = static_cast<unsigned char*>(data()) + size;
        for (const auto* p = end; p != bytes.data() + bytes.size(); ++p) {
            if (*p != kFresh) throw std::runtime_error("store past the end of the workspace");
        }
    }
};

template <typename T>
struct Output {
    size_t size;
    Guarded guarded;
    std::vector<py::ssize_t> shape;

    explicit Output(std::vector<py::ssize_t> shape) : size(count(shape)), guarded(size * sizeof(T)), shape(shape) {}
    static size_t count(const std::vector<py::ssize_t>& shape) {
        size_t n = 1;
        for (auto s : shape) n *= s;
        return n;
    }
    T* data() { return static_cast<T*>(guarded.data()); }
    py::array_t<T> array() {
        guarded.check(size * sizeof(T));
        py::array_t<T> result(shape);
        std::memcpy(result.mutable_data(), data(), size * sizeof(T));
        return result;
    }
};

LabelMap label_map(const py::array& a) {
    Dtype dtype;
    if (a.dtype().is(py::dtype::of<uint8_t>()))
        dtype = Dtype::u8;
    else if (a.dtype().is(py::dtype::of<int16_t>()))
        dtype = Dtype::i16;
    else if (a.dtype().is(py::dtype::of<int32_t>()))
        dtype = Dtype::i32;
    else if (a.dtype().is(py::dtype::of<int64_t>()))
        dtype = Dtype::i64;
    else
        throw std::runtime_error("labels of this dtype are not supported");
    const int64_t size = a.itemsize();
    return {a.data(), dtype, a.strides(0) / size, a.strides(1) / size, a.strides(2) / size};
}

Dtype feature_dtype(const std::string& name) {
    return name == "float32" ? Dtype::f32 : name == "float16" ? Dtype::f16 : Dtype::bf16;
}

void raise_if(const char* error) {
    if (error) throw std::runtime_error(error);
}

py::tuple components(const py::array& labels, int connectivity, int64_t background) {
    ComponentsArgs a{};
    a.labels = label_map(labels);
    a.B = labels.shape(0), a.H = labels.shape(1), a.W = labels.shape(2);
    a.background = background;
    a.connectivity = connectivity;
    Output<int32_t> ids({a.B, a.H, a.W}), counts({a.B});
    a.ids = ids.data(), a.counts = counts.data();
    const size_t size = components_workspace_cuda(a);
    Guarded workspace(size);
    a.workspace = workspace.data();
    raise_if(components_cuda(a, nullptr));
    workspace.check(size);
    return py::make_tuple(ids.array(), counts.array());
}

py::tuple regions(const py::array& labels, const std::vector<int64_t>& stuff, const std::vector<int64_t>& things,
                  int max_instances, int connectivity) {
    RegionsArgs a{};
    a.labels = label_map(labels);
    a.B = labels.shape(0), a.H = labels.shape(1), a.W = labels.shape(2);
    std::copy(things.begin(), things.end(), std::copy(stuff.begin(), stuff.end(), a.classes));
    a.num_stuff = stuff.size(), a.num_things = things.size();
    a.max_instances = max_instances;
    a.connectivity = connectivity;
    Output<int32_t> segments({a.B, a.H, a.W}), areas({a.B, regions_num_slots(a)});
    a.segments = segments.data(), a.areas = areas.data();
    const size_t size = regions_workspace_cuda(a);
    Guarded workspace(size);
    a.workspace = workspace.data();
    raise_if(regions_cuda(a, nullptr));
    workspace.check(size);
    return py::make_tuple(segments.array(), areas.array());
}

// features: [B, C, H, W] of any strides that kernels.h allows; 16-bit floats come as uint16 with their dtype's name.
py::tuple segment_mean(const py::array& features, const std::string& dtype, bool pixels, const py::array& segments,
                       int64_t num_segments) {
    SegmentMeanArgs a{};
    const int64_t size = features.itemsize();
    a.features = features.data();
    a.features_dtype = feature_dtype(dtype);
    a.layout = pixels ? Layout::pixels : Layout::planes;
    a.stride_b = features.strides(0) / size, a.stride_c = features.strides(1) / size;
    a.stride_p = features.strides(3) / size;
    a.segments = label_map(segments);
    a.B = features.shape(0), a.C = features.shape(1), a.H = features.shape(2), a.W = features.shape(3);
    a.num_segments = num_segments;
    Output<int32_t> counts({a.B, num_segments});
    Output<float> means({a.B, num_segments, a.C});
    a.counts = counts.data(), a.means = means.data();
    const size_t bytes = segment_mean_workspace_cuda(a);
    Guarded workspace(bytes);
    a.workspace = workspace.data();
    raise_if(segment_mean_cuda(a, nullptr));
    workspace.check(bytes);
    return py::make_tuple(means.array(), counts.array());
}

// Bytes of the workspace for one contiguous map, which need not exist.
int64_t segment_mean_workspace(const std::string& dtype, bool pixels, int64_t C, int64_t H, int64_t W,
                               int64_t num_segments) {
    SegmentMeanArgs a{};
    a.features_dtype = feature_dtype(dtype);
    a.layout = pixels ? Layout::pixels : Layout::planes;
    a.stride_b = C * H * W, a.stride_c = pixels ? 1 : H * W, a.stride_p = pixels ? C : 1;
    a.B = 1, a.C = C, a.H = H, a.W = W, a.num_segments = num_segments;
    return segment_mean_workspace_cuda(a);
}

template <typename T>
py::array backward(SegmentMeanBackwardArgs& a, int64_t skip) {
    const bool pixels = a.layout == Layout::pixels;
    const int64_t p = a.H * a.W;
    a.stride_b = a.C * p, a.stride_c = pixels ? 1 : p, a.stride_p = pixels ? a.C : 1;
    // `skip` elements before the first one: the gradient then starts off the 16-byte grid, as any view may.
    Output<T> grad({skip + a.B * a.C * p});
    a.grad_features = grad.data() + skip;
    const size_t bytes = segment_mean_backward_workspace_cuda(a);
    Guarded workspace(bytes);
    a.workspace = workspace.data();
    raise_if(segment_mean_backward_cuda(a, nullptr));
    workspace.check(bytes);
    return grad.array();
}

py::array segment_mean_backward(const py::array_t<float>& grad_means, const py::array_t<int32_t>& counts,
                                const py::array& segments, const std::string& dtype, bool pixels, int64_t skip) {
    SegmentMeanBackwardArgs a{};
    a.grad_means = grad_means.data();
    a.counts = counts.data();
    a.segments = label_map(segments);
    a.B = grad_means.shape(0), a.C = grad_means.shape(2), a.H = segments.shape(1), a.W = segments.shape(2);
    a.num_segments = grad_means.shape(1);
    a.features_dtype = feature_dtype(dtype);
    a.layout = pixels ? Layout::pixels : Layout::planes;
    return a.features_dtype == Dtype::f32 ? backward<float>(a, skip) : backward<uint16_t>(a, skip);
}

// Both arrays are changed in place. storage comes as its bits, with its dtype's name.
void ring_write(py::array& storage, const std::string& dtype, py::array_t<int64_t>& written,
                const py::array_t<float>& vectors, const py::array_t<int64_t>& classes,
                const py::array_t<int64_t>& starts, const py::array_t<int64_t>& sizes) {
    RingWriteArgs a{};
    a.vectors = vectors.data(), a.vectors_stride = vectors.strides(0) / 4;
    a.classes = classes.data(), a.starts = starts.data(), a.sizes = sizes.data();
    a.N = vectors.shape(0), a.K = sizes.size(), a.D = vectors.shape(1), a.T = storage.shape(0);
    a.storage = storage.mutable_data(), a.storage_dtype = feature_dtype(dtype);
    a.written = written.mutable_data();
    raise_if(ring_write_cuda(a, nullptr));
}

// logits: [B * G, L] as their bits, or an empty array: no gate.
py::array select_rings(const py::array_t<int32_t>& areas, const py::array_t<int64_t>& slot_rings,
                       const py::array& logits, const std::string& dtype, const py::array_t<int64_t>& slot_classes) {
    SelectRingsArgs a{};
    a.areas = areas.data(), a.slot_rings = slot_rings.data(), a.slot_classes = slot_classes.data();
    a.B = areas.shape(0), a.S = areas.shape(1);
    if (logits.size() > 0) {
        a.logits = logits.data(), a.logits_dtype = feature_dtype(dtype);
        a.stride_n = logits.strides(0) / logits.itemsize(), a.stride_l = logits.strides(1) / logits.itemsize();
        a.G = logits.shape(0) / a.B, a.L = logits.shape(1);
    }
    Output<int64_t> rings({a.B, a.S});
    a.rings = rings.data();
    raise_if(select_rings_cuda(a, nullptr));
    return rings.array();
}

// What both directions of matching_losses have.
template <typename Args>
void set_slots(Args& a, const py::array_t<int64_t>& rows, const py::array_t<int64_t>& rings, int64_t num_stuff,
               int64_t max_instances, int64_t divisor) {
    a.rows = rows.data(), a.rings = rings.data();
    a.B = rows.shape(0), a.num_stuff = num_stuff, a.num_things = (rows.shape(1) - num_stuff) / max_instances;
    a.max_instances = max_instances, a.divisor = divisor;
}

py::tuple matching_losses(const py::array_t<float>& distances, const py::array_t<int64_t>& rows,
                          const py::array_t<int64_t>& rings, int64_t num_stuff, int64_t max_instances,
                          int64_t divisor) {
    MatchingLossesArgs a{};
    a.distances = distances.data(), a.dtype = Dtype::f32;
    set_slots(a, rows, rings, num_stuff, max_instances, divisor);
    Output<float> stuff({1}), instances({1});
    a.stuff = stuff.data(), a.instances = instances.data();
    raise_if(matching_losses_cuda(a, nullptr));
    return py::make_tuple(stuff.array(), instances.array());
}

py::array matching_losses_backward(float grad_stuff, float grad_instances, const py::array_t<int64_t>& rows,
                                   const py::array_t<int64_t>& rings, int64_t num_stuff, int64_t max_instances,
                                   int64_t divisor) {
    MatchingLossesBackwardArgs a{};
    a.grad_stuff = &grad_stuff, a.grad_instances = &grad_instances, a.dtype = Dtype::f32;
    set_slots(a, rows, rings, num_stuff, max_instances, divisor);
    Output<float> grad({a.B, rows.shape(1)});
    a.grad_distances = grad.data();
    raise_if(matching_losses_backward_cuda(a, nullptr));
    return grad.array();
}

}  // namespace

PYBIND11_MODULE(simfast_host, m) {
    m.def("components", &components);
    m.def("regions", &regions);
    m.def("segment_mean", &segment_mean);
    m.def("segment_mean_workspace", &segment_mean_workspace);
    m.def("segment_mean_backward", &segment_mean_backward);
    m.def("ring_write", &ring_write);
    m.def("select_rings", &select_rings);
    m.def("matching_losses", &matching_losses);
    m.def("matching_losses_backward", &matching_losses_backward);
    m.def(
        "configure",
        [](unsigned seed, int resident_blocks, int max_shared_bytes) {
            host_cuda::seed = seed;
            host_cuda::resident_blocks = resident_blocks;
            host_cuda::max_shared_bytes = max_shared_bytes;
        },
        py::arg("seed") = 0, py::arg("resident_blocks") = 3, py::arg("max_shared_bytes") = 99 * 1024);
    m.def("limit_shared_memory", [](int bytes) { host_cuda::max_shared_bytes = bytes; });
    m.def("launches", [] { return host_cuda::launches; });
    m.def("fail_next", [](int error) { host_cuda::next_error = static_cast<cudaError_t>(error); });
    m.def("shared_limits", [] { return std::exchange(host_cuda::shared_limits, {}); });
}
