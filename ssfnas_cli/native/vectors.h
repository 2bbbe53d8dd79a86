// Vectors of channels, the layouts of maps, and the memory that work on one image needs.
//
// Tensors and maps are NHWC ("channels last") in memory, without padding. What is worked on is in blocks,
// [blocks][pixels][lanes]: as many channels as a vector has lanes, the last block filled up with zeros. Maps are cut
// into blocks as they are read and joined as they are written, in tiles that stay in the first-level cache. With
// AVX-512 a block that is not full is read and written with a mask; copying it lane by lane took 4 times as long.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "structures.h"

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int NUM_CHUNKS = 16;
constexpr int PIXELS = 8;  // pixels whose sums are held in registers at once
constexpr int COLUMNS = VECTOR_BYTES == 64 ? 3 : 2;  // blocks of output channels whose sums are held in registers at once
constexpr int TILE = 64;   // pixels of a tile: their channels fit into the first-level cache
constexpr long PITCH = TILE + 1;  // vectors of a block of a tile: odd, so that blocks do not lie in the same lines of the cache

// How many of `left` blocks to take at once: never 3 of 4, which would leave one alone.
inline int columns(int left) { return left == 4 ? 2 : std::min(left, COLUMNS); }

template <class T>
struct VecOf {
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
struct WideOf;  // a vector of doubles with as many lanes as a vector of T
template <>
struct WideOf<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct WideOf<float> {
    typedef double type __attribute__((vector_size(2 * VECTOR_BYTES)));
};
template <class T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

template <class T>
struct Layout {
    int num, height, width, channels, stride, out_height, out_width, blocks;
    explicit Layout(const Shape &s)
        : num(s.num), height(s.height), width(s.width), channels(s.channels), stride(s.stride),
          out_height((s.height + s.stride - 1) / s.stride), out_width((s.width + s.stride - 1) / s.stride),
          blocks((s.channels + LANES<T> - 1) / LANES<T>) {}
    long pixels() const { return long(height) * width; }
    long out_pixels() const { return long(out_height) * out_width; }
    int padded() const { return blocks * LANES<T>; }
    int tile_rows() const { return std::max(1, TILE / out_width); }  // rows of the output that make a tile
    int chunks() const { return std::min(num, NUM_CHUNKS); }
    int chunk_begin(int chunk) const { return int(long(num) * chunk / chunks()); }
};

// The memory of one thread. It is kept from call to call and handed out piece by piece.
class Arena {
public:
    static Arena &mine() {
        static thread_local Arena arena;
        return arena;
    }
    void reset(size_t bytes) {
        if (bytes > size_) {
            std::free(base_);
            size_ = (bytes + 4095) / 4096 * 4096;
            base_ = static_cast<char *>(std::aligned_alloc(4096, size_));
        }
        used_ = 0;
    }
    template <class T>
    Vec<T> *take(long vectors) {
        auto *piece = reinterpret_cast<Vec<T> *>(base_ + used_);
        used_ += vectors * VECTOR_BYTES;
        return piece;
    }
    ~Arena() { std::free(base_); }

private:
    char *base_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

template <class T>
class Aligned {  // an array of zeros
public:
    explicit Aligned(long count) : data_(static_cast<T *>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64))) {
        std::memset(static_cast<void *>(data_), 0, count * sizeof(T));
    }
    ~Aligned() { std::free(data_); }
    Aligned(const Aligned &) = delete;
    T *data() { return data_; }

private:
    T *data_;
};

// The first `count` lanes, or all if there are fewer lanes; the others are 0.
template <class T>
Vec<T> load(const T *from, int count) {
#if defined(__AVX512F__)
    const unsigned lanes = count >= LANES<T> ? (1u << LANES<T>) - 1 : (1u << count) - 1;
    if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps(lanes, from);
    else return _mm512_maskz_loadu_pd(lanes, from);
#else
    Vec<T> value = {};
    if (count >= LANES<T>) std::memcpy(&value, from, VECTOR_BYTES);
    else std::memcpy(&value, from, count * sizeof(T));
    return value;
#endif
}

template <class T>
Vec<T> load(const bf16 *from, int count) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    const unsigned lanes = count >= LANES<T> ? (1u << LANES<T>) - 1 : (1u << count) - 1;
    return (Vec<T>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from)), 16);
#else
    Vec<T> value = {};
    for (int lane = 0; lane < std::min(count, LANES<T>); ++lane) {
        const uint32_t bits = uint32_t(from[lane].bits) << 16;
        float wide;
        std::memcpy(&wide, &bits, sizeof(wide));
        value[lane] = wide;
    }
    return value;
