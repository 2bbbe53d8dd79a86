// Products of matrices whose factors are rounded to bf16 and whose sums are float, in the library for maps of bf16 on
// processors that multiply it: by AMX if the system permits it, else by AVX512-BF16.
#pragma once

#include "amx.h"
#include "dots.h"

namespace {

constexpr bool BF16_PRODUCTS = USE_BF16_FACTORS;

#if USE_BF16_FACTORS

// How many vectors `pack_factors` writes.
inline long factors_size(int channels, int blocks) { return long(channels / (2 * SIDE) + 1) * SIDE * blocks; }

// A matrix [channels][blocks of output channels] as `pointwise_bf16` reads it.
inline void pack_factors(const Vec<float> *matrix, int channels, int blocks, Vec<float> *packed) {
#if USE_AMX
    if (Tiles::usable()) return pack_tiles(matrix, channels, blocks, packed);
#endif
    pack_pairs(matrix, channels, blocks, packed);
}

// out[o-block][p] = sum over k of in[k][p] * matrix[k][o-block], for a packed matrix.
inline void pointwise_bf16(const Vec<float> *in, long in_block, const Vec<float> *packed, int channels, int blocks, long pixels, Vec<float> *out, long out_block) {
#if USE_AMX
    if (Tiles::usable()) return pointwise_tiles(in, in_block, packed, channels, blocks, pixels, out, out_block);
#endif
    pointwise_dots(in, in_block, packed, channels, blocks, pixels, out, out_block);
}

// dm[k][o-block] += sum over pixels of t[k][p] * dy[o-block][p]; dm has the rows of whole blocks of k.
inline void weights_bf16(const Vec<float> *t, long t_block, int channels, const Vec<float> *dy, long dy_block, int blocks, long pixels, Vec<float> *dm) {
#if USE_AMX
    if (Tiles::usable()) return weights_tiles(t, t_block, channels, dy, dy_block, blocks, pixels, dm);
#endif
    weights_dots(t, t_block, channels, dy, dy_block, blocks, pixels, dm);
}

#else
inline long factors_size(int, int) { return 0; }
template <class... Given>
void pack_factors(Given...) {}
template <class... Given>
void pointwise_bf16(Given...) {}
template <class... Given>
void weights_bf16(Given...) {}
#endif

}  // namespace
