// segment_mean and its gradient as torch's ops.
#include "binding/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def("segment_mean(Tensor features, Tensor segments, SymInt num_segments) -> (Tensor, Tensor)");
    m.def(
        "segment_mean_backward(Tensor grad, Tensor counts, Tensor segments, ScalarType dtype, bool channels_last) -> "
        "Tensor");
}

namespace {

using namespace simfast::binding;
using simfast::Dtype;
using simfast::Layout;

// Whether pixels lie at one stride: rows follow one another (a stride along a size of 1 means nothing).
bool rows_follow(const Tensor& x) { return x.size(2) == 1 || x.size(3) == 1 || x.stride(2) == x.size(3) * x.stride(3); }

int64_t pixel_stride(const Tensor& x) { return x.size(3) > 1 ? x.stride(3) : x.size(2) > 1 ? x.stride(2) : 1; }

struct SegmentMean {
    simfast::SegmentMeanArgs args{};
    Tensor features, counts, means;
    bool empty;  // no segment or no channel: nothing to compute but the counts, which nobody reads

    SegmentMean(const Tensor& given, const Tensor& segments, int64_t num_segments, bool cuda) : features(given) {
        args.segments = label_map("segment_mean: segments", segments);
        args.B = segments.size(0), args.H = segments.size(1), args.W = segments.size(2);
        check(given.dim() == 4 && given.size(0) == args.B && given.size(2) == args.H && given.size(3) == args.W,
              "segment_mean: features must be [B, C, H, W] with the B, H, W of segments", Came{given});
        product("segment_mean: features", given.sizes());
        check_same_device("segment_mean: features and segments must be on the same device", given, segments);
        check(num_segments >= 0 && num_segments <= INT32_MAX, "segment_mean: num_segments must be in [0, 2^31), got ",
              num_segments);
        args.C = given.size(1);
        args.num_segments = num_segments;
        args.features_dtype = feature_dtype("segment_mean: features", given.scalar_type(), cuda);
        const bool in_place = rows_follow(given);
        if (in_place && pixel_stride(given) == 1) {
            args.layout = Layout::planes;
        } else if (in_place && given.stride(1) == 1) {
            args.layout = Layout::pixels;
        } else {
            features = contiguous("segment_mean: features", given);  // any other layout: the one copy
            args.layout = Layout::planes;
        }
        args.features = features.const_data_ptr();
        args.stride_b = features.stride(0), args.stride_c = features.stride(1), args.stride_p = pixel_stride(features);
        const ScalarType sum_type = sum_type_of(args.features_dtype);
        counts = uninitialised("segment_mean: counts", segments, {args.B, num_segments}, ScalarType::Int);
        means = uninitialised("segment_mean: means", features, {args.B, num_segments, args.C}, sum_type);
        args.counts = out<int32_t>(counts);
        args.means = means.mutable_data_ptr();
        empty = num_segments == 0 || args.C == 0;
        if (empty) torch::stable::zero_(counts);
    }
};

std::tuple<Tensor, Tensor> segment_mean_cpu(Tensor features, Tensor segments, int64_t num_segments) {
    SegmentMean op(features, segments, num_segments, false);
    auto& args = op.args;
    if (op.empty) return {op.means, op.counts};
    const Tensor space = workspace("segment_mean: workspace", segments, simfast::segment_mean_workspace_cpu(args));
    args.workspace = space.mutable_data_ptr();
    run_pass(simfast::segment_mean_runs_cpu, args, args.B);
    run_pass(simfast::segment_mean_sum_cpu, args, args.B * args.C, grain(args.H * args.W));
    return {op.means, op.counts};
}

#ifdef SIMFAST_WITH_CUDA
std::tuple<Tensor, Tensor> segment_mean_cuda(Tensor features, Tensor segments, int64_t num_segments) {
    const DeviceGuard guard(features.get_device_index());
    SegmentMean op(features, segments, num_segments, true);
    if (op.empty) return {op.means, op.counts};
    launch("segment_mean", simfast::segment_mean_workspace_cuda, simfast::segment_mean_cuda, op.args, segments);
    return {op.means, op.counts};
}
#endif

struct SegmentMeanBackward {
    simfast::SegmentMeanBackwardArgs args{};
    Tensor grad_means, counts, grad_features;
    bool empty;