#endif
}

template <class T>
void store(T *to, Vec<T> value, int count) {
#if defined(__AVX512F__)
    const unsigned lanes = count >= LANES<T> ? (1u << LANES<T>) - 1 : (1u << count) - 1;
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(to, lanes, value);
    else _mm512_mask_storeu_pd(to, lanes, value);
#else
    if (count >= LANES<T>) std::memcpy(to, &value, VECTOR_BYTES);
    else std::memcpy(to, &value, count * sizeof(T));
#endif
}

template <class T>
void store(bf16 *to, Vec<T> value, int count) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    const unsigned lanes = count >= LANES<T> ? (1u << LANES<T>) - 1 : (1u << count) - 1;
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
    for (int lane = 0; lane < std::min(count, LANES<T>); ++lane) {
        const float wide = float(value[lane]);
        uint32_t bits;
        std::memcpy(&bits, &wide, sizeof(bits));
        // To the nearest, and of two equally near ones to the even one; what is not a number stays so.
        to[lane].bits = wide != wide ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
#endif
}

template <class T>
Vec<T> channel_vector(const void *values, int block, int channels, T missing = T(0)) {
    if (values == nullptr) return Vec<T>{} + missing;
    return load<T>(static_cast<const T *>(values) + block * LANES<T>, channels - block * LANES<T>);
}

template <class T>
Vec<T> positive(Vec<T> value) {  // ReLU
    return value > Vec<T>{} ? value : Vec<T>{};
}

// Call visit(first pixel, how many) for the tiles of an image.
template <class Visit>
void each_tile(long size, const Visit &visit) {
    for (long begin = 0; begin < size; begin += TILE) visit(begin, std::min<long>(size - begin, TILE));
}

// One block of channels of the pixels of a map, from pixel `begin` of image `n`. An image has `pixels` of them.
template <class T>
class Pixels {
public:
    Pixels(const void *map, int channels, long pixels, int n, long begin, int block)
        : first_(static_cast<Stored<T> *>(const_cast<void *>(map)) + (n * pixels + begin) * channels + block * LANES<T>),
          channels_(channels), lanes_(std::min(channels - block * LANES<T>, LANES<T>)) {}
    Vec<T> operator[](long p) const { return load<T>(first_ + p * channels_, lanes_); }
    void set(long p, Vec<T> value) const { store<T>(first_ + p * channels_, value, lanes_); }
    void fetch(long p) const { __builtin_prefetch(first_ + p * channels_); }  // into the caches; also beyond the map

private:
    Stored<T> *first_;
    long channels_;
    int lanes_;
};

// A map of more bytes than this is written past the caches: it will have left them before it is read again, and a line
// that is written whole need not be read first.
constexpr long STREAMED_BYTES = 1 << 20;

// Copy a multiple of a vector's bytes to `to`, which is aligned to a vector, past the caches.
inline void stream(const char *from, char *to, long bytes) {
#if defined(__AVX512F__)
    for (long k = 0; k < bytes; k += VECTOR_BYTES)
        _mm512_stream_si512(reinterpret_cast<__m512i *>(to + k), _mm512_loadu_si512(from + k));
    _mm_sfence();
#else
    std::memcpy(to, from, bytes);
#endif
}

// Write `count` pixels, which are in blocks of `tile` vectors, into image `n` of a map from pixel `begin`.
template <class T>
void write_tile(const Vec<T> *values, long tile, const Layout<T> &l, void *map, long pixels, int n, long begin, long count) {
    static thread_local Arena joined;
    constexpr long EACH = sizeof(Stored<T>);
    char *to = static_cast<char *>(map) + (n * pixels + begin) * l.channels * EACH;
    const long bytes = count * l.channels * EACH;
    const bool whole_lines = (reinterpret_cast<uintptr_t>(to) | uintptr_t(bytes)) % VECTOR_BYTES == 0;
    const bool past = whole_lines && l.num * pixels * l.channels * EACH > STREAMED_BYTES;
    if (past) joined.reset(bytes);
    char *room = past ? reinterpret_cast<char *>(joined.take<T>(bytes / VECTOR_BYTES)) : to;
    for (int block = 0; block < l.blocks; ++block, values += tile) {
        const Pixels<T> pixel(room, l.channels, 0, 0, 0, block);
        for (long p = 0; p < count; ++p) pixel.set(p, values[p]);
    }
    if (past) stream(room, to, bytes);
}

}  // namespace
