// Registers the ops through torch's stable ABI, so that one library serves every torch from 2.11 on; checks what a
// kernel relies on, allocates, makes the device current, takes its stream, and threads the CPU ranges through torch's
// own pool (torch.set_num_threads governs them). The binding, this file and its neighbours of that name, is all that
// includes torch. Contracts: kernels.h.
// Gradients, shape inference and the messages a user sees: simfast/ops/*.py. No Autocast key is registered: dtypes pass
// through as they came.
#include "binding.h"

namespace {

using namespace simfast::binding;
using simfast::Dtype;
using simfast::Layout;

// ---------------------------------------------------------------------------------------------------------------------
// connected_components
// ---------------------------------------------------------------------------------------------------------------------

void check_connectivity(const char* op, int64_t connectivity) {
    check(connectivity == 4 || connectivity == 8, op, ": connectivity must be 4 or 8, got ", connectivity);
}

struct Components {
    simfast::ComponentsArgs args{};
    Tensor ids, counts;

    Components(const Tensor& labels, int64_t connectivity, int64_t background) {
        check_connectivity("connected_components", connectivity);
        args.labels = label_map("connected_components: labels", labels);
        args.B = labels.size(0), args.H = labels.size(1), args.W = labels.size(2);
        args.background = background;
        args.connectivity = static_cast<int32_t>(connectivity);
        args.num_strips = 1;
        ids = uninitialised(labels, {args.B, args.H, args.W}, ScalarType::Int);
        counts = uninitialised(labels, {args.B}, ScalarType::Int);
        args.ids = static_cast<int32_t*>(ids.mutable_data_ptr());
        args.counts = static_cast<int32_t*>(counts.mutable_data_ptr());
    }
};

std::tuple<Tensor, Tensor> connected_components_cpu(Tensor labels, int64_t connectivity, int64_t background) {
    Components op(labels, connectivity, background);
    auto& args = op.args;
    args.num_strips = choose_strips(args.B, args.H, args.W);
    const Tensor space = workspace(labels, simfast::components_workspace_cpu(args));
    args.workspace = space.mutable_data_ptr();
    const int64_t strips = args.B * args.num_strips;
    run_pass(simfast::components_label_cpu, args, strips);
    run_pass(simfast::components_join_cpu, args, args.B);
    run_pass(simfast::components_number_cpu, args, strips);
    run_pass(simfast::components_write_cpu, args, strips);
    return {op.ids, op.counts};
}

#ifdef SIMFAST_WITH_CUDA
std::tuple<Tensor, Tensor> connected_components_cuda(Tensor labels, int64_t connectivity, int64_t background) {
    const torch::stable::accelerator::DeviceGuard guard(labels.get_device_index());
    Components op(labels, connectivity, background);
    const Tensor space = workspace(labels, simfast::components_workspace_cuda(op.args));
    op.args.workspace = space.mutable_data_ptr();
    launch("connected_components", simfast::components_cuda, op.args, labels);
    return {op.ids, op.counts};
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// find_regions
// ---------------------------------------------------------------------------------------------------------------------

struct Regions {
    simfast::RegionsArgs args{};
    Tensor segments, areas;
    bool no_classes;  // nothing to find: outputs are filled here

    Regions(const Tensor& labels, const std::vector<int64_t>& stuff, const std::vector<int64_t>& things,
            int64_t max_instances, int64_t connectivity) {
        check_connectivity("find_regions", connectivity);
        args.labels = label_map("find_regions: labels", labels);
        args.B = labels.size(0), args.H = labels.size(1), args.W = labels.size(2);
        const int64_t num_classes = static_cast<int64_t>(stuff.size() + things.size());
        check(num_classes <= simfast::kMaxClasses, "find_regions: stuff and things must hold at most ",
              simfast::kMaxClasses, " classes together, got ", num_classes);
        check(max_instances >= 1 && max_instances <= INT32_MAX,
              "find_regions: max_instances must be in [1, 2^31), got ", max_instances);
        std::copy(things.begin(), things.end(), std::copy(stuff.begin(), stuff.end(), args.classes));
        args.num_stuff = static_cast<int32_t>(stuff.size());
        args.num_things = static_cast<int32_t>(things.size());
        args.max_instances = static_cast<int32_t>(max_instances);
        args.connectivity = static_cast<int32_t>(connectivity);
        args.num_strips = 1;
        const int64_t num_slots = simfast::regions_num_slots(args);
        check(num_slots <= INT32_MAX, "find_regions: there must be less than 2^31 slots, got ", num_slots);
        segments = uninitialised(labels, {args.B, args.H, args.W}, ScalarType::Int);
        areas = uninitialised(labels, {args.B, num_slots}, ScalarType::Int);
        args.segments = static_cast<int32_t*>(segments.mutable_data_ptr());
        args.areas = static_cast<int32_t*>(areas.mutable_data_ptr());
        no_classes = num_classes == 0;
        if (no_classes) torch::stable::fill_(segments, -1);
    }
};

std::tuple<Tensor, Tensor> find_regions_cpu(Tensor labels, std::vector<int64_t> stuff, std::vector<int64_t> things,
                                            int64_t max_instances, int64_t connectivity) {
    Regions op(labels, stuff, things, max_instances, connectivity);
    auto& args = op.args;
    if (op.no_classes) return {op.segments, op.areas};
    args.num_strips = choose_strips(args.B, args.H, args.W);
    const Tensor space = workspace(labels, simfast::regions_workspace_cpu(args));
    args.workspace = space.mutable_data_ptr();
    const int64_t strips = args.B * args.num_strips;
    run_pass(simfast::regions_label_cpu, args, strips);
    run_pass(simfast::regions_select_cpu, args, args.B);
    run_pass(simfast::regions_write_cpu, args, strips);
    return {op.segments, op.areas};
}

#ifdef SIMFAST_WITH_CUDA
std::tuple<Tensor, Tensor> find_regions_cuda(Tensor labels, std::vector<int64_t> stuff, std::vector<int64_t> things,
                                             int64_t max_instances, int64_t connectivity) {
    const torch::stable::accelerator::DeviceGuard guard(labels.get_device_index());
    Regions op(labels, stuff, things, max_instances, connectivity);
    if (op.no_classes) return {op.segments, op.areas};
    const Tensor space = workspace(labels, simfast::regions_workspace_cuda(op.args));
    op.args.workspace = space.mutable_data_ptr();
    launch("find_regions", simfast::regions_cuda, op.args, labels);
    return {op.segments, op.areas};
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// segment_mean
// ---------------------------------------------------------------------------------------------------------------------

struct SegmentMean {
    simfast::SegmentMeanArgs args{};
    Tensor features, counts, means;
    bool empty;  // no segment or no channel: nothing to compute but the counts, which nobody reads

    SegmentMean(const Tensor& given, const Tensor& segments, int64_t num_segments, bool cuda) : features(given) {
        args.segments = label_map("segment_mean: segments", segments);
        args.B = segments.size(0), args.H = segments.size(1), args.W = segments.size(2);
        check(given.dim() == 4 && given.size(0) == args.B && given.size(2) == args.H && given.size(3) == args.W,
              "segment_mean: features must be [B, C, H, W] with the B, H, W of segments");
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
            features = torch::stable::contiguous(given);  // any other layout: the one copy
            args.layout = Layout::planes;
        }
        args.features = features.const_data_ptr();
        args.stride_b = features.stride(0), args.stride_c = features.stride(1), args.stride_p = pixel_stride(features);
        const ScalarType sum_type = args.features_dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
        counts = uninitialised(segments, {args.B, num_segments}, ScalarType::Int);
        means = uninitialised(features, {args.B, num_segments, args.C}, sum_type);
        args.counts = static_cast<int32_t*>(counts.mutable_data_ptr());
        args.means = means.mutable_data_ptr();
        empty = num_segments == 0 || args.C == 0;
        if (empty) torch::stable::zero_(counts);
    }
};

std::tuple<Tensor, Tensor> segment_mean_cpu(Tensor features, Tensor segments, int64_t num_segments) {
    SegmentMean op(features, segments, num_segments, false);
    auto& args = op.args;
    if (op.empty) return {op.means, op.counts};
    const Tensor space = workspace(segments, simfast::segment_mean_workspace_cpu(args));
    args.workspace = space.mutable_data_ptr();
    run_pass(simfast::segment_mean_runs_cpu, args, args.B);
    run_pass(simfast::segment_mean_sum_cpu, args, args.B * args.C, grain(args.H * args.W));
    return {op.means, op.counts};
}

#ifdef SIMFAST_WITH_CUDA
std::tuple<Tensor, Tensor> segment_mean_cuda(Tensor features, Tensor segments, int64_t num_segments) {
    const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
    SegmentMean op(features, segments, num_segments, true);
    if (op.empty) return {op.means, op.counts};
    const Tensor space = workspace(segments, simfast::segment_mean_workspace_cuda(op.args));
    op.args.workspace = space.mutable_data_ptr();
    launch("segment_mean", simfast::segment_mean_cuda, op.args, features);
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
        const ScalarType sum_type = args.features_dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
        check(grad.dim() == 3 && grad.size(0) == args.B && grad.scalar_type() == sum_type,
              "segment_mean_backward: grad must be float32 [B, S, C] (float64 for float64 features)");
        check(given_counts.dim() == 2 && given_counts.size(0) == args.B && given_counts.size(1) == grad.size(1) &&
                  given_counts.scalar_type() == ScalarType::Int,
              "segment_mean_backward: counts must be int32 [B, S]");
        check_same_device("segment_mean_backward: grad, counts and segments must be on the same device", grad,
                          segments);
        check_same_device("segment_mean_backward: grad, counts and segments must be on the same device", grad,
                          given_counts);
        grad_means = torch::stable::contiguous(grad);
        counts = torch::stable::contiguous(given_counts);
        args.C = grad.size(2);
        args.num_segments = grad.size(1);
        grad_features = torch::stable::empty(std::vector<int64_t>{args.B, args.C, args.H, args.W}, type, std::nullopt,
                                             grad.device(), std::nullopt,
                                             channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                           : torch::headeronly::MemoryFormat::Contiguous);
        args.layout = channels_last ? Layout::pixels : Layout::planes;
        with_large_pages(grad_features);
        // From the sizes, not from the tensor: a stride along a size of 1 may hold anything.
        const int64_t pixels = args.H * args.W;
        args.stride_b = args.C * pixels;
        args.stride_c = channels_last ? 1 : pixels;
        args.stride_p = channels_last ? args.C : 1;
        args.grad_means = grad_means.const_data_ptr();
        args.counts = static_cast<const int32_t*>(counts.const_data_ptr());
        args.grad_features = grad_features.mutable_data_ptr();
        empty = args.num_segments == 0 || args.C == 0;
        if (empty) torch::stable::zero_(grad_features);
    }
};

Tensor segment_mean_backward_cpu(Tensor grad, Tensor counts, Tensor segments, ScalarType dtype, bool channels_last) {
    SegmentMeanBackward op(grad, counts, segments, dtype, channels_last, false);
    auto& args = op.args;
    if (op.empty) return op.grad_features;
    const Tensor space = workspace(segments, simfast::segment_mean_backward_workspace_cpu(args));
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
    const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
    SegmentMeanBackward op(grad, counts, segments, dtype, channels_last, true);
    if (op.empty) return op.grad_features;
    const Tensor space = workspace(segments, simfast::segment_mean_backward_workspace_cuda(op.args));
    op.args.workspace = space.mutable_data_ptr();
    launch("segment_mean_backward", simfast::segment_mean_backward_cuda, op.args, grad);
    return op.grad_features;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// nearest_l1: the CPU half
// ---------------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor> nearest_l1_cpu(Tensor queries, Tensor classes, Tensor bank,
                                                  std::optional<Tensor> starts, Tensor filled, int64_t max_rows) {
    check(queries.dim() == 2 && bank.dim() == 2 && queries.size(1) == bank.size(1),
          "nearest_l1: queries and bank must be [N, D] and [T, D]");
    check(max_rows >= 0, "nearest_l1: max_rows must be at least 0, got ", max_rows);
    simfast::NearestArgs args{};
    args.queries_dtype = feature_dtype("nearest_l1: queries", queries.scalar_type(), false);
    args.bank_dtype = feature_dtype("nearest_l1: bank", bank.scalar_type(), false);
    args.N = queries.size(0), args.D = queries.size(1), args.K = filled.size(0);
    args.T = bank.size(0);
    args.R = starts.has_value() ? std::min(max_rows, args.T) : max_rows;  // no class has more rows than the flat bank
    check(args.R < int64_t{1} << 31 && args.N < int64_t{1} << 31 && args.R * args.N < int64_t{1} << 48,
          "nearest_l1: queries times rows of a class must be less than 2^48, and each less than 2^31, got ", args.N,
          " times ", args.R);
    check(starts.has_value() || args.T == args.K * args.R, "nearest_l1: bank must hold K * max_rows rows");
    args.queries = queries.const_data_ptr(), args.bank = bank.const_data_ptr();
    args.query_stride_n = queries.stride(0), args.query_stride_d = queries.stride(1);
    args.bank_stride_t = bank.stride(0), args.bank_stride_d = bank.stride(1);
    classes = integers("nearest_l1: classes", classes, args.N);
    filled = integers("nearest_l1: filled", filled, args.K);
    if (starts.has_value()) starts = integers("nearest_l1: starts", *starts, args.K);
    args.classes = data(classes), args.filled = data(filled),
    args.starts = starts.has_value() ? data(*starts) : nullptr;
    const bool wide = args.queries_dtype == Dtype::f64;
    const Tensor distances = uninitialised(queries, {args.N}, wide ? ScalarType::Double : ScalarType::Float);
    const Tensor rows = uninitialised(queries, {args.N}, ScalarType::Long);
    const Tensor signs = uninitialised(queries, {args.N, args.D}, ScalarType::Char);
    args.distances = distances.mutable_data_ptr();
    args.rows = static_cast<int64_t*>(rows.mutable_data_ptr());
    args.signs = static_cast<int8_t*>(signs.mutable_data_ptr());
    const Tensor space = workspace(queries, simfast::nearest_workspace_cpu(args));
    args.workspace = space.mutable_data_ptr();
    run_pass(simfast::nearest_group_cpu, args, 1);
    run_pass(simfast::nearest_compare_cpu, args, simfast::kNearestShares);
    run_pass(simfast::nearest_pick_cpu, args, args.N, grain(args.D));
    return {distances, rows, signs};
}

Tensor nearest_l1_backward_cpu(Tensor grad, Tensor rows, Tensor signs, ScalarType dtype) {
    simfast::NearestBackwardArgs args{};
    args.queries_dtype = feature_dtype("nearest_l1_backward: dtype", dtype, false);
    check(signs.dim() == 2 && signs.scalar_type() == ScalarType::Char,
          "nearest_l1_backward: signs must be int8 [N, D]");
    args.N = signs.size(0), args.D = signs.size(1);
    const ScalarType sum_type = args.queries_dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
    check(grad.dim() == 1 && grad.size(0) == args.N && grad.scalar_type() == sum_type,
          "nearest_l1_backward: grad must be float32 [N] (float64 for float64 queries)");
    rows = integers("nearest_l1_backward: rows", rows, args.N);
    signs = torch::stable::contiguous(signs);
    const Tensor grad_queries = uninitialised(signs, {args.N, args.D}, dtype);
    args.grad = grad.const_data_ptr(), args.grad_stride = grad.stride(0);
    args.rows = data(rows), args.signs = static_cast<const int8_t*>(signs.const_data_ptr());
    args.grad_queries = grad_queries.mutable_data_ptr();
    run_pass(simfast::nearest_backward_cpu, args, args.N, grain(args.D));
    return grad_queries;
}

}  // namespace

