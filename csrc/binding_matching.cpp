// Registers what joins the regions and the banks of the matching; see binding.cpp.
#include "binding.h"

namespace {

using namespace simfast::binding;
using simfast::Dtype;

template <typename T>
T* out(const Tensor& x) {
    return static_cast<T*>(x.mutable_data_ptr());
}

// int64 [B, S], contiguous.
Tensor slots_of(const char* what, const Tensor& x, int64_t B, int64_t S) {
    check(x.dim() == 2 && x.size(0) == B && x.size(1) == S && x.scalar_type() == ScalarType::Long, what,
          " must be int64 [", B, ", ", S, "]");
    return torch::stable::contiguous(x);
}

// ---------------------------------------------------------------------------------------------------------------------
// ring_write
// ---------------------------------------------------------------------------------------------------------------------

struct RingWrite {
    simfast::RingWriteArgs args{};
    Tensor vectors, classes, starts, sizes;
    bool empty;

    RingWrite(const Tensor& storage, const Tensor& written, const Tensor& given, const Tensor& given_classes,
              const Tensor& given_starts, const Tensor& given_sizes, bool cuda) {
        check(given.dim() == 2 && storage.dim() == 2 && given.size(1) == storage.size(1),
              "ring_write: vectors and storage must be [N, D] and [T, D]");
        check(storage.is_contiguous() && written.is_contiguous(), "ring_write: storage and written must be contiguous");
        for (const Tensor* x : {&written, &given, &given_classes, &given_starts, &given_sizes}) {
            check_same_device("ring_write: all arguments must be on the same device", storage, *x);
        }
        args.N = given.size(0), args.D = given.size(1), args.T = storage.size(0), args.K = given_sizes.size(0);
        check(written.dim() == 1 && written.size(0) == args.K && written.scalar_type() == ScalarType::Long,
              "ring_write: written must be int64 [", args.K, "]");
        const Dtype dtype = feature_dtype("ring_write: vectors", given.scalar_type(), cuda);
        check(dtype == Dtype::f32 || dtype == Dtype::f64, "ring_write: vectors must be float32 (float64 on the CPU)");
        args.storage_dtype = feature_dtype("ring_write: storage", storage.scalar_type(), cuda);
        vectors = given.stride(1) == 1 || args.D == 1 ? given : torch::stable::contiguous(given);
        classes = integers("ring_write: classes", given_classes, args.N);
        starts = integers("ring_write: starts", given_starts, args.K);
        sizes = integers("ring_write: sizes", given_sizes, args.K);
        args.vectors = dtype == Dtype::f32 ? static_cast<const float*>(vectors.const_data_ptr()) : nullptr;
        args.doubles = dtype == Dtype::f64 ? static_cast<const double*>(vectors.const_data_ptr()) : nullptr;
        args.vectors_stride = vectors.stride(0);
        args.classes = data(classes), args.starts = data(starts), args.sizes = data(sizes);
        args.storage = storage.mutable_data_ptr();
        args.written = out<int64_t>(written);
        empty = args.N == 0 || args.K == 0;
    }
};

void ring_write_cpu(Tensor storage, Tensor written, Tensor vectors, Tensor classes, Tensor starts, Tensor sizes) {
    const RingWrite op(storage, written, vectors, classes, starts, sizes, false);
    if (!op.empty) run_pass(simfast::ring_write_cpu, op.args, op.args.K, grain(op.args.N * op.args.D / op.args.K));
}

#ifdef SIMFAST_WITH_CUDA
void ring_write_cuda(Tensor storage, Tensor written, Tensor vectors, Tensor classes, Tensor starts, Tensor sizes) {
    const torch::stable::accelerator::DeviceGuard guard(storage.get_device_index());
    const RingWrite op(storage, written, vectors, classes, starts, sizes, true);
    if (!op.empty) launch("ring_write", simfast::ring_write_cuda, op.args, storage);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// select_rings
// ---------------------------------------------------------------------------------------------------------------------

struct SelectRings {
    simfast::SelectRingsArgs args{};
    Tensor areas, slot_rings, rings;
    std::optional<Tensor> slot_classes;

    SelectRings(const Tensor& given, const Tensor& given_rings, const std::optional<Tensor>& logits,
                const std::optional<Tensor>& given_classes, bool cuda) {
        check(given.dim() == 2 && given.scalar_type() == ScalarType::Int, "select_rings: areas must be int32 [B, S]");
        args.B = given.size(0), args.S = given.size(1);
        areas = torch::stable::contiguous(given);
        slot_rings = integers("select_rings: slot_rings", given_rings, args.S);
        check_same_device("select_rings: areas and slot_rings must be on the same device", given, given_rings);
        if (logits.has_value()) {
            check(given_classes.has_value(), "select_rings: slot_classes must be given with logits");
            check(logits->dim() == 2 && logits->size(1) >= 1 && args.B > 0 && logits->size(0) % args.B == 0 &&
                      logits->size(0) / args.B <= args.S,
                  "select_rings: logits must be [B * G, L], G at most ", args.S);
            check_same_device("select_rings: areas and logits must be on the same device", given, *logits);
            check_same_device("select_rings: areas and slot_classes must be on the same device", given, *given_classes);
            slot_classes = integers("select_rings: slot_classes", *given_classes, args.S);
            args.slot_classes = data(*slot_classes);
            args.logits = logits->const_data_ptr();
            args.logits_dtype = feature_dtype("select_rings: logits", logits->scalar_type(), cuda);
            args.stride_n = logits->stride(0), args.stride_l = logits->stride(1);
            args.G = logits->size(0) / args.B, args.L = logits->size(1);
        }
        rings = uninitialised(given, {args.B, args.S}, ScalarType::Long);
        args.areas = static_cast<const int32_t*>(areas.const_data_ptr());
        args.slot_rings = data(slot_rings);
        args.rings = out<int64_t>(rings);
    }
};

Tensor select_rings_cpu(Tensor areas, Tensor slot_rings, std::optional<Tensor> logits,
                        std::optional<Tensor> slot_classes) {
    const SelectRings op(areas, slot_rings, logits, slot_classes, false);
    run_pass(simfast::select_rings_cpu, op.args, op.args.B * op.args.S, grain(std::max<int64_t>(1, op.args.L)));
    return op.rings;
}

#ifdef SIMFAST_WITH_CUDA
Tensor select_rings_cuda(Tensor areas, Tensor slot_rings, std::optional<Tensor> logits,
                         std::optional<Tensor> slot_classes) {
    const torch::stable::accelerator::DeviceGuard guard(areas.get_device_index());
    const SelectRings op(areas, slot_rings, logits, slot_classes, true);
    if (op.args.B * op.args.S > 0) launch("select_rings", simfast::select_rings_cuda, op.args, areas);
    return op.rings;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// matching_losses
// ---------------------------------------------------------------------------------------------------------------------

// What both directions have: slots of two kinds, and what a distance is divided by.
template <typename Args>
int64_t set_slots(Args& args, const Tensor& rows, int64_t num_stuff, int64_t max_instances, int64_t divisor) {
    check(rows.dim() == 2, "matching_losses: rows must be int64 [B, S]");
    const int64_t things = rows.size(1) - num_stuff;
    check(num_stuff >= 0 && max_instances >= 1 && things >= 0 && things % max_instances == 0,
          "matching_losses: there must be num_stuff slots and a multiple of max_instances, got ", rows.size(1));
    args.B = rows.size(0), args.num_stuff = num_stuff, args.num_things = things / max_instances;
    args.max_instances = max_instances, args.divisor = divisor;
    return rows.size(1);
}

struct MatchingLosses {
    simfast::MatchingLossesArgs args{};
    Tensor distances, rows, rings, stuff, instances;

    MatchingLosses(const Tensor& given, const Tensor& given_rows, const Tensor& given_rings, int64_t num_stuff,
                   int64_t max_instances, int64_t divisor, bool cuda) {
        const int64_t S = set_slots(args, given_rows, num_stuff, max_instances, divisor);
        check(given.dim() == 2 && given.size(0) == args.B && given.size(1) == S,
              "matching_losses: distances and rows must both be [B, S]");
        args.dtype = feature_dtype("matching_losses: distances", given.scalar_type(), cuda);
        check(args.dtype == Dtype::f32 || args.dtype == Dtype::f64,
              "matching_losses: distances must be float32 (float64 on the CPU)");
        check_same_device("matching_losses: distances and rows must be on the same device", given, given_rows);
        check_same_device("matching_losses: distances and rings must be on the same device", given, given_rings);
        distances = torch::stable::contiguous(given);
        rows = slots_of("matching_losses: rows", given_rows, args.B, S);
        rings = slots_of("matching_losses: rings", given_rings, args.B, S);
        stuff = torch::stable::new_empty(given, {}, given.scalar_type());
        instances = torch::stable::new_empty(given, {}, given.scalar_type());
        args.distances = distances.const_data_ptr();
        args.rows = data(rows), args.rings = data(rings);
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
    const torch::stable::accelerator::DeviceGuard guard(distances.get_device_index());
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
        args.dtype = feature_dtype("matching_losses: gradients", grad_stuff.scalar_type(), cuda);
        check(grad_stuff.numel() == 1 && grad_instances.numel() == 1 &&
                  grad_instances.scalar_type() == grad_stuff.scalar_type() &&
                  (args.dtype == Dtype::f32 || args.dtype == Dtype::f64),
              "matching_losses: gradients must be float32 scalars (float64 on the CPU)");
        check_same_device("matching_losses: gradients must be on the rows' device", given_rows, grad_stuff);
        check_same_device("matching_losses: gradients must be on the rows' device", given_rows, grad_instances);
        check_same_device("matching_losses: rings must be on the rows' device", given_rows, given_rings);
        rows = slots_of("matching_losses: rows", given_rows, args.B, S);
        rings = slots_of("matching_losses: rings", given_rings, args.B, S);
        grad_distances = uninitialised(grad_stuff, {args.B, S}, grad_stuff.scalar_type());
        args.grad_stuff = grad_stuff.const_data_ptr(), args.grad_instances = grad_instances.const_data_ptr();
        args.rows = data(rows), args.rings = data(rings);
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
    const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
    const MatchingLossesBackward op(grad_stuff, grad_instances, rows, rings, num_stuff, max_instances, divisor, true);
    if (op.grad_distances.numel() > 0) {
        launch("matching_losses", simfast::matching_losses_backward_cuda, op.args, rows);
    }
    return op.grad_distances;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def(
        "matching_losses(Tensor distances, Tensor rows, Tensor rings, int num_stuff, int max_instances, SymInt "
        "divisor) -> (Tensor, Tensor)");
    m.def(
        "matching_losses_backward(Tensor grad_stuff, Tensor grad_instances, Tensor rows, Tensor rings, int num_stuff, "
        "int max_instances, SymInt divisor) -> Tensor");
    m.def(
        "ring_write(Tensor(a!) storage, Tensor(b!) written, Tensor vectors, Tensor classes, Tensor starts, Tensor "
        "sizes) -> ()");
    m.def("select_rings(Tensor areas, Tensor slot_rings, Tensor? logits, Tensor? slot_classes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) {
    m.impl("matching_losses", TORCH_BOX(&matching_losses_cpu));
    m.impl("matching_losses_backward", TORCH_BOX(&matching_losses_backward_cpu));
    m.impl("ring_write", TORCH_BOX(&ring_write_cpu));
    m.impl("select_rings", TORCH_BOX(&select_rings_cpu));
}

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) {
    m.impl("matching_losses", TORCH_BOX(&matching_losses_cuda));
    m.impl("matching_losses_backward", TORCH_BOX(&matching_losses_backward_cuda));
    m.impl("ring_write", TORCH_BOX(&ring_write_cuda));
    m.impl("select_rings", TORCH_BOX(&select_rings_cuda));
}
#endif
