// What Python passes; the same structures stand in cells.py. Pointers are to T, but mean, variance, sum and dot, which
// are sums over the batch, are double.
#pragma once

enum Kind : int { SEPARABLE = 0, MAX_POOL = 1, AVG_POOL = 2, IDENTITY = 3 };

struct Shape {
    int num, height, width, channels, stride, threads;
};
struct Upstream {  // a gradient that arrives at an operation's result: scale[c] * sample[n] * g
    const void *g;       // blocked or NHWC, of the output's size
    const void *scale;   // [C]
    const void *sample;  // [N], or null
    int blocked;
};
struct Item {  // one operation on a group's input
    int kind, kernel, dilation;
    int first_upstream, num_upstream;
    const void *depthwise, *pointwise;    // [C, 1, K, K] and [C, C, 1, 1]
    void *y;                              // its result before batch normalisation, blocked
    void *mean, *variance;                // of y over the batch [C]; null: not wanted
    const void *centre, *slope, *offset;  // dy = upstream + slope * (y - centre) + offset, each [C], or null
    void *d_depthwise, *d_pointwise;      // gradients, or null
};
struct Group {  // operations that share an input
    const void *x;
    const void *scale, *shift;  // the input is ReLU(scale * x + shift), each [C]; null: ReLU(x), pools see x itself
    int first_item, num_items;
    int blocked;   // whether x and dx are
    void *dx;      // gradient by x, or by scale * x + shift where those are given
    const void *centre;  // then also: sum of dx, and of dx * (x - centre) [C]
    void *sum, *dot;
};
struct Projection {  // ReLU and 1x1 convolutions of pixels (s*i + tap, s*j + tap), each making channels of its own
    const void *x;           // NHWC
    int in_channels, taps;   // 1 or 2
    int first_channels;      // how many the first makes; the second makes the rest
    const void *weights[2];  // [made, in_channels]
    void *d_weights[2];      // gradients, or null
    void *dx;
};
struct Term {  // one summand of a node: sample[n] * (scale[c] * (y - centre[c]) + shift[c])
    const void *y;
    const void *scale, *centre, *shift;  // [C]; centre and shift may be null
    const void *sample;                  // [N], or null
    int target, blocked;
    void *sum, *dot;  // of the target's gradient g: sum sample * g and sum sample * g * (y - centre) [C]
};
