// Products of matrices by AVX512-BF16, in the library for maps of bf16 on processors that have no AMX, or whose system does
// not permit it: an instruction multiplies two pairs of bf16 and adds both products to a float, twice as many multiply-adds
// as a vector of floats. The loops are those of pointwise.h, over pairs of input channels, or pairs of pixels, instead of
// single ones.
#pragma once

#include "bf16_factors.h"

namespace {

#if USE_BF16_FACTORS

constexpr int DOT_ROWS = 8;    // pixels, or input channels of a weight gradient, whose sums are held in registers at once
constexpr int DOT_DEPTH = 64;  // pairs at a time, whose weights stay in the first-level cache
constexpr int PAIRS = 8;       // pairs of channels in a block

inline int num_pairs(int channels) { return (channels + 1) / 2; }

// The rows of a matrix [channels][blocks] two by two: of each output channel both weights.
inline void pack_pairs(const Vec<float> *matrix, int channels, int blocks, Vec<float> *packed) {
    for (int k = 0; k < channels; k += 2)
        for (int o = 0; o < blocks; ++o) {
            const Vec<float> second = k + 1 < channels ? matrix[long(k + 1) * blocks + o] : Vec<float>{};
            *packed++ = (Vec<float>)alternating(matrix[long(k) * blocks + o], second);
        }
}

// The sum of each lane and of both products: those of a pair that all lanes share, and of a lane's own pair.
inline __m512 add_dots(__m512 sum, int32_t pair, __m512i pairs) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)pairs);
}

template <int P, int O>
void dot_pixels(const int32_t *in, long in_block, const __m512i *matrix, int blocks, int begin, int end, Vec<float> *out, long out_block) {
    __m512 sums[P][O] = {};
    if (begin > 0)
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[p][o] = (__m512)out[o * out_block + p];
    for (int k = begin; k < end; ++k) {
        const int32_t *values = in + (k / PAIRS) * in_block + k % PAIRS;
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) {
            const __m512i weights = matrix[long(k) * blocks + o];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[p][o] = add_dots(sums[p][o], values[p * PAIRS], weights);
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) out[o * out_block + p] = (Vec<float>)sums[p][o];
}

template <int O>
void dot_columns(const int32_t *in, long in_block, const __m512i *matrix, int blocks, int pairs, long pixels, Vec<float> *out, long out_block) {
    for (int begin = 0; begin < pairs; begin += DOT_DEPTH) {
        const int end = std::min(pairs, begin + DOT_DEPTH);
        long p = 0;
        for (; p + DOT_ROWS <= pixels; p += DOT_ROWS)
            dot_pixels<DOT_ROWS, O>(in + p * PAIRS, in_block, matrix, blocks, begin, end, out + p, out_block);
        for (; p < pixels; ++p)
            dot_pixels<1, O>(in + p * PAIRS, in_block, matrix, blocks, begin, end, out + p, out_block);
    }
}

// out[o-block][p] = sum over k of in[k][p] * matrix[k][o-block], for a matrix that has been through `pack_pairs`.
inline void pointwise_dots(const Vec<float> *in, long in_block, const Vec<float> *packed, int channels, int blocks, long pixels, Vec<float> *out, long out_block) {
    const int in_blocks = (channels + 2 * PAIRS - 1) / (2 * PAIRS);
    auto *const rounded = reinterpret_cast<__m256i *>(room_for((in_blocks * pixels + 1) / 2));
    for (int block = 0; block < in_blocks; ++block)
        for (long p = 0; p < pixels; ++p)
            rounded[block * pixels + p] = (__m256i)_mm512_cvtneps_pbh((__m512)in[block * in_block + p]);
    const auto *pairs = reinterpret_cast<const int32_t *>(rounded);
    const auto *matrix = reinterpret_cast<const __m512i *>(packed);
    for (int o = 0, wide; o < blocks; o += wide) {
        wide = columns(blocks - o);
        const auto run = wide == 1 ? dot_columns<1> : wide == 2 ? dot_columns<2> : dot_columns<COLUMNS>;
        run(pairs, pixels * PAIRS, matrix + o, blocks, num_pairs(channels), pixels, out + o * out_block, out_block);
    }
}

// dm[k][o-block] += sum over pairs of pixels, for DOT_ROWS values of k.
template <int O>
void weights_dots_tile(const int32_t *inputs, const __m512i *gradients, long num, int blocks, Vec<float> *dm) {
    __m512 sums[DOT_ROWS][O] = {};
    for (long pair = 0; pair < num; ++pair, inputs += 2 * PAIRS) {
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) {
            const __m512i gradient = gradients[o * num + pair];
#pragma GCC unroll 8
            for (int r = 0; r < DOT_ROWS; ++r) sums[r][o] = add_dots(sums[r][o], inputs[r], gradient);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < DOT_ROWS; ++r)
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) dm[long(r) * blocks + o] += (Vec<float>)sums[r][o];
}

// dm[k][o-block] += sum over pixels of t[k][p] * dy[o-block][p]; dm has the rows of whole blocks of k.
inline void weights_dots(const Vec<float> *t, long t_block, int channels, const Vec<float> *dy, long dy_block, int blocks, long pixels, Vec<float> *dm) {
    const long num = (pixels + 1) / 2;
    __m512i *const gradients = room_for((blocks + 1) * num), *const inputs = gradients + blocks * num;
    for (int o = 0; o < blocks; ++o) pair_pixels(dy + o * dy_block, pixels, num, gradients + o * num);
    for (int k = 0; k < channels; k += DOT_ROWS, dm += long(DOT_ROWS) * blocks) {
        if (k % (2 * PAIRS) == 0) pair_pixels(t + k / (2 * PAIRS) * t_block, pixels, num, inputs);
        const auto *of_rows = reinterpret_cast<const int32_t *>(inputs) + k % (2 * PAIRS);
        for (int o = 0, wide; o < blocks; o += wide) {
            wide = columns(blocks - o);
            const auto run = wide == 1 ? weights_dots_tile<1> : wide == 2 ? weights_dots_tile<2> : weights_dots_tile<COLUMNS>;
            run(of_rows, gradients + o * num, num, blocks, dm + o);
        }
    }
}

#endif

}  // namespace
