// The structures that Python passes. They are mirrored in cells.py, which compares sizes and offsets when it loads the
// library. Maps (x, y, g, dx, outs) are NHWC and of Stored<T>. Other pointers are to T, except mean, variance, sum and dot,
// which are sums over the batch and point to double.
#pragma once

#include <cstdint>

// What maps consist of in memory: T or, in a library that is compiled for it, bf16, the first half of a float. Whatever is
// computed with them is in T: a map is widened as it is read, and rounded to the nearest bf16 as it is written.
struct bf16 {
    uint16_t bits;
};
#if defined(BF16_MAPS)
template <class T>
using Stored = bf16;
#else
template <class T>
using Stored = T;
#endif

enum Kind : int { SEPARABLE = 0, MAX_POOL = 1, AVG_POOL = 2, IDENTITY = 3 };

struct Shape {
    int num, height, width, channels, stride, threads;
};
struct Upstream {  // a gradient that arrives at an item's result: scale[c] * sample[n] * g
    const void *g;       // of the output's size
    const void *scale;   // [C]
    const void *sample;  // [N], or null
};
struct Item {  // one stage, pool or identity on a group's input
    int kind, kernel, dilation;
    int first_upstream, num_upstream;
    const void *depthwise, *pointwise;    // [C, 1, K, K] and [C, C, 1, 1]
    void *y;                              // its result before batch normalisation
    void *mean, *variance;                // of y over the batch [C], or null if they are not wanted
    const void *centre, *slope, *offset;  // dy = upstream + slope * (y - centre) + offset, each [C], or null
    void *d_depthwise, *d_pointwise;      // gradients, or null
};
struct Group {  // items that share an input
    const void *x;
    const void *scale, *shift;  // each [C]: the input is ReLU(scale * x + shift); if null, it is ReLU(x), and pools read x
    int first_item, num_items;
    void *dx;            // the gradient with respect to x or, if scale and shift are given, to scale * x + shift
    const void *centre;  // [C]; if scale and shift are given:
    void *sum, *dot;     // the sums of dx and of dx * (x - centre) [C]
};
struct Projection {  // ReLU, then a 1x1 convolution for each tap, on the pixels (s*i + tap, s*j + tap)
    const void *x;
    int in_channels, taps;   // 1 or 2
    int first_channels;      // the first tap's number of output channels; the second tap has the others
    const void *weights[2];  // [output channels of the tap, in_channels]
    void *d_weights[2];      // gradients, or null
    void *dx;
};
struct Term {  // one term of a target's sum: sample[n] * (scale[c] * (y - centre[c]) + shift[c])
    const void *y;
    const void *scale, *centre, *shift;  // [C]; centre and shift may be null
    const void *sample;                  // [N], or null
    int target;
    void *sum, *dot;  // [C], of the target's gradient g: the sums of sample * g and of sample * g * (y - centre)
};
