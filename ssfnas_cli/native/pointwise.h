// Pointwise convolution and its weight gradient, as products of matrices in registers.
//
//   - A tile of sums stays in registers: PIXELS pixels times COLUMNS blocks of output channels (8 x 3 with AVX-512). For
//     24 multiply-adds it reads 3 vectors and 8 numbers, so the arithmetic is the limit.
//   - DEPTH input channels at a time, whose weights stay in the first-level cache.
//   - Widths of 36 or 24 channels do not fill the last vector. Where at most half of it is filled, the free lanes take
//     further input channels (`pointwise_rest`), and the weight gradient makes vectors of the input channels.
//   - With maps of bf16, where the processor multiplies them, bf16_products.h does all of it.
#pragma once

#include "bf16_products.h"
#include "vectors.h"

namespace {

constexpr int DEPTH = 96;                            // input channels at a time
template <class T>
constexpr int ROWS = LANES<T> < 4 ? LANES<T> : 4;    // input channels whose weight gradients the registers hold

// How many lanes are kept for the channels of the last block, if the other lanes can be put to use; else 0.
template <class T>
int rest_lanes(int channels) {
    const int used = channels % LANES<T>;
    if (VECTOR_BYTES < 64 || sizeof(T) != 4 || used == 0 || used > 8 || BF16_PRODUCTS) return 0;
    return used > 4 ? 8 : 4;
}

inline int round_up(int count, int step) { return (count + step - 1) / step * step; }

template <class T>
int num_blocks(int channels) {
    return round_up(channels, LANES<T>) / LANES<T>;
}

template <class T, int P, int O>
void pointwise_pixels(const T *in, long in_block, const Vec<T> *matrix, int blocks, int begin, int end, Vec<T> *out, long out_block) {
    Vec<T> sums[P][O] = {};
    if (begin > 0)
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[p][o] = out[o * out_block + p];
    for (int k = begin; k < end; ++k) {
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

template <class T, int O>
void pointwise_columns(const Vec<T> *in, long in_block, const Vec<T> *matrix, int blocks, int channels, long pixels, Vec<T> *out, long out_block) {
    const T *from = reinterpret_cast<const T *>(in);
    const long step = in_block * LANES<T>;
    for (int begin = 0; begin < channels; begin += DEPTH) {
        const int end = std::min(channels, begin + DEPTH);
        long p = 0;
        for (; p + PIXELS <= pixels; p += PIXELS)
            pointwise_pixels<T, PIXELS, O>(from + p * LANES<T>, step, matrix, blocks, begin, end, out + p, out_block);
        for (; p < pixels; ++p)
            pointwise_pixels<T, 1, O>(from + p * LANES<T>, step, matrix, blocks, begin, end, out + p, out_block);
    }
}

#if defined(__AVX512F__)
// The last block of output channels, of which R lanes are used. A vector of sums holds, for each of R output channels, the
// sums over every (16 / R)th input channel, which are added at the end.
template <int R>
struct Rest {
    static constexpr int STEP = 16 / R;  // input channels that one vector takes

    static Vec<float> spread(const float *values) {  // STEP values, R times
        if constexpr (R == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(values));
        else return (Vec<float>)_mm512_set1_pd(*reinterpret_cast<const double *>(values));
    }
    static Vec<float> gather(Vec<float> sums) {  // the sum of each STEP lanes, in the first R lanes
        Vec<float> sum = sums + (Vec<float>)_mm512_permute_ps(sums, 0xB1);
        if constexpr (R == 4) sum = sum + (Vec<float>)_mm512_permute_ps(sum, 0x4E);
        const __m512i lanes = _mm512_setr_epi32(0, STEP, 2 * STEP, 3 * STEP, 4 * STEP, 5 * STEP, 6 * STEP, 7 * STEP,  //
                                                0, 0, 0, 0, 0, 0, 0, 0);
        return _mm512_maskz_permutexvar_ps((1u << R) - 1, lanes, sum);
    }
    template <int P>
    static void pixels(const float *in, long in_block, const Vec<float> *rest, int channels, Vec<float> *out) {
        Vec<float> sums[P] = {};
        for (int k = 0; k < channels; k += STEP) {
            const float *values = in + (k / 16) * in_block + k % 16;
            const Vec<float> weight = *rest++;
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[p] += spread(values + p * 16) * weight;
        }
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) out[p] = gather(sums[p]);
    }
    static void all(const Vec<float> *in, long in_block, const Vec<float> *rest, int channels, long count, Vec<float> *out) {
        const float *from = reinterpret_cast<const float *>(in);
        long p = 0;
        for (; p + PIXELS <= count; p += PIXELS) pixels<PIXELS>(from + p * 16, in_block * 16, rest, channels, out + p);
        for (; p < count; ++p) pixels<1>(from + p * 16, in_block * 16, rest, channels, out + p);
    }
};
#endif

template <class T>
void pointwise_rest([[maybe_unused]] int lanes, [[maybe_unused]] const Vec<T> *in, [[maybe_unused]] long in_block,
                    [[maybe_unused]] const Vec<T> *rest, [[maybe_unused]] int channels, [[maybe_unused]] long pixels,
                    [[maybe_unused]] Vec<T> *out) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) (lanes == 4 ? Rest<4>::all : Rest<8>::all)(in, in_block, rest, channels, pixels, out);
#endif
}

