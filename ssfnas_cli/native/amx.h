// Products of matrices by AMX, in the library for maps of bf16 on processors that have it: a tile instruction multiplies 16
// pixels by 16 output channels over 32 input channels, sixteen times as many multiply-adds in a cycle as a vector of
// floats. Factors are rounded to bf16, sums are float.
//
// The blocks of vectors.h are what a tile of sums is: rows are pixels, columns are a block's lanes. A tile of the other
// factor has two blocks' lanes of a pixel as its row.
#pragma once

#include "bf16_factors.h"

#if USE_BF16_FACTORS && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define USE_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define USE_AMX 0
#endif

namespace {

constexpr int SIDE = 16;  // rows of a tile, and floats of its rows

// The processor's tiles, all of 16 rows of 64 bytes, within a scope of one thread. torch may use them in between.
class Tiles {
public:
    Tiles() {
#if USE_AMX
        if (!usable()) return;
        alignas(64) struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
        } configuration;
        _tile_loadconfig(&configuration);
#endif
    }
    ~Tiles() {
#if USE_AMX
        if (usable()) _tile_release();
#endif
    }
    Tiles(const Tiles &) = delete;

    // Whether the system lets this process use them.
    static bool usable() {
#if USE_AMX
        static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, the tiles' data
        return permitted;
#else
        return false;
#endif
    }
};

#if USE_AMX

inline int num_tiles(int channels) { return (channels + 2 * SIDE - 1) / (2 * SIDE); }  // of input channels

// The tiles of a matrix [channels][blocks of output channels]: for each tile of input channels and each block, the row of
// two channels side by side for every output channel.
inline void pack_tiles(const Vec<float> *matrix, int channels, int blocks, Vec<float> *tiles) {
    auto *to = reinterpret_cast<bf16 *>(tiles);
    for (int tile = 0; tile < num_tiles(channels); ++tile)
        for (int block = 0; block < blocks; ++block)
            for (int row = 0; row < SIDE; ++row, to += 2 * SIDE)
                for (int half = 0; half < 2; ++half) {
                    const int channel = 2 * (tile * SIDE + row) + half;
                    const Vec<float> weights = channel < channels ? matrix[long(channel) * blocks + block] : Vec<float>{};
                    bf16 rounded[SIDE];
                    store<float>(rounded, weights, SIDE);
                    for (int lane = 0; lane < SIDE; ++lane) to[2 * lane + half] = rounded[lane];
                }
}

