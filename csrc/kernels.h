// The whole native surface of simfast on one page. No torch and no CUDA header: whoever can name a pointer can call it.
//
// Every op is one struct of pointers, sizes and strides, passed by value or const reference, and two ways to run it:
//
//   <op>_<pass>_cpu(args, begin, end)  serial over a range of the pass's items. Items of one pass are independent: any
//                                      split over any number of threads gives the same bits. Passes run in the order
//                                      they stand here, each after the one before has ended (the caller's duty).
//   <op>_cuda(args, stream)            launches on `stream` (a cudaStream_t) of the current device and returns at
//                                      once: no allocation, no synchronisation, no host read, so it can be captured
//                                      in a graph. Returns nullptr, or a static text that says what went wrong; whose
//                                      op it was, the caller adds.
//
// Duties.
//   Caller: checks sizes and dtypes, allocates outputs and workspace on the right device, makes that device current.
//   Kernel: writes every element of every output (outputs arrive uninitialised), tolerates any content in the
//           workspace, leaves nothing in it that a later call needs. Inputs are never written, except where the
//           contract says in/out; no two arrays overlap. An input of integers may be changed by others while the kernel
//           runs: what comes out is then any answer, but no index leaves its array.
//   Workspace: `<op>_workspace_{cpu,cuda}(args)` bytes, aligned to 64 bytes (CPU) or 256 (CUDA); the function looks at
//           sizes, dtypes, layout and the current device alone, never at a pointer. 0 bytes means the pointer may be
//           null. An op without such a function has no workspace.
//
// Limits the caller has checked: every size >= 1 unless its line says otherwise; H * W < 2^31 for one image; num_slots,
// num_segments < 2^31. B * H * W and every offset can exceed 32 bits: 64-bit before multiplying by a stride. Strides
// count elements, may be 0 (expanded) or anything else; alignment is that of one element, no more.
#pragma once

#include <cstdint>

