// matching_losses and its gradient as torch's ops.
#include "binding/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def(
        "matching_losses(Tensor distances, Tensor rows, Tensor rings, int num_stuff, int max_instances, SymInt "
        "divisor) -> (Tensor, Tensor)");
    m.def(
        "matching_losses_backward(Tensor grad_stuff, Tensor grad_instances, Tensor rows, Tensor rings, int num_stuff, "
        "int max_instances, SymInt divisor) -> Tensor");
}

namespace {

using namespace simfast::binding;

// int64 [B, S], contiguous.
Tensor slots_of(const char* what, const Tensor& x, int64_t B, int64_t S) {
    check(x.dim() == 2 && x.size(0) == B && x.size(1) == S && x.scalar_type() == ScalarType::Long, what,
          " must be int64 [", B, ", ", S, "]", Came{x});
    return contiguous(what, x);
}

// What both directions have: slots of two kinds, and what a distance is divided by.
template <typename Args>
int64_t set_slots(Args& args, const Tensor& rows, int64_t num_stuff, int64_t max_instances, int64_t divisor) {
    check(rows.dim() == 2, "matching_losses: rows must be int64 [B, S]", Came{rows});
    const int64_t things = rows.size(1) - num_stuff;
    check(num_stuff >= 0 && max_instances >= 1 && things >= 0 && things % max_instances == 0,
          "matching_losses: rows must have num_stuff = ", num_stuff,
          " slots and a multiple of max_instances = ", max_instances, Came{rows});
    product("matching_losses: rows", rows.sizes());
    args.B = rows.size(1) > 0 ? rows.size(0) : 0;  // images without a slot, of which there may be any number, add 0
    args.num_stuff = num_stuff, args.num_things = things / max_instances;
    args.max_instances = max_instances, args.divisor = divisor;
    return rows.size(1);
}

struct MatchingLosses {
    simfast::MatchingLossesArgs args{};
    Tensor distances, rows, rings, stuff, instances;

    MatchingLosses(const Tensor& given, const Tensor& given_rows, const Tensor& given_rings, int64_t num_stuff,
                   int64_t max_instances, int64_t divisor, bool cuda) {
        const int64_t S = set_slots(args, given_rows, num_stuff, max_instances, divisor);
        check(given.dim() == 2 && given.size(0) == given_rows.size(0) && given.size(1) == S,
              "matching_losses: distances must be [", given_rows.size(0), ", ", S, "] as rows are", Came{given});
        args.dtype = unrounded_dtype("matching_losses: distances", given.scalar_type(), cuda);
        check_same_device("matching_losses: distances and rows must be on the same device", given, given_rows);
        check_same_device("matching_losses: distances and rings must be on the same device", given, given_rings);
        distances = contiguous("matching_losses: distances", given);
        rows = slots_of("matching_losses: rows", given_rows, given_rows.size(0), S);
        rings = slots_of("matching_losses: rings", given_rings, given_rows.size(0), S);
        stuff = torch::stable::new_empty(given, {}, given.scalar_type());
        instances = torch::stable::new_empty(given, {}, given.scalar_type());
        args.distances = distances.const_data_ptr();
        args.rows = in<int64_t>(rows), args.rings = in<int64_t>(rings);
        args.stuff = stuff.mutable_data_ptr(), args.instances = instances.mutable_data_ptr();
    }
};

std::tuple<Tensor, Tensor> matching_losses_cpu(Tensor distances, Tensor rows, Tensor rings, int64_t num_stuff,
                                               int64_t max_instances, int64_t divisor) {
    const MatchingLosses op(distances, rows, rings, num_stuff, max_instances, divisor, false);
    run_pass(simfast::matching_losses_cpu, op.args, 1);
    return {op.stuff, op.instances};
}

#ifdef SIMFAST_WITH_CUDA
std::tuple<Tensor, Tensor> matching_losses_cuda(Tensor distances, Tensor rows, Tensor rings, int64_t num_stuff,
                                                int64_t max_instances, int64_t divisor) {
    const DeviceGuard guard(distances.get_device_index());
    const MatchingLosses op(distances, rows, rings, num_stuff, max_instances, divisor, true);
    launch("matching_losses", simfast::matching_losses_cuda, op.args, distances);
    return {op.stuff, op.instances};
}
#endif

struct MatchingLossesBackward {
    simfast::MatchingLossesBackwardArgs args{};
    Tensor rows, rings, grad_distances;

    MatchingLossesBackward(const Tensor& grad_stuff, const Tensor& grad_instances, const Tensor& given_rows,
                           const Tensor& given_rings, int64_t num_stuff, int64_t max_instances, int64_t divisor,
                           bool cuda) {
        const int64_t S = set_slots(args, given_rows, num_stuff, max_instances, divisor);
        args.dtype = unrounded_dtype("matching_losses: gradients", grad_stuff.scalar_type(), cuda);
        check(grad_stuff.numel() == 1 && grad_instances.numel() == 1 &&
                  grad_instances.scalar_type() == grad_stuff.scalar_type(),
              "matching_losses: gradients must be two scalars of one dtype");
        check_same_device("matching_losses: gradients must be on the rows' device", given_rows, grad_stuff);
        check_same_device("matching_losses: gradients must be on the rows' device", given_rows, grad_instances);
        check_same_device("matching_losses: rings must be on the rows' device", given_rows, given_rings);
        rows = slots_of("matching_losses: rows", given_rows, given_rows.size(0), S);
        rings = slots_of("matching_losses: rings", given_rings, given_rows.size(0), S);
        grad_distances =
            uninitialised("matching_losses: gradient", grad_stuff, {given_rows.size(0), S}, grad_stuff.scalar_type());
        args.grad_stuff = grad_stuff.const_data_ptr(), args.grad_instances = grad_instances.const_data_ptr();
        args.rows = in<int64_t>(rows), args.rings = in<int64_t>(rings);
        args.grad_distances = grad_distances.mutable_data_ptr();
    }
};

Tensor matching_losses_backward_cpu(Tensor grad_stuff, Tensor grad_instances, Tensor rows, Tensor rings,
                                    int64_t num_stuff, int64_t max_instances, int64_t divisor) {
    const MatchingLossesBackward op(grad_stuff, grad_instances, rows, rings, num_stuff, max_instances, divisor, false);
    run_pass(simfast::matching_losses_backward_cpu, op.args, op.args.B, 64);
    return op.grad_distances;
}

#ifdef SIMFAST_WITH_CUDA
Tensor matching_losses_backward_cuda(Tensor grad_stuff, Tensor grad_instances, Tensor rows, Tensor rings,
                                     int64_t num_stuff, int64_t max_instances, int64_t divisor) {
    const DeviceGuard guard(rows.get_device_index());
    const MatchingLossesBackward op(grad_stuff, grad_instances, rows, rings, num_stuff, max_instances, divisor, true);
    if (op.grad_distances.numel() > 0) {
        launch("matching_losses", simfast::matching_losses_backward_cuda, op.args, rows);
    }
    return op.grad_distances;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) {
    m.impl("matching_losses", TORCH_BOX(&matching_losses_cpu));
    m.impl("matching_losses_backward", TORCH_BOX(&matching_losses_backward_cpu));
}

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) {
    m.impl("matching_losses", TORCH_BOX(&matching_losses_cuda));
    m.impl("matching_losses_backward", TORCH_BOX(&matching_losses_backward_cuda));
}
#endif