// Two vectors in a row of bf16: the first one's values, then the second one's.
inline __m512i joined(Vec<float> first, Vec<float> second) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// The sums of M tiles of pixels by N of output channels, over `depth` tiles of input channels, to `out`.
template <int M, int N>
void multiply(const __m512i *pixels, const Vec<float> *tiles, int depth, int blocks, Vec<float> *out, long out_block) {
    constexpr int BYTES = VECTOR_BYTES;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < depth; ++k, pixels += 2 * SIDE, tiles += long(blocks) * SIDE) {
        _tile_loadd(4, pixels, BYTES);
        _tile_loadd(6, tiles, BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N == 2) {
            _tile_loadd(7, tiles + SIDE, BYTES);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (M == 2) {
            _tile_loadd(5, pixels + SIDE, BYTES);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (N == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, BYTES);
    if constexpr (N == 2) _tile_stored(1, out + out_block, BYTES);
    if constexpr (M == 2) _tile_stored(2, out + SIDE, BYTES);
    if constexpr (M == 2 && N == 2) _tile_stored(3, out + out_block + SIDE, BYTES);
}

// out[o-block][p] = sum over k of in[k][p] * matrix[k][o-block], for a matrix that has been through `pack_tiles`.
inline void pointwise_tiles(const Vec<float> *in, long in_block, const Vec<float> *tiles, int channels, int blocks, long pixels, Vec<float> *out, long out_block) {
    const int depth = num_tiles(channels), in_blocks = (channels + SIDE - 1) / SIDE;
    __m512i *const rows = room_for(long(depth) * 2 * SIDE + 4 * SIDE);
    auto *const edge = reinterpret_cast<Vec<float> *>(rows + long(depth) * 2 * SIDE);  // for tiles that reach beyond the pixels
    for (long begin = 0; begin < pixels; begin += 2 * SIDE) {
        const int count = int(std::min<long>(pixels - begin, 2 * SIDE)), high = count > SIDE ? 2 : 1;
        for (int k = 0; k < depth; ++k) {
            const Vec<float> *first = in + 2 * k * in_block + begin, *second = first + in_block;
            const bool both = 2 * k + 1 < in_blocks;
            for (int p = 0; p < high * SIDE; ++p)
                rows[2 * k * SIDE + p] = p < count ? joined(first[p], both ? second[p] : Vec<float>{}) : __m512i{};
        }
        const bool beyond = count < high * SIDE;
        for (int o = 0, wide; o < blocks; o += wide) {
            wide = std::min(2, blocks - o);
            const auto run = high == 2 ? wide == 2 ? multiply<2, 2> : multiply<2, 1> : wide == 2 ? multiply<1, 2> : multiply<1, 1>;
            Vec<float> *to = out + o * out_block + begin;
            run(rows, tiles + long(o) * SIDE, depth, blocks, beyond ? edge : to, beyond ? 2 * SIDE : out_block);
            for (int block = 0; beyond && block < wide; ++block)
                std::copy_n(edge + block * 2 * SIDE, count, to + block * out_block);
        }
    }
}

inline void transpose(__m512i *rows) {  // 16 rows of 16 pairs
    __m512i pairs[SIDE];
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    __m512i fours[SIDE];
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; i += 4)
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
            fours[i + 2 * k] = _mm512_unpacklo_epi64(pairs[i + k], pairs[i + k + 2]);
            fours[i + 2 * k + 1] = _mm512_unpackhi_epi64(pairs[i + k], pairs[i + k + 2]);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512i even = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0x88), odd = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0xdd);
        const __m512i later_even = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0x88);
        const __m512i later_odd = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(even, later_even, 0x88);
        rows[4 + i] = _mm512_shuffle_i32x4(odd, later_odd, 0x88);
        rows[8 + i] = _mm512_shuffle_i32x4(even, later_even, 0xdd);
        rows[12 + i] = _mm512_shuffle_i32x4(odd, later_odd, 0xdd);
    }
}

// dm[k][o-block] += sum over pixels of t[k][p] * dy[o-block][p]; dm has the rows of whole blocks of k.
inline void weights_tiles(const Vec<float> *t, long t_block, int channels, const Vec<float> *dy, long dy_block, int blocks, long pixels, Vec<float> *dm) {
    const int num = int((pixels + 2 * SIDE - 1) / (2 * SIDE)), in_blocks = (channels + SIDE - 1) / SIDE;
    const long each = long(num) * SIDE, line = long(blocks) * VECTOR_BYTES;
    __m512i *const gradients = room_for((blocks + 1) * each), *const inputs = gradients + blocks * each;
    for (int o = 0; o < blocks; ++o) pair_pixels(dy + o * dy_block, pixels, each, gradients + o * each);
    for (int k = 0; k < in_blocks; ++k) {
        pair_pixels(t + k * t_block, pixels, each, inputs);
        for (int tile = 0; tile < num; ++tile) transpose(inputs + tile * SIDE);
        for (int o = 0; o < blocks; ++o) {
            Vec<float> *sums = dm + long(k) * SIDE * blocks + o;
            _tile_loadd(0, sums, line);
            for (int tile = 0; tile < num; ++tile) {
                _tile_loadd(4, inputs + tile * SIDE, VECTOR_BYTES);
                _tile_loadd(6, gradients + o * each + tile * SIDE, VECTOR_BYTES);
                _tile_dpbf16ps(0, 4, 6);
            }
            _tile_stored(0, sums, line);
        }
    }
}

#endif

}  // namespace
