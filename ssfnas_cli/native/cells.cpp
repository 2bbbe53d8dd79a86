// The cells of a network: the candidate operations that leave one node, for all edges at once (fan.h), the sums that
// they are added to (sums.h), and the projections of a cell's inputs to its width (projection.h). The words are
// explained in ssfnas_cli/nets/compiled/__init__.py.
//
// What is fast here, and why (measured by benchmarks/search_step.py, retrain_step.py and kernel_floor.py, docs/performance.md):
//   - One image of one operation fits into the second-level cache, so ReLU, depthwise and pointwise convolution run
//     image by image without going back to memory. Only the maps whose batch normalisation needs a whole batch are kept.
//   - Within an image they run tile by tile (64 pixels, all channels), so that the result of a depthwise convolution, the
//     statistics of y and the gradient that arrives at it never leave the first-level cache. Against whole images this
//     made a stage of 36 channels 1.2 times faster forward and 1.4 times backward.
//   - Products of matrices run at nine tenths of the rate of torch's, also where the channels do not fill the last
//     vector (pointwise.h): 1.2 times faster at 36 and 24 channels.
//   - Maps in memory have no padding: with 36 channels a vector's padding took a quarter of the memory and its bandwidth.
//     Large ones are written past the caches, which need not read them first: 1.2 times faster forward.
//   - Tiles of a dozen maps are read in turn, each from other pages of memory, which a processor does not foresee: while one
//     is computed, the next one is fetched (`Pixels::fetch`). A search step became 1.27 times faster, a retraining's 1.16.
//   - Depthwise convolutions, their data gradient (a gather over the output, by parity at stride 2) and their weight
//     gradient hold a row of pixels, or all taps, in registers; the channels of one vector lie side by side.
//   - The weighted sum over operations, each with its batch normalisation, is one linear combination per channel.
//   - The depthwise results are computed again in the backward pass, which is cheaper than to write and read them.
//
// vectors.h explains the layouts.
//
// The batch is cut into at most NUM_CHUNKS chunks, each with sums of its own, which are added in order: the results do
// not depend on how many threads there are, nor on which of them was faster.
//
// The library is compiled for one type, REAL: a search in float32 does not wait until the kernels for float64 are there. With
// BF16_MAPS, maps in memory are bf16 (structures.h), which halves a step's memory, and products are of bf16 (bf16_products.h).

#include "cells.h"

#include "fan.h"
#include "projection.h"
#include "sums.h"

using T = REAL;

int vector_bytes() { return VECTOR_BYTES; }
void kernel_groups_forward(const Shape *s, int g, const Group *gs, int i, const Item *is) {
    groups_forward<T>(*s, g, gs, i, is);
}
void kernel_groups_backward(const Shape *s, int g, const Group *gs, int i, const Item *is, const Upstream *us) {
    groups_backward<T>(*s, g, gs, i, is, us);
}
void kernel_project_forward(const Shape *s, const Projection *p, const Item *i) { project_forward<T>(*s, *p, *i); }
void kernel_project_backward(const Shape *s, const Projection *p, const Item *i, const Upstream *us) {
    project_backward<T>(*s, *p, *i, us);
}
void kernel_add_terms(const Shape *s, int n, const Term *ts, int k, void *const *outs, const int *add) {
    add_terms<T>(*s, n, ts, k, outs, add);
}
void kernel_term_sums(const Shape *s, int n, const Term *ts, const void *const *gs) { term_sums<T>(*s, n, ts, gs); }
