// ring_write as torch's op.
#include "binding/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(simfast, m) {
    m.def(
        "ring_write(Tensor(a!) storage, Tensor(b!) written, Tensor vectors, Tensor classes, Tensor starts, Tensor "
        "sizes) -> ()");
}

namespace {

using namespace simfast::binding;
using simfast::Dtype;

// Whether a vector lies in the storage itself, so that it could be overwritten before it is read.
bool overlap(const Tensor& vectors, const Tensor& storage) {
    if (vectors.numel() == 0 || vectors.scalar_type() != storage.scalar_type()) return false;
    const auto from = reinterpret_cast<uintptr_t>(vectors.const_data_ptr());
    const auto to = reinterpret_cast<uintptr_t>(storage.const_data_ptr());
    const int64_t last = (vectors.size(0) - 1) * vectors.stride(0) + (vectors.size(1) - 1) * vectors.stride(1);
    const auto size = static_cast<uintptr_t>(storage.element_size());
    return from < to + storage.numel() * size && to < from + (last + 1) * size;
}

struct RingWrite {
    simfast::RingWriteArgs args{};
    Tensor vectors, classes, starts, sizes;
    bool empty;

    RingWrite(const Tensor& storage, const Tensor& written, const Tensor& given, const Tensor& given_classes,
              const Tensor& given_starts, const Tensor& given_sizes, bool cuda) {
        check(given.dim() == 2 && storage.dim() == 2 && given.size(1) == storage.size(1),
              "ring_write: vectors and storage must be [N, D] and [T, D]", Came{given}, " and ",
              Listed{storage.sizes()});
        check(storage.is_contiguous() && written.is_contiguous(), "ring_write: storage and written must be contiguous");
        for (const Tensor* x : {&written, &given, &given_classes, &given_starts, &given_sizes}) {
            check_same_device("ring_write: all arguments must be on the same device", storage, *x);
        }
        product("ring_write: vectors", given.sizes());
        args.N = given.size(0), args.D = given.size(1), args.T = storage.size(0),
        args.K = length_of("ring_write: sizes", given_sizes);
        check(written.dim() == 1 && written.size(0) == args.K && written.scalar_type() == ScalarType::Long,
              "ring_write: written must be int64 [", args.K, "]", Came{written});
        const bool doubles = unrounded_dtype("ring_write: vectors", given.scalar_type(), cuda) == Dtype::f64;
        args.storage_dtype = feature_dtype("ring_write: storage", storage.scalar_type(), cuda);
        vectors = given.stride(1) == 1 || args.D == 1 ? given : contiguous("ring_write: vectors", given);
        if (overlap(vectors, storage)) {
            vectors = allocated("ring_write: vectors", vectors.scalar_type(), vectors.sizes(),
                                [&] { return torch::stable::clone(vectors); });
        }
        classes = integers("ring_write: classes", given_classes, args.N);
        starts = integers("ring_write: starts", given_starts, args.K);
        sizes = integers("ring_write: sizes", given_sizes, args.K);
        args.vectors = doubles ? nullptr : in<float>(vectors);
        args.doubles = doubles ? in<double>(vectors) : nullptr;
        args.vectors_stride = vectors.stride(0);
        args.classes = in<int64_t>(classes), args.starts = in<int64_t>(starts), args.sizes = in<int64_t>(sizes);
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
    const DeviceGuard guard(storage.get_device_index());
    const RingWrite op(storage, written, vectors, classes, starts, sizes, true);
    if (!op.empty) launch("ring_write", simfast::ring_write_cuda, op.args, storage);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(simfast, CPU, m) { m.impl("ring_write", TORCH_BOX(&ring_write_cpu)); }

#ifdef SIMFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(simfast, CUDA, m) { m.impl("ring_write", TORCH_BOX(&ring_write_cuda)); }
#endif
