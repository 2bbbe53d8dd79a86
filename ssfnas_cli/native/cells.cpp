// The cells of a network: the candidate operations that leave one node, for all edges at once (fan.h), the sums that
// they are added to (sums.h), and the projections of a cell's inputs to its width (projection.h). The words are
// explained in ssfnas_cli/nets/compiled/__init__.py.
//
// What is fast here, and why (measured by benchmarks/search_step.py, docs/performance.md):
//   - One image of one operation fits into the second-level cache, so ReLU, depthwise and pointwise convolution run
//     image by image without going back to memory. Only the maps whose batch normalisation needs a whole batch are kept.
//   - Depthwise convolutions, their data gradient (a gather over the output, by parity at stride 2) and their weight
//     gradient hold a row of pixels, or all taps, in registers; the channels of one vector lie side by side.
//   - The weighted sum over operations, each with its batch normalisation, is one linear combination per channel.
//   - The depthwise results are computed again in the backward pass, which is cheaper than to write and read them.
//   - A map is read and written in its place, and in as few passes as its statistics allow.
//
// Layouts. Tensors of torch are NHWC ("channels last"). Maps of our own are "blocked": [N][blocks][H][W][lanes], a
// block being as many channels as a vector has lanes, the last one filled up with zeros.
//
// The batch is cut into at most NUM_CHUNKS chunks, each with sums of its own, which are added in order: the results do
// not depend on how many threads there are, nor on which of them was faster.

#include "fan.h"
#include "layout.h"
#include "projection.h"
#include "sums.h"

extern "C" {

int vector_bytes() { return VECTOR_BYTES; }

const LayoutEntry *cells_layout() {
    static const LayoutEntry entries[] = {
        SIZE_OF(Shape), OFFSET_OF(Shape, num), OFFSET_OF(Shape, height), OFFSET_OF(Shape, width),
        OFFSET_OF(Shape, channels), OFFSET_OF(Shape, stride), OFFSET_OF(Shape, threads),
        SIZE_OF(Upstream), OFFSET_OF(Upstream, g), OFFSET_OF(Upstream, scale), OFFSET_OF(Upstream, sample),
        SIZE_OF(Item), OFFSET_OF(Item, kind), OFFSET_OF(Item, kernel), OFFSET_OF(Item, dilation),
        OFFSET_OF(Item, first_upstream), OFFSET_OF(Item, num_upstream), OFFSET_OF(Item, depthwise),
        OFFSET_OF(Item, pointwise), OFFSET_OF(Item, y), OFFSET_OF(Item, mean), OFFSET_OF(Item, variance),
        OFFSET_OF(Item, centre), OFFSET_OF(Item, slope), OFFSET_OF(Item, offset), OFFSET_OF(Item, d_depthwise),
        OFFSET_OF(Item, d_pointwise),
        SIZE_OF(Group), OFFSET_OF(Group, x), OFFSET_OF(Group, scale), OFFSET_OF(Group, shift),
        OFFSET_OF(Group, first_item), OFFSET_OF(Group, num_items), OFFSET_OF(Group, dx),
        OFFSET_OF(Group, centre), OFFSET_OF(Group, sum), OFFSET_OF(Group, dot),
        SIZE_OF(Projection), OFFSET_OF(Projection, x), OFFSET_OF(Projection, in_channels),
        OFFSET_OF(Projection, taps), OFFSET_OF(Projection, first_channels), OFFSET_OF(Projection, weights),
        OFFSET_OF(Projection, d_weights), OFFSET_OF(Projection, dx),
        SIZE_OF(Term), OFFSET_OF(Term, y), OFFSET_OF(Term, scale), OFFSET_OF(Term, centre), OFFSET_OF(Term, shift),
        OFFSET_OF(Term, sample), OFFSET_OF(Term, target), OFFSET_OF(Term, sum),
        OFFSET_OF(Term, dot),
        {nullptr, 0},
    };
    return entries;
}

#define FOR_TYPE(T, SUFFIX)                                                                                             \
    void groups_forward_##SUFFIX(const Shape *s, int g, const Group *gs, int i, const Item *is) {                       \
        groups_forward<T>(*s, g, gs, i, is);                                                                            \
    }                                                                                                                   \
    void groups_backward_##SUFFIX(const Shape *s, int g, const Group *gs, int i, const Item *is, const Upstream *us) {  \
        groups_backward<T>(*s, g, gs, i, is, us);                                                                       \
    }                                                                                                                   \
    void project_forward_##SUFFIX(const Shape *s, const Projection *p, const Item *i) { project_forward<T>(*s, *p, *i); } \
    void project_backward_##SUFFIX(const Shape *s, const Projection *p, const Item *i, const Upstream *us) {            \
        project_backward<T>(*s, *p, *i, us);                                                                            \
    }                                                                                                                   \
    void add_terms_##SUFFIX(const Shape *s, int n, const Term *ts, int k, void *const *outs, const int *add) {        \
        add_terms<T>(*s, n, ts, k, outs, add);                                                                        \
    }                                                                                                                   \
    void term_sums_##SUFFIX(const Shape *s, int n, const Term *ts, const void *const *gs) { term_sums<T>(*s, n, ts, gs); }

FOR_TYPE(float, float)
FOR_TYPE(double, double)
}