// What was built, for the loader in simfast/ops/library.py to compare with what it belongs to.
extern "C" __attribute__((visibility("default"))) const char* simfast_version() { return SIMFAST_VERSION; }

STABLE_TORCH_LIBRARY(simfast, m) {
    m.def("connected_components(Tensor labels, int connectivity, int background) -> (Tensor, Tensor)");
    m.def(
        "find_regions(Tensor labels, int[] stuff, int[] things, int max_instances, int connectivity) -> (Tensor, "
        "Tensor)");
    m.def(
        "nearest_l1(Tensor queries, Tensor classes, Tensor bank, Tensor? starts, Tensor filled, SymInt max_rows) -> "
        "(Tensor, Tensor, Tensor)");
    m.def("nearest_l1_backward(Tensor grad, Tensor rows, Tensor signs, ScalarType dtype) -> Tensor");
    m.def("segment_mean(Tensor features, Tensor segments, SymInt num_segments) -> (Tensor, Tensor)");
    m.def(
        "segment_mean_backward(Tensor grad, Tensor counts, Tensor segments, ScalarType dtype, bool channels_last) -> "
        "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) {
    m.impl("connected_components", TORCH_BOX(&connected_components_cpu));
    m.impl("find_regions", TORCH_BOX(&find_regions_cpu));
    m.impl("nearest_l1", TORCH_BOX(&nearest_l1_cpu));
    m.impl("nearest_l1_backward", TORCH_BOX(&nearest_l1_backward_cpu));
    m.impl("segment_mean", TORCH_BOX(&segment_mean_cpu));
    m.impl("segment_mean_backward", TORCH_BOX(&segment_mean_backward_cpu));
}

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) {
    m.impl("connected_components", TORCH_BOX(&connected_components_cuda));
    m.impl("find_regions", TORCH_BOX(&find_regions_cuda));
    m.impl("segment_mean", TORCH_BOX(&segment_mean_cuda));
    m.impl("segment_mean_backward", TORCH_BOX(&segment_mean_backward_cuda));
}
#endif
