// Depthwise convolution and its gradients, for one block of channels of one image.
#pragma once

#include "vectors.h"

namespace {

// t[i, j] = sum over taps of u[i*S + a*D, j*S + b*D] * w[a, b]; u points at tap (0, 0) of output (0, 0).
template <class T, int K, int D, int S, int P>
void depthwise_pixels(const Vec<T> *u, int pitch, const Vec<T> *w, Vec<T> *t) {
    Vec<T> sums[P] = {};
#pragma GCC unroll 8
    for (int a = 0; a < K; ++a) {
        const Vec<T> *row = u + a * D * pitch;
#pragma GCC unroll 8
        for (int b = 0; b < K; ++b) {
            const Vec<T> weight = w[a * K + b];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[p] += row[p * S + b * D] * weight;
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) t[p] = sums[p];
}

template <class T, int K, int D, int S>
void depthwise(const Vec<T> *u, int pitch, int height, int width, const Vec<T> *w, Vec<T> *t) {
    for (int i = 0; i < height; ++i, t += width) {
        const Vec<T> *row = u + i * S * pitch;
        int j = 0;
        for (; j + PIXELS <= width; j += PIXELS) depthwise_pixels<T, K, D, S, PIXELS>(row + j * S, pitch, w, t + j);
        for (; j < width; ++j) depthwise_pixels<T, K, D, S, 1>(row + j * S, pitch, w, t + j);
    }
}

// The data gradient: g[y, x] += sum of dt[i, j] * w[a, b] over the taps with y = i*S + a*D - pad, x = j*S + b*D - pad.
// It gathers: at the columns x = S*m + Q only every S-th tap meets an output. dt has a border of zeros.
template <class T, int K, int D, int S, int Q, int P>
void transposed_pixels(const Vec<T> *dt, int pitch, int y, const Vec<T> *w, Vec<T> *g) {
    constexpr int PAD = D * (K - 1) / 2;
    Vec<T> sums[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p] = g[p * S];
#pragma GCC unroll 8
    for (int a = 0; a < K; ++a) {
        const int line = y + PAD - a * D;
        if (S == 2 && (line & 1)) continue;
        const Vec<T> *row = dt + (S == 2 ? line >> 1 : line) * pitch;
#pragma GCC unroll 8
        for (int b = 0; b < K; ++b) {
            if ((Q + PAD - b * D) % S != 0) continue;
            const int column = (Q + PAD - b * D) / S;
            const Vec<T> weight = w[a * K + b];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[p] += row[p + column] * weight;
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) g[p * S] = sums[p];
}

template <class T, int K, int D, int S, int Q>
void transposed_columns(const Vec<T> *dt, int pitch, int y, int width, const Vec<T> *w, Vec<T> *g) {
    const int count = (width - Q + S - 1) / S;
    int m = 0;
    for (; m + PIXELS <= count; m += PIXELS) transposed_pixels<T, K, D, S, Q, PIXELS>(dt + m, pitch, y, w, g + m * S + Q);
    for (; m < count; ++m) transposed_pixels<T, K, D, S, Q, 1>(dt + m, pitch, y, w, g + m * S + Q);
}

// The same in the rows [begin, end) of the image g.
template <class T, int K, int D, int S>
void depthwise_transposed(const Vec<T> *dt, int pitch, int begin, int end, int width, const Vec<T> *w, Vec<T> *g) {
    g += long(begin) * width;
    for (int y = begin; y < end; ++y, g += width) {
        transposed_columns<T, K, D, S, 0>(dt, pitch, y, width, w, g);
        if (S == 2 && D == 1) transposed_columns<T, K, D, S, S - 1>(dt, pitch, y, width, w, g);
    }
}

// The weight gradient: dw[a, b] += sum over pixels of u[i*S + a*D, j*S + b*D] * dt[i, j].
template <class T, int K, int D, int S>
void depthwise_weights(const Vec<T> *u, int pitch, const Vec<T> *dt, int dt_pitch, int height, int width, Vec<T> *dw) {
    constexpr int ROWS = VECTOR_BYTES == 64 && K <= 5 ? K : K <= 3 ? K : 1;  // as many rows of taps as the registers hold
    for (int a = 0; a < K; a += ROWS) {
        for (int i = 0; i < height; ++i) {  // each row has sums of its own, because long sums in float lose digits
            Vec<T> sums[ROWS][K] = {};
            const Vec<T> *from = u + (i * S + a * D) * pitch;
            for (int j = 0; j < width; ++j) {
                const Vec<T> d = dt[i * dt_pitch + j];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                    for (int b = 0; b < K; ++b) sums[r][b] += d * from[r * D * pitch + j * S + b * D];
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                for (int b = 0; b < K; ++b) dw[(a + r) * K + b] += sums[r][b];
        }
    }
}

template <class T>
struct Depthwise {  // the three functions for one kernel, dilation and stride
    decltype(&depthwise<T, 3, 1, 1>) forward;
    decltype(&depthwise_transposed<T, 3, 1, 1>) transposed;
    decltype(&depthwise_weights<T, 3, 1, 1>) weights;

    template <int K, int D, int S>
    static Depthwise of() {
        return {depthwise<T, K, D, S>, depthwise_transposed<T, K, D, S>, depthwise_weights<T, K, D, S>};
    }
    static Depthwise find(int kernel, int dilation, int stride) {
        if (kernel == 3 && dilation == 1) return stride == 1 ? of<3, 1, 1>() : of<3, 1, 2>();
        if (kernel == 5 && dilation == 1) return stride == 1 ? of<5, 1, 1>() : of<5, 1, 2>();
        if (kernel == 7 && dilation == 1) return stride == 1 ? of<7, 1, 1>() : of<7, 1, 2>();
        if (kernel == 3) return stride == 1 ? of<3, 2, 1>() : of<3, 2, 2>();
        return stride == 1 ? of<5, 2, 1>() : of<5, 2, 2>();
    }
};

}  // namespace