// After the rows of a matrix [channels][blocks] follow the weights of `pointwise_rest`, in its order, or what bf16_products.h packs.
template <class T>
void pack_rest(Vec<T> *matrix, int channels, int out_channels) {
    const int lanes = rest_lanes<T>(out_channels), blocks = num_blocks<T>(out_channels);
    if (BF16_PRODUCTS) return pack_factors(matrix, channels, blocks, matrix + long(channels) * blocks);
    if (lanes == 0) return;
    const int step = LANES<T> / lanes;
    T *rest = reinterpret_cast<T *>(matrix + long(channels) * blocks);
    for (int k = 0; k < round_up(channels, step); ++k)
        for (int o = 0; o < lanes; ++o)
            rest[k / step * LANES<T> + o * step + k % step] = k < channels ? matrix[long(k + 1) * blocks - 1][o] : T(0);
}

// How many vectors a matrix takes with what `pack_rest` puts behind its rows.
template <class T>
long matrix_size(int channels, int out_channels) {
    const long blocks = num_blocks<T>(out_channels);
    return channels * blocks + (BF16_PRODUCTS ? factors_size(channels, int(blocks)) : channels);
}

// out[o-block][p] = sum over k of in[k][p] * matrix[k][o-block]; the matrix has been through `pack_rest`. The lanes of `in`
// beyond the channels are 0.
template <class T>
void pointwise(const Vec<T> *in, long in_block, const Vec<T> *matrix, int channels, int out_channels, long pixels, Vec<T> *out, long out_block) {
    const int blocks = num_blocks<T>(out_channels), rest = rest_lanes<T>(out_channels), whole = blocks - (rest != 0);
    if (BF16_PRODUCTS)
        return pointwise_bf16(in, in_block, matrix + long(channels) * blocks, channels, blocks, pixels, out, out_block);
    for (int o = 0, n; o < whole; o += n) {
        n = columns(whole - o);
        const auto run = n == 1 ? pointwise_columns<T, 1> : n == 2 ? pointwise_columns<T, 2> : pointwise_columns<T, COLUMNS>;
        run(in, in_block, matrix + o, blocks, channels, pixels, out + o * out_block, out_block);
    }
    if (rest != 0) pointwise_rest<T>(rest, in, in_block, matrix + long(channels) * blocks, channels, pixels, out + whole * out_block);
}

