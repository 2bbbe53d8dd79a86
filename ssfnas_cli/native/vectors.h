// Vectors of channels, the layouts of maps, and the memory that work on one image needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

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

template <class T>
Vec<T> load(const T *from, int count) {  // the first `count` lanes
    Vec<T> value = {};
    std::memcpy(&value, from, std::min(count, LANES<T>) * sizeof(T));
    return value;
}

template <class T>
Vec<T> channel_vector(const void *values, int block, int channels, T missing = T(0)) {
    if (values == nullptr) return Vec<T>{} + missing;
    return load<T>(static_cast<const T *>(values) + block * LANES<T>, channels - block * LANES<T>);
}

template <class T>
void store(T *to, Vec<T> value, int count) {
    std::memcpy(to, &value, std::min(count, LANES<T>) * sizeof(T));
}

// The vectors of one block of image `n` of a blocked map.
template <class T>
const Vec<T> *block_of(const void *map, const Layout<T> &l, long pixels, int n, int block) {
    return static_cast<const Vec<T> *>(map) + (long(n) * l.blocks + block) * pixels;
}

// Whether a map lies in memory as a blocked map does.
template <class T>
bool lies_blocked(int blocked, const Layout<T> &l) {
    return blocked || (l.blocks == 1 && l.channels == LANES<T>);
}

// Call visit(pixel, value) for every vector of one block of image `n` of a map in either layout.
template <class T, class Visit>
void each_of_block(const void *map, int blocked, const Layout<T> &l, long pixels, int n, int block, Visit visit) {
    if (lies_blocked(blocked, l)) {
        const Vec<T> *from = block_of<T>(map, l, pixels, n, block);
        for (long p = 0; p < pixels; ++p) visit(p, from[p]);
        return;
    }
    const T *from = static_cast<const T *>(map) + n * pixels * l.channels + long(block) * LANES<T>;
    const int left = l.channels - block * LANES<T>;
    if (left >= LANES<T>)
        for (long p = 0; p < pixels; ++p) visit(p, load<T>(from + p * l.channels, LANES<T>));
    else
        for (long p = 0; p < pixels; ++p) visit(p, load<T>(from + p * l.channels, left));
}

// Image `n` of a map as a blocked one: in its place if it lies blocked, else copied to `room`.
template <class T>
const Vec<T> *blocked_image(const void *map, int blocked, const Layout<T> &l, long pixels, int n, Vec<T> *room) {
    if (lies_blocked(blocked, l)) return block_of<T>(map, l, pixels, n, 0);
    for (int block = 0; block < l.blocks; ++block)
        each_of_block<T>(map, blocked, l, pixels, n, block, [to = room + block * pixels](long p, Vec<T> v) { to[p] = v; });
    return room;
}

// Where to put image `n` of a map before `write_map` is called: in its place if it lies blocked, else in `room`.
template <class T>
Vec<T> *image_to_write(void *map, int blocked, const Layout<T> &l, long pixels, int n, Vec<T> *room) {
    return lies_blocked(blocked, l) ? const_cast<Vec<T> *>(block_of<T>(map, l, pixels, n, 0)) : room;
}

template <class T>
void write_map(void *map, int blocked, const Layout<T> &l, long pixels, int n, const Vec<T> *values) {
    if (lies_blocked(blocked, l)) return;  // the values are in their place
    T *image = static_cast<T *>(map) + n * pixels * l.channels;
    for (int block = 0; block < l.blocks; ++block) {
        const int left = l.channels - block * LANES<T>;
        T *to = image + block * LANES<T>;
        const Vec<T> *from = values + block * pixels;
        if (left >= LANES<T>)
            for (long p = 0; p < pixels; ++p) store<T>(to + p * l.channels, from[p], LANES<T>);
        else
            for (long p = 0; p < pixels; ++p) store<T>(to + p * l.channels, from[p], left);
    }
}

}  // namespace
