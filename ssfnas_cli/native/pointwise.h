// Pointwise convolution: out[o-block][p] = sum over k of in[k][p] * matrix[k][o-block], for `pixels` pixels.
#pragma once

#include "vectors.h"

namespace {

template <class T, int P, int O>
void pointwise_pixels(const T *in, long in_block, const Vec<T> *matrix, int blocks, int channels, Vec<T> *out, long out_block) {
    Vec<T> sums[P][O] = {};
    for (int k = 0; k < channels; ++k) {
        const T *values = in + (k / LANES<T>) * in_block + k % LANES<T>;
        const Vec<T> *row = matrix + long(k) * blocks;
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) {
            const Vec<T> weight = row[o];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[p][o] += values[p * LANES<T>] * weight;
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) out[o * out_block + p] = sums[p][o];
}

template <class T>
void pointwise(const Vec<T> *in, long in_block, const Vec<T> *matrix, int blocks, int channels, long pixels, Vec<T> *out, long out_block) {
    for (int o = 0; o < blocks; o += 2) {
        const bool two = o + 2 <= blocks;
        long p = 0;
        for (; p < pixels; p += p + PIXELS <= pixels ? PIXELS : 1) {
            const T *from = reinterpret_cast<const T *>(in + p);
            const long step = in_block * LANES<T>;
            Vec<T> *to = out + o * out_block + p;
            const bool whole = p + PIXELS <= pixels;
            if (two && whole) pointwise_pixels<T, PIXELS, 2>(from, step, matrix + o, blocks, channels, to, out_block);
            else if (two) pointwise_pixels<T, 1, 2>(from, step, matrix + o, blocks, channels, to, out_block);
            else if (whole) pointwise_pixels<T, PIXELS, 1>(from, step, matrix + o, blocks, channels, to, out_block);
            else pointwise_pixels<T, 1, 1>(from, step, matrix + o, blocks, channels, to, out_block);
        }
    }
}

// dm[k][o-block] += sum over pixels of t[k][p] * dy[o-block][p]
template <class T, int O>
void pointwise_weights_tile(const Vec<T> *t, long t_block, const Vec<T> *dy, long dy_block, int k, int blocks, long pixels, Vec<T> *dm) {
    constexpr int ROWS = LANES<T> < 8 ? LANES<T> : 8;
    constexpr long RUN = 64;  // so many pixels are summed at a time, because long sums in float lose digits
    const T *values = reinterpret_cast<const T *>(t + (k / LANES<T>) * t_block) + k % LANES<T>;
    for (long begin = 0; begin < pixels; begin += RUN) {
        Vec<T> sums[ROWS][O] = {};
        for (long p = begin; p < std::min(pixels, begin + RUN); ++p) {
#pragma GCC unroll 8
            for (int o = 0; o < O; ++o) {
                const Vec<T> d = dy[o * dy_block + p];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) sums[r][o] += values[p * LANES<T> + r] * d;
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int o = 0; o < O; ++o) dm[long(k + r) * blocks + o] += sums[r][o];
    }
}

// The same for `rows` values of k, which is a multiple of the lanes.
template <class T>
void pointwise_weights(const Vec<T> *t, long t_block, int rows, const Vec<T> *dy, long dy_block, int blocks, long pixels, Vec<T> *dm) {
    constexpr int ROWS = LANES<T> < 8 ? LANES<T> : 8;
    for (int k = 0; k < rows; k += ROWS)
        for (int o = 0; o < blocks; o += 2) {
            const Vec<T> *d = dy + o * dy_block;
            if (o + 2 <= blocks) pointwise_weights_tile<T, 2>(t, t_block, d, dy_block, k, blocks, pixels, dm + o);
            else pointwise_weights_tile<T, 1>(t, t_block, d, dy_block, k, blocks, pixels, dm + o);
        }
}

}  // namespace