// dm[k][o-block] += sum over pixels of t[k][p] * dy[o-block][p], for ROWS values of k from `k`.
template <class T, int O>
void pointwise_weights_tile(const Vec<T> *t, long t_block, const Vec<T> *dy, long dy_block, int k, int blocks, long pixels, Vec<T> *dm) {
    constexpr long RUN = 64;  // so many pixels are summed at a time, because long sums in float lose digits
    const T *values = reinterpret_cast<const T *>(t + (k / LANES<T>) * t_block) + k % LANES<T>;
    for (long begin = 0; begin < pixels; begin += RUN) {
        Vec<T> sums[ROWS<T>][O] = {};
        for (long p = begin; p < std::min(pixels, begin + RUN); ++p) {
#pragma GCC unroll 8
            for (int o = 0; o < O; ++o) {
                const Vec<T> d = dy[o * dy_block + p];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS<T>; ++r) sums[r][o] += values[p * LANES<T> + r] * d;
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS<T>; ++r)
#pragma GCC unroll 8
            for (int o = 0; o < O; ++o) dm[long(k + r) * blocks + o] += sums[r][o];
    }
}

// The same for `rows` values of k and the blocks [0, whole); dm has `blocks` of them, and a multiple of ROWS rows.
template <class T>
void pointwise_weights_rows(const Vec<T> *t, long t_block, int rows, const Vec<T> *dy, long dy_block, int whole, int blocks, long pixels, Vec<T> *dm) {
    for (int k = 0; k < rows; k += ROWS<T>)
        for (int o = 0, n; o < whole; o += n) {
            n = columns(whole - o);
            const auto run = n == 1   ? pointwise_weights_tile<T, 1>
                             : n == 2 ? pointwise_weights_tile<T, 2>
                                      : pointwise_weights_tile<T, COLUMNS>;
            run(t, t_block, dy + o * dy_block, dy_block, k, blocks, pixels, dm + o);
        }
}

// The sums of a weight gradient: rows [k][blocks] and, behind them, those of the rest of the output channels, [rest][k-blocks].
template <class T>
struct WeightGradient {
    int channels, out_channels;

    int blocks() const { return num_blocks<T>(out_channels); }
    int whole() const { return blocks() - (rest_lanes<T>(out_channels) != 0); }
    int in_blocks() const { return num_blocks<T>(channels); }
    long rows() const { return long(round_up(channels, BF16_PRODUCTS ? LANES<T> : ROWS<T>)) * blocks(); }
    long size() const { return rows() + long(rest_lanes<T>(out_channels)) * in_blocks(); }  // in vectors

    // Add the products of some pixels.
    void add(const Vec<T> *t, long t_block, const Vec<T> *dy, long dy_block, long pixels, Vec<T> *sums) const {
        if (BF16_PRODUCTS) return weights_bf16(t, t_block, channels, dy, dy_block, blocks(), pixels, sums);
        pointwise_weights_rows<T>(t, t_block, channels, dy, dy_block, whole(), blocks(), pixels, sums);
        const int rest = out_channels - whole() * LANES<T>;
        if (rest > 0 && whole() < blocks())
            pointwise_weights_rows<T>(dy + whole() * dy_block, dy_block, rest, t, t_block, in_blocks(), in_blocks(), pixels, sums + rows());
    }
    T at(const Vec<T> *sums, int k, int o) const {
        if (o / LANES<T> < whole()) return reinterpret_cast<const T *>(sums)[long(k) * blocks() * LANES<T> + o];
        return reinterpret_cast<const T *>(sums + rows())[long(o - whole() * LANES<T>) * in_blocks() * LANES<T> + k];
    }
};

// Add the chunks' sums, in order, to those of the first chunk.
template <class T>
void add_chunks(Vec<T> *sums, long size, int chunks) {
    for (int chunk = 1; chunk < chunks; ++chunk)
        for (long v = 0; v < size; ++v) sums[v] += sums[chunk * size + v];
}

}  // namespace
