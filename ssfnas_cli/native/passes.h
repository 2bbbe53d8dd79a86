// The structures that Python passes to passes.cpp, mirrored in cells.py. Pointers to void are to T, or to
// Stored<T> where they are maps (x, maps, outs, gs, dx, y, out, g).
#pragma once

#include "structures.h"

struct Norms {  // the batch normalisations (BNs) behind some maps
    const double *eps;                                      // [maps]; below 0 for a map without a BN
    void *const *running_means, *const *running_variances;  // [maps], each [C]; where null, they do not move
    long *const *num_batches;                               // [maps], or null
    const double *momenta;                                  // [maps]
    int training;  // whether the batch's statistics are used, or the running ones
    void (*sum)(double *values, long num);  // replaces values by their sums over all ranks; null if there is one
};
struct Fan {  // what stays the same from pass to pass; maps and uses are those of fanout.py
    int num_maps, num_first, num_uses, num_targets;
    const Item *items;              // [maps]: kind, kernel, dilation, upstreams
    const int *inner;               // [maps - first]: the first stage's map before each second stage
    const int *last_map;            // [uses]: the map that is added to the target
    const int *target;              // [uses]
    const int *by_target, *by_map;  // [uses]: the uses in the order of their targets, and of their maps
};
struct FanCall {  // one pass
    int images;                          // that lie side by side
    const void *x;
    const void *const *weights;          // depthwise and pointwise in turn, of every convolution
    Norms norms;
    const void *scale, *shift, *sample;  // [uses, C], [uses, C] or null, [uses, N] or null
    int scale_per_channel;               // if 0, scale is [uses, 1]
    const void *gamma, *beta;            // of the BNs between two stages [second stages, C], or null
    void *maps;                          // the stored maps, one after the other
    double *mean, *inverse;              // [maps, C]
    void *const *outs;                   // forward: the sums, by target
    const int *add;                      // and whether each has been begun
    const void *const *gs;               // backward: the gradients, by target
    void *const *d_weights;              // or null
    void *dx;                            // if null, only the gradients of scale and shift are computed
    double *d_shift, *d_scale;           // [uses, C]
    void *d_gamma, *d_beta;              // [second stages, C], or null
};
struct ProjectionCall {  // a projection in a pass of one or several
    Projection job;
    Norms norms;               // of one map
    const void *gamma, *beta;  // [C], or null
    void *y;                   // the convolutions' result before its BN, [N, H, W, C]
    double *mean, *inverse;    // [C]
    void *out;                 // forward
    const void *g;             // backward
    double *d_beta, *d_gamma;  // [C]
};
