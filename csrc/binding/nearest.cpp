// nearest_l1 and its gradient as torch's ops: the CPU half. The CUDA half is simfast/ops/nearest_triton.py.
#include "binding/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def(
        "nearest_l1(Tensor queries, Tensor classes, Tensor bank, Tensor? starts, Tensor filled, SymInt max_rows) -> "
        "(Tensor, Tensor, Tensor)");
    m.def("nearest_l1_backward(Tensor grad, Tensor rows, Tensor signs, ScalarType dtype) -> Tensor");
}

namespace {

using namespace simfast::binding;

std::tuple<Tensor, Tensor, Tensor> nearest_l1_cpu(Tensor queries, Tensor classes, Tensor bank,
                                                  std::optional<Tensor> starts, Tensor filled, int64_t max_rows) {
    check(queries.dim() == 2 && bank.dim() == 2 && queries.size(1) == bank.size(1),
          "nearest_l1: queries and bank must be [N, D] and [T, D]", Came{queries}, " and ", Listed{bank.sizes()});
    check(max_rows >= 0, "nearest_l1: max_rows must be at least 0, got ", max_rows);
    simfast::NearestArgs args{};
    args.queries_dtype = feature_dtype("nearest_l1: queries", queries.scalar_type(), false);
    args.bank_dtype = feature_dtype("nearest_l1: bank", bank.scalar_type(), false);
    args.N = queries.size(0), args.D = queries.size(1), args.K = length_of("nearest_l1: filled", filled);
    args.T = bank.size(0);
    args.R = starts.has_value() ? std::min(max_rows, args.T) : max_rows;  // no class has more rows than the flat bank
    check(args.R < int64_t{1} << 31 && args.N < int64_t{1} << 31 && args.R * args.N < kMostElements,
          "nearest_l1: queries times rows of a class must be less than 2^48, and each less than 2^31, got ", args.N,
          " times ", args.R);
    product("nearest_l1: filled", {args.K});
    int64_t rows_of_all;
    check(starts.has_value() || (!__builtin_mul_overflow(args.K, args.R, &rows_of_all) && args.T == rows_of_all),
          "nearest_l1: bank must hold ", args.R, " rows for each of ", args.K, " classes", Came{bank});
    product("nearest_l1: queries", queries.sizes());
    args.queries = queries.const_data_ptr(), args.bank = bank.const_data_ptr();
    args.query_stride_n = queries.stride(0), args.query_stride_d = queries.stride(1);
    args.bank_stride_t = bank.stride(0), args.bank_stride_d = bank.stride(1);
    classes = integers("nearest_l1: classes", classes, args.N);
    filled = integers("nearest_l1: filled", filled, args.K);
    if (starts.has_value()) starts = integers("nearest_l1: starts", *starts, args.K);
    args.classes = in<int64_t>(classes), args.filled = in<int64_t>(filled);
    args.starts = starts.has_value() ? in<int64_t>(*starts) : nullptr;
    const Tensor distances = uninitialised("nearest_l1: distances", queries, {args.N}, sum_type_of(args.queries_dtype));
    const Tensor rows = uninitialised("nearest_l1: rows", queries, {args.N}, ScalarType::Long);
    const Tensor signs = uninitialised("nearest_l1: signs", queries, {args.N, args.D}, ScalarType::Char);
    args.distances = distances.mutable_data_ptr();
    args.rows = out<int64_t>(rows);
    args.signs = out<int8_t>(signs);
    const Tensor space = workspace("nearest_l1: workspace", queries, simfast::nearest_workspace_cpu(args));
    args.workspace = space.mutable_data_ptr();
    run_pass(simfast::nearest_group_cpu, args, 1);
    run_pass(simfast::nearest_compare_cpu, args, simfast::kNearestShares);
    run_pass(simfast::nearest_pick_cpu, args, args.N, grain(args.D));
    return {distances, rows, signs};
}

Tensor nearest_l1_backward_cpu(Tensor grad, Tensor rows, Tensor signs, ScalarType dtype) {
    simfast::NearestBackwardArgs args{};
    args.queries_dtype = feature_dtype("nearest_l1_backward: dtype", dtype, false);
    check(signs.dim() == 2 && signs.scalar_type() == ScalarType::Char, "nearest_l1_backward: signs must be int8 [N, D]",
          Came{signs});
    args.N = signs.size(0), args.D = signs.size(1);
    check(grad.dim() == 1 && grad.size(0) == args.N && grad.scalar_type() == sum_type_of(args.queries_dtype),
          "nearest_l1_backward: grad must be float32 [", args.N, "] (float64 for float64 queries)", Came{grad});
    rows = integers("nearest_l1_backward: rows", rows, args.N);
    signs = contiguous("nearest_l1_backward: signs", signs);
    const Tensor grad_queries = uninitialised("nearest_l1_backward: gradient", signs, {args.N, args.D}, dtype);
    args.grad = grad.const_data_ptr(), args.grad_stride = grad.stride(0);
    args.rows = in<int64_t>(rows), args.signs = in<int8_t>(signs);
    args.grad_queries = grad_queries.mutable_data_ptr();
    run_pass(simfast::nearest_backward_cpu, args, args.N, grain(args.D));
    return grad_queries;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) {
    m.impl("nearest_l1", TORCH_BOX(&nearest_l1_cpu));
    m.impl("nearest_l1_backward", TORCH_BOX(&nearest_l1_backward_cpu));
}
