// select_rings as torch's op.
#include "binding/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def("select_rings(Tensor areas, Tensor slot_rings, Tensor? logits, Tensor? slot_classes) -> Tensor");
}

namespace {

using namespace simfast::binding;

struct SelectRings {
    simfast::SelectRingsArgs args{};
    Tensor areas, slot_rings, rings;
    std::optional<Tensor> slot_classes;

    SelectRings(const Tensor& given, const Tensor& given_rings, const std::optional<Tensor>& logits,
                const std::optional<Tensor>& given_classes, bool cuda) {
        check(given.dim() == 2 && given.scalar_type() == ScalarType::Int, "select_rings: areas must be int32 [B, S]",
              Came{given});
        args.B = given.size(0), args.S = given.size(1);
        areas = contiguous("select_rings: areas", given);
        slot_rings = integers("select_rings: slot_rings", given_rings, args.S);
        check_same_device("select_rings: areas and slot_rings must be on the same device", given, given_rings);
        if (logits.has_value()) {
            check(given_classes.has_value(), "select_rings: slot_classes must be given with logits");
            check(logits->dim() == 2 && logits->size(1) >= 1 && args.B > 0 && logits->size(0) % args.B == 0 &&
                      logits->size(0) / args.B <= args.S,
                  "select_rings: logits must be [B * G, L], G at most ", args.S, Came{*logits});
            product("select_rings: logits", logits->sizes());
            check_same_device("select_rings: areas and logits must be on the same device", given, *logits);
            check_same_device("select_rings: areas and slot_classes must be on the same device", given, *given_classes);
            slot_classes = integers("select_rings: slot_classes", *given_classes, args.S);
            args.slot_classes = in<int64_t>(*slot_classes);
            args.logits = logits->const_data_ptr();
            args.logits_dtype = feature_dtype("select_rings: logits", logits->scalar_type(), cuda);
            args.stride_n = logits->stride(0), args.stride_l = logits->stride(1);
            args.G = logits->size(0) / args.B, args.L = logits->size(1);
        }
        rings = uninitialised("select_rings: rings", given, {args.B, args.S}, ScalarType::Long);
        args.areas = in<int32_t>(areas);
        args.slot_rings = in<int64_t>(slot_rings);
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
    const DeviceGuard guard(areas.get_device_index());
    const SelectRings op(areas, slot_rings, logits, slot_classes, true);
    if (op.args.B * op.args.S > 0) launch("select_rings", simfast::select_rings_cuda, op.args, areas);
    return op.rings;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) { m.impl("select_rings", TORCH_BOX(&select_rings_cpu)); }

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) { m.impl("select_rings", TORCH_BOX(&select_rings_cuda)); }
#endif