    SegmentMeanBackward(const Tensor& grad, const Tensor& given_counts, const Tensor& segments, ScalarType type,
                        bool channels_last, bool cuda) {
        args.segments = label_map("segment_mean_backward: segments", segments);
        args.B = segments.size(0), args.H = segments.size(1), args.W = segments.size(2);
        args.features_dtype = feature_dtype("segment_mean_backward: dtype", type, cuda);
        const ScalarType sum_type = sum_type_of(args.features_dtype);
        check(grad.dim() == 3 && grad.size(0) == args.B && grad.scalar_type() == sum_type,
              "segment_mean_backward: grad must be float32 [B, S, C] (float64 for float64 features)", Came{grad});
        check(grad.size(1) <= INT32_MAX, "segment_mean_backward: grad must be of less than 2^31 segments", Came{grad});
        check(given_counts.dim() == 2 && given_counts.size(0) == args.B && given_counts.size(1) == grad.size(1) &&
                  given_counts.scalar_type() == ScalarType::Int,
              "segment_mean_backward: counts must be int32 [", args.B, ", ", grad.size(1), "]", Came{given_counts});
        check_same_device("segment_mean_backward: grad, counts and segments must be on the same device", grad,
                          segments);
        check_same_device("segment_mean_backward: grad, counts and segments must be on the same device", grad,
                          given_counts);
        grad_means = contiguous("segment_mean_backward: grad", grad);
        counts = contiguous("segment_mean_backward: counts", given_counts);
        args.C = grad.size(2);
        args.num_segments = grad.size(1);
        const std::vector<int64_t> size{args.B, args.C, args.H, args.W};
        grad_features = allocated("segment_mean_backward: gradient", type, size, [&] {
            return torch::stable::empty(size, type, std::nullopt, grad.device(), std::nullopt,
                                        channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                      : torch::headeronly::MemoryFormat::Contiguous);
        });
        args.layout = channels_last ? Layout::pixels : Layout::planes;
        with_large_pages(grad_features);
        // From the sizes, not from the tensor: a stride along a size of 1 may hold anything.
        const int64_t pixels = args.H * args.W;
        args.stride_b = args.C * pixels;
        args.stride_c = channels_last ? 1 : pixels;
        args.stride_p = channels_last ? args.C : 1;
        args.grad_means = grad_means.const_data_ptr();
        args.counts = in<int32_t>(counts);
        args.grad_features = grad_features.mutable_data_ptr();
        empty = args.num_segments == 0 || args.C == 0;
        if (empty) torch::stable::zero_(grad_features);
    }
};

Tensor segment_mean_backward_cpu(Tensor grad, Tensor counts, Tensor segments, ScalarType dtype, bool channels_last) {
    SegmentMeanBackward op(grad, counts, segments, dtype, channels_last, false);
    auto& args = op.args;
    if (op.empty) return op.grad_features;
    const Tensor space =
        workspace("segment_mean_backward: workspace", segments, simfast::segment_mean_backward_workspace_cpu(args));
    args.workspace = space.mutable_data_ptr();
    run_pass(simfast::segment_mean_backward_runs_cpu, args, args.B);
    if (channels_last) {
        run_pass(simfast::segment_mean_backward_write_cpu, args, args.B * args.H, grain(args.C * args.W));
    } else {
        run_pass(simfast::segment_mean_backward_write_cpu, args, args.B * args.C, grain(args.H * args.W));
    }
    return op.grad_features;
}

#ifdef SIMFAST_WITH_CUDA
Tensor segment_mean_backward_cuda(Tensor grad, Tensor counts, Tensor segments, ScalarType dtype, bool channels_last) {
    const DeviceGuard guard(grad.get_device_index());
    SegmentMeanBackward op(grad, counts, segments, dtype, channels_last, true);
    if (op.empty) return op.grad_features;
    launch("segment_mean_backward", simfast::segment_mean_backward_workspace_cuda, simfast::segment_mean_backward_cuda,
           op.args, segments);
    return op.grad_features;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) {
    m.impl("segment_mean", TORCH_BOX(&segment_mean_cpu));
    m.impl("segment_mean_backward", TORCH_BOX(&segment_mean_backward_cpu));
}

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) {
    m.impl("segment_mean", TORCH_BOX(&segment_mean_cuda));
    m.impl("segment_mean_backward", TORCH_BOX(&segment_mean_backward_cuda));
}
#endif
