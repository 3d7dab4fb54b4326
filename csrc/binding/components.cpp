// connected_components as torch's op.
#include "binding/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def("connected_components(Tensor labels, int connectivity, int background) -> (Tensor, Tensor)");
}

namespace {

using namespace simfast::binding;

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
        ids = uninitialised("connected_components: ids", labels, {args.B, args.H, args.W}, ScalarType::Int);
        counts = uninitialised("connected_components: counts", labels, {args.B}, ScalarType::Int);
        args.ids = out<int32_t>(ids);
        args.counts = out<int32_t>(counts);
    }
};

std::tuple<Tensor, Tensor> connected_components_cpu(Tensor labels, int64_t connectivity, int64_t background) {
    Components op(labels, connectivity, background);
    auto& args = op.args;
    args.num_strips = choose_strips(args.B, args.H, args.W);
    const Tensor space = workspace("connected_components: workspace", labels, simfast::components_workspace_cpu(args));
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
    const DeviceGuard guard(labels.get_device_index());
    Components op(labels, connectivity, background);
    launch("connected_components", simfast::components_workspace_cuda, simfast::components_cuda, op.args, labels);
    return {op.ids, op.counts};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) { m.impl("connected_components", TORCH_BOX(&connected_components_cpu)); }

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) { m.impl("connected_components", TORCH_BOX(&connected_components_cuda)); }
#endif