namespace simfast {

enum class Dtype : int32_t { u8, i16, i32, i64, f16, bf16, f32, f64 };

inline constexpr int32_t kMaxClasses = 64;  // stuff and thing classes together, for find_regions

// An integer map [B, H, W] read in place in its own dtype (u8, i16, i32, i64), whatever its strides.
struct LabelMap {
    const void* data;  // in
    Dtype dtype;
    int64_t stride_b, stride_h, stride_w;  // in elements
};

// ---------------------------------------------------------------------------------------------------------------------
// connected_components: neighbours connect where they carry the same label.
// ---------------------------------------------------------------------------------------------------------------------
struct ComponentsArgs {
    LabelMap labels;       // in   [B, H, W]
    int64_t B, H, W;       //
    int64_t background;    //      label that belongs to no component; need not fit the dtype (then no pixel has it)
    int32_t connectivity;  //      4 or 8
    int32_t num_strips;    //      CPU only: row strips an image is cut into, 1..H; without effect on results
    int32_t* ids;          // out  [B, H, W] contiguous: 0 on background, else 1..counts[b] in raster order
    int32_t* counts;       // out  [B]
    void* workspace;       //      components_workspace_*(args) bytes
};

int64_t components_workspace_cpu(const ComponentsArgs& args);
void components_label_cpu(const ComponentsArgs& args, int64_t begin, int64_t end);   // items: B * num_strips
void components_join_cpu(const ComponentsArgs& args, int64_t begin, int64_t end);    // items: B; counts
void components_number_cpu(const ComponentsArgs& args, int64_t begin, int64_t end);  // items: B * num_strips
void components_write_cpu(const ComponentsArgs& args, int64_t begin, int64_t end);   // items: B * num_strips; ids

int64_t components_workspace_cuda(const ComponentsArgs& args);
const char* components_cuda(const ComponentsArgs& args, void* stream);

// ---------------------------------------------------------------------------------------------------------------------
// find_regions: whole stuff classes and the largest connected components of thing classes, in fixed slots.
//
// Slot i < num_stuff is all pixels of classes[i], connected or not. Slot num_stuff + t * max_instances + k is the k-th
// largest component of classes[num_stuff + t]; among equal areas the one whose first pixel comes first in raster order.
// num_slots = num_stuff + num_things * max_instances. Pixels of other labels, and components beyond the largest
// max_instances of their class, have no slot (-1).
// ---------------------------------------------------------------------------------------------------------------------
struct RegionsArgs {
    LabelMap labels;               // in   [B, H, W]
    int64_t B, H, W;               //
    int64_t classes[kMaxClasses];  //      stuff, then things; all distinct; need not fit the labels' dtype
    int32_t num_stuff;             //      >= 0
    int32_t num_things;            //      >= 0; num_stuff + num_things in 1..kMaxClasses
    int32_t max_instances;         //      >= 1
    int32_t connectivity;          //      4 or 8
    int32_t num_strips;            //      CPU only: row strips an image is cut into, 1..H; without effect on results
    int32_t* segments;             // out  [B, H, W] contiguous: slot of each pixel, -1 where none
    int32_t* areas;                // out  [B, num_slots] pixels per slot, 0 where empty
    void* workspace;               //      regions_workspace_*(args) bytes
};

inline int64_t regions_num_slots(const RegionsArgs& args) {
    return args.num_stuff + static_cast<int64_t>(args.num_things) * args.max_instances;
}

int64_t regions_workspace_cpu(const RegionsArgs& args);
void regions_label_cpu(const RegionsArgs& args, int64_t begin, int64_t end);   // items: B * num_strips
void regions_select_cpu(const RegionsArgs& args, int64_t begin, int64_t end);  // items: B; writes areas
void regions_write_cpu(const RegionsArgs& args, int64_t begin, int64_t end);   // items: B * num_strips; writes segments

int64_t regions_workspace_cuda(const RegionsArgs& args);
const char* regions_cuda(const RegionsArgs& args, void* stream);

// ---------------------------------------------------------------------------------------------------------------------
// segment_mean: means[b, s, c] = mean of features[b, c, p] over the pixels p of segment s of image b; 0 if it has none.
//
// Short sums are fp32 (f64 for f64 features). Sums of these are f64 on the CPU; on CUDA compensated fp32, but for the
// runs of about a thousand pixels, which are added plainly. The order is fixed by the shapes and the segments alone, on
// the CPU by the layout too. A segment value outside [0, num_segments), -1 above all, means "no segment": such a pixel
// is skipped, and its gradient is 0.
// ---------------------------------------------------------------------------------------------------------------------

// A map [B, C, H, W] whose pixels p = y * W + x lie at a constant stride. `planes` is NCHW: stride_p == 1; `pixels` is
// channels-last: stride_c == 1. The other strides are free (a slice of channels or of images is read in place).
enum class Layout : int32_t { planes, pixels };

struct SegmentMeanArgs {
    const void* features;                  // in   [B, C, H, W]: f16, bf16, f32; f64 on the CPU only
    Dtype features_dtype;                  //
    Layout layout;                         //
    int64_t stride_b, stride_c, stride_p;  //      of features, in elements
    LabelMap segments;                     // in   [B, H, W]
    int64_t B, C, H, W;                    //
    int64_t num_segments;                  //      S >= 1
    int32_t* counts;                       // out  [B, S] pixels per segment (backward reads them)
    void* means;                           // out  [B, S, C] contiguous: f32; f64 for f64 features
    void* workspace;                       //      segment_mean_workspace_*(args) bytes
};

int64_t segment_mean_workspace_cpu(const SegmentMeanArgs& args);
void segment_mean_runs_cpu(const SegmentMeanArgs& args, int64_t begin, int64_t end);  // items: B; writes counts
void segment_mean_sum_cpu(const SegmentMeanArgs& args, int64_t begin, int64_t end);   // items: B * C; writes means

int64_t segment_mean_workspace_cuda(const SegmentMeanArgs& args);
const char* segment_mean_cuda(const SegmentMeanArgs& args, void* stream);

// grad_features[b, c, p] = grad_means[b, s, c] / counts[b, s] with s = segments[b, p]; 0 where p has no segment. The
// quotient is taken in fp32 (f64 for f64) and rounded once.
struct SegmentMeanBackwardArgs {
    const void* grad_means;                // in   [B, S, C] contiguous: f32; f64 for f64 features
    const int32_t* counts;                 // in   [B, S], as forward wrote them
    LabelMap segments;                     // in   [B, H, W], as forward read them
    int64_t B, C, H, W;                    //
    int64_t num_segments;                  //
    void* grad_features;                   // out  [B, C, H, W], dense in `layout`
    Dtype features_dtype;                  //
    Layout layout;                         //
    int64_t stride_b, stride_c, stride_p;  //      of grad_features, in elements
    void* workspace;                       //      segment_mean_backward_workspace_*(args) bytes
};

int64_t segment_mean_backward_workspace_cpu(const SegmentMeanBackwardArgs& args);
void segment_mean_backward_runs_cpu(const SegmentMeanBackwardArgs& args, int64_t begin, int64_t end);  // items: B
// items: B * C if layout is planes, B * H if it is pixels; writes grad_features
void segment_mean_backward_write_cpu(const SegmentMeanBackwardArgs& args, int64_t begin, int64_t end);

int64_t segment_mean_backward_workspace_cuda(const SegmentMeanBackwardArgs& args);
const char* segment_mean_backward_cuda(const SegmentMeanBackwardArgs& args, void* stream);

// ---------------------------------------------------------------------------------------------------------------------
// nearest_l1: the filled row of a query's class that is nearest in L1, lowest on ties, how far it is, and on which side
// of it the query lies. CPU only: the CUDA half is simfast/ops/nearest_triton.py.
//
// Class k owns the bank's rows starts[k] .. starts[k] + R - 1, of which the first filled[k] are valid (values that
// would lead outside of that, or of the bank, are cut). A query whose class lies outside [0, K), -1 above all, or has
// no valid row, has distance +inf, row -1 and signs 0. NaN counts as smaller than any number.
// ---------------------------------------------------------------------------------------------------------------------
inline constexpr int64_t kNearestShares = 64;  // that the comparing is dealt out to, whatever the sizes

struct NearestArgs {
    const void* queries;                     // in   [N, D]: f16, bf16, f32, f64
    Dtype queries_dtype;                     //
    int64_t query_stride_n, query_stride_d;  //      in elements
    const int64_t* classes;                  // in   [N] contiguous
    const void* bank;                        // in   [T, D]: f16, bf16, f32, f64
    Dtype bank_dtype;                        //
    int64_t bank_stride_t, bank_stride_d;    //      in elements
    const int64_t* starts;                   // in   [K] first row of each class; null: k * R
    const int64_t* filled;                   // in   [K] valid rows of each class
    int64_t N, K, T, D;                      //      K, T >= 0; the others >= 1
    int64_t R;                               //      most rows of a class, >= 0; N * R < 2^48
    void* distances;                         // out  [N] f32; f64 for f64 queries
    int64_t* rows;                           // out  [N] counted from the class's first
    int8_t* signs;                           // out  [N, D] contiguous: sign of query - row
    void* workspace;                         //      nearest_workspace_cpu(args) bytes
};

int64_t nearest_workspace_cpu(const NearestArgs& args);
void nearest_group_cpu(const NearestArgs& args, int64_t begin, int64_t end);    // items: 1
void nearest_compare_cpu(const NearestArgs& args, int64_t begin, int64_t end);  // items: kNearestShares
void nearest_pick_cpu(const NearestArgs& args, int64_t begin, int64_t end);     // items: N; writes the outputs

// grad_queries[n, d] = grad[n] * signs[n, d], rounded once; 0 where no row was found, whatever the gradient there.
struct NearestBackwardArgs {
    const void* grad;     // in   [N]: f32; f64 for f64 queries
    int64_t grad_stride;  //      in elements
    const int64_t* rows;  // in   [N] contiguous, as forward wrote them
    const int8_t* signs;  // in   [N, D] contiguous, as forward wrote them
    int64_t N, D;         //
    void* grad_queries;   // out  [N, D] contiguous
    Dtype queries_dtype;  //
};

void nearest_backward_cpu(const NearestBackwardArgs& args, int64_t begin, int64_t end);  // items: N

// ---------------------------------------------------------------------------------------------------------------------
// ring_write: appends vectors to rings, in the order given.
//
// Ring k owns the rows starts[k] .. starts[k] + sizes[k] - 1 of the storage. Its vector number i, counted from 0 over
// all calls, goes to its row i modulo sizes[k]; of more vectors in one call than it has rows only the last stay.
// written[k] grows by all of them. A class outside [0, K), -1 above all, is not stored, nor is one whose ring would
// leave the storage, has written[k] < 0 or would count past 2^63. Values are rounded to nearest, ties to even. No other
// row of the storage is touched.
// ---------------------------------------------------------------------------------------------------------------------
struct RingWriteArgs {
    const float* vectors;    // in     [N, D], rows vectors_stride apart, contiguous in D; null if doubles come
    const double* doubles;   // in     the same in f64, on the CPU only; else null
    int64_t vectors_stride;  //        in elements
    const int64_t* classes;  // in     [N] contiguous
    const int64_t* starts;   // in     [K]
    const int64_t* sizes;    // in     [K]
    int64_t N, K, D, T;      //
    void* storage;           // in/out [T, D] contiguous: f16, bf16, f32; f64 on the CPU only
    Dtype storage_dtype;     //
    int64_t* written;        // in/out [K] vectors that each ring has been given
};

void ring_write_cpu(const RingWriteArgs& args, int64_t begin, int64_t end);  // items: K
const char* ring_write_cuda(const RingWriteArgs& args, void* stream);

// ---------------------------------------------------------------------------------------------------------------------
// select_rings: the ring of each slot that holds a region, -1 where it holds none or is turned away.
//
// With logits, slot s < G of image b counts only where the arg-max of logits[b * G + s], the first of the largest (NaN
// is larger than any number), is slot_classes[s].
// ---------------------------------------------------------------------------------------------------------------------
struct SelectRingsArgs {
    const int32_t* areas;         // in   [B, S] contiguous
    const int64_t* slot_rings;    // in   [S]
    const int64_t* slot_classes;  // in   [S]; read where there are logits
    const void* logits;           // in   [B * G, L]: f16, bf16, f32; f64 on the CPU only; null: G = 0
    Dtype logits_dtype;           //
    int64_t stride_n, stride_l;   //      of logits, in elements
    int64_t B, S, G, L;           //      G in 0..S
    int64_t* rings;               // out  [B, S]
};

void select_rings_cpu(const SelectRingsArgs& args, int64_t begin, int64_t end);  // items: B * S
const char* select_rings_cuda(const SelectRingsArgs& args, void* stream);

// ---------------------------------------------------------------------------------------------------------------------
// matching_losses: Eq. 6 and Eq. 8 of distances by slot, S = num_stuff + num_things * max_instances as in find_regions.
//
// A slot's term is distances / divisor, 0 where rows is negative. The stuff loss is the sum of the stuff slots' terms;
// the instance loss that of each thing class's terms over its number of slots with rings >= 0 (at least 1). Each sum is
// taken in the order of the slots, then of the classes, then of the images.
// ---------------------------------------------------------------------------------------------------------------------
struct MatchingLossesArgs {
    const void* distances;  // in   [B, S] contiguous: f32; f64 on the CPU only
    Dtype dtype;            //      of distances, losses and gradients
    const int64_t* rows;    // in   [B, S] contiguous
    const int64_t* rings;   // in   [B, S] contiguous
    int64_t B;              //      >= 0
    int64_t num_stuff;      //      >= 0
    int64_t num_things;     //      >= 0
    int64_t max_instances;  //      >= 1
    int64_t divisor;        //
    void* stuff;            // out  scalar
    void* instances;        // out  scalar
};

void matching_losses_cpu(const MatchingLossesArgs& args, int64_t begin, int64_t end);  // items: 1
const char* matching_losses_cuda(const MatchingLossesArgs& args, void* stream);

struct MatchingLossesBackwardArgs {
    const void* grad_stuff;      // in   scalar
    const void* grad_instances;  // in   scalar
    Dtype dtype;                 //      of all gradients: f32; f64 on the CPU only
    const int64_t* rows;         // in   [B, S], as forward read them
    const int64_t* rings;        // in   [B, S], as forward read them
    int64_t B, num_stuff, num_things, max_instances, divisor;
    void* grad_distances;  // out  [B, S] contiguous
};

void matching_losses_backward_cpu(const MatchingLossesBackwardArgs& args, int64_t begin, int64_t end);  // items: B
const char* matching_losses_backward_cuda(const MatchingLossesBackwardArgs& args, void* stream);

}  // namespace simfast
