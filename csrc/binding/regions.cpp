// find_regions as torch's op.
#include "binding/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def(
        "find_regions(Tensor labels, int[] stuff, int[] things, int max_instances, int connectivity) -> (Tensor, "
        "Tensor)");
}

namespace {

using namespace simfast::binding;

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
        for (int64_t i = 1; i < num_classes; ++i) {
            check(std::find(args.classes, args.classes + i, args.classes[i]) == args.classes + i,
                  "find_regions: stuff and things must hold distinct classes, got ", args.classes[i], " twice");
        }
        args.num_stuff = static_cast<int32_t>(stuff.size());
        args.num_things = static_cast<int32_t>(things.size());
        args.max_instances = static_cast<int32_t>(max_instances);
        args.connectivity = static_cast<int32_t>(connectivity);
        args.num_strips = 1;
        const int64_t num_slots = simfast::regions_num_slots(args);
        check(num_slots <= INT32_MAX, "find_regions: there must be less than 2^31 slots, got ", num_slots);
        segments = uninitialised("find_regions: segments", labels, {args.B, args.H, args.W}, ScalarType::Int);
        areas = uninitialised("find_regions: areas", labels, {args.B, num_slots}, ScalarType::Int);
        args.segments = out<int32_t>(segments);
        args.areas = out<int32_t>(areas);
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
    const Tensor space = workspace("find_regions: workspace", labels, simfast::regions_workspace_cpu(args));
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
    const DeviceGuard guard(labels.get_device_index());
    Regions op(labels, stuff, things, max_instances, connectivity);
    if (op.no_classes) return {op.segments, op.areas};
    launch("find_regions", simfast::regions_workspace_cuda, simfast::regions_cuda, op.args, labels);
    return {op.segments, op.areas};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) { m.impl("find_regions", TORCH_BOX(&find_regions_cpu)); }

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) { m.impl("find_regions", TORCH_BOX(&find_regions_cuda)); }
#endif
