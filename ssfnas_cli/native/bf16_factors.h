// Factors of products in bf16, in the library for maps of bf16: how they are rounded and laid out for the instructions
// that multiply them, those of AMX (amx.h) and those of AVX512-BF16 (dots.h).
#pragma once

#include "vectors.h"

#if defined(BF16_MAPS) && defined(__AVX512BF16__)
#define USE_BF16_FACTORS 1
#else
#define USE_BF16_FACTORS 0
#endif

namespace {

#if USE_BF16_FACTORS

// Two vectors in a row of bf16: a value of the first, one of the second, and so on.
inline __m512i alternating(Vec<float> first, Vec<float> second) {
    const auto widened = [](Vec<float> values) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)values)); };
    return _mm512_or_si512(widened(first), _mm512_slli_epi32(widened(second), 16));
}

// Memory of one thread for factors, kept from call to call.
inline __m512i *room_for(long rows) {
    static thread_local Arena factors;
    factors.reset(rows * VECTOR_BYTES);
    return reinterpret_cast<__m512i *>(factors.take<float>(rows));
}

// The pixels of a block in pairs, and beyond the pixels zeros: so many vectors, of which each has two pixels' channels.
inline void pair_pixels(const Vec<float> *values, long pixels, long num, __m512i *pairs) {
    for (long pair = 0; pair < num; ++pair) {
        const long p = 2 * pair;
        pairs[pair] = p >= pixels ? __m512i{} : alternating(values[p], p + 1 < pixels ? values[p + 1] : Vec<float>{});
    }
}

#endif

}  // namespace
