// Sums over an image and over the batch.
#pragma once

#include "vectors.h"

namespace {

// The sum of term(p) over some pixels. Four sums are kept in registers, so that no addition waits for the one before.
template <class T, class Term>
Vec<T> sum_over(long pixels, const Term &term) {
    Vec<T> sums[4] = {};
    long p = 0;
    for (; p + 4 <= pixels; p += 4)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sums[k] += term(p + k);
    for (; p < pixels; ++p) sums[0] += term(p);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// For each channel of an image, the mean and the sum of squared distances from it, of the tiles that were added so far
// (Chan et al., 1979). Each tile is added while it lies in the first-level cache.
template <class T>
void add_to_statistics(const Vec<T> *y, long tile, int blocks, long pixels, long before, T *mean, T *squares) {
    for (int block = 0; block < blocks; ++block, y += tile) {
        const Vec<T> m = sum_over<T>(pixels, [y](long p) { return y[p]; }) / T(pixels);
        const Vec<T> around = sum_over<T>(pixels, [y, m](long p) { return (y[p] - m) * (y[p] - m); });
        Vec<T> &all = reinterpret_cast<Vec<T> *>(mean)[block], &distances = reinterpret_cast<Vec<T> *>(squares)[block];
        const Vec<T> away = m - all;
        const T share = T(pixels) / T(before + pixels);
        all += away * share;
        distances += around + away * away * (T(before) * share);
    }
}

// The mean and biased variance of the batch, combined from the images' statistics in the same way.
template <class T>
void batch_statistics(const T *means, const T *squares, const Layout<T> &l, long pixels, double *mean, double *variance) {
    for (int c = 0; c < l.channels; ++c) {
        double m = 0, v = 0;
        for (int n = 0; n < l.num; ++n) m += means[long(n) * l.padded() + c];
        m /= l.num;
        for (int n = 0; n < l.num; ++n) {
            const double away = means[long(n) * l.padded() + c] - m;
            v += squares[long(n) * l.padded() + c] + pixels * away * away;
        }
        mean[c] = m;
        variance[c] = v / (double(l.num) * pixels);
    }
}

// Add to sum and dot the sums of factor * g and of factor * g * (y - centre) over some pixels of one block. Runs of
// pixels are summed in T, the runs in double. `next` is what will be read next.
template <class T, class Gradient>
void add_products(const Gradient &g, const Pixels<T> &y, const Pixels<T> &next, Vec<T> centre, long pixels, double factor, double *sum,
                  double *dot) {
    constexpr long RUN = 32;
    using Wide = typename WideOf<T>::type;
    Wide total = {}, product = {};
    for (long begin = 0; begin < pixels; begin += RUN) {
        const long end = std::min(pixels, begin + RUN);
        Vec<T> sums[4] = {}, dots[4] = {};
        long p = begin;
        for (; p + 4 <= end; p += 4)
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                const Vec<T> value = g[p + k];
                next.fetch(p + k);
                sums[k] += value;
                dots[k] += value * (y[p + k] - centre);
            }
        for (; p < end; ++p) sums[0] += g[p], dots[0] += g[p] * (y[p] - centre);
        total += __builtin_convertvector((sums[0] + sums[1]) + (sums[2] + sums[3]), Wide);
        product += __builtin_convertvector((dots[0] + dots[1]) + (dots[2] + dots[3]), Wide);
    }
    for (int lane = 0; lane < LANES<T>; ++lane) sum[lane] += total[lane] * factor, dot[lane] += product[lane] * factor;
}

template <class T>
void add_images(const double *parts, const Layout<T> &l, void *total) {  // [N][padded] -> [C]
    for (int c = 0; c < l.channels; ++c) {
        double sum = 0;
        for (int n = 0; n < l.num; ++n) sum += parts[long(n) * l.padded() + c];
        static_cast<double *>(total)[c] = sum;
    }
}

}  // namespace
