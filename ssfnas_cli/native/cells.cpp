// The candidate operations that leave one node of a cell, for all edges at once.
//
// What is fast here, and why (measured by benchmarks/search_step.py, docs/performance.md):
//   - One image of one operation fits into the second-level cache, so ReLU, depthwise and pointwise convolution run
//     image by image without going back to memory; only what batch normalisation needs a whole batch for is kept.
//   - Depthwise convolutions, their data gradient (a gather over the output, by parity at stride 2) and their weight
//     gradient hold a row of pixels, or all taps, in registers; the channels of one vector lie side by side.
//   - The weighted sum over operations, each with its batch normalisation, is one linear combination per channel.
//   - The depthwise results are computed again in the backward pass instead of being kept: cheaper than the traffic.
//
// Layouts. Tensors of torch are NHWC ("channels last"). Maps of our own are "blocked": [N][blocks][H][W][lanes], a
// block being as many channels as a vector has lanes, the last one filled up with zeros.
//
// The batch is cut into at most NUM_CHUNKS chunks, each with sums of its own, which are added in order: the results do
// not depend on how many threads there are, nor on which of them was faster.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

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
struct WideOf;  // as many doubles
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

enum Kind : int { SEPARABLE = 0, MAX_POOL = 1, AVG_POOL = 2, IDENTITY = 3 };

}  // namespace

// What Python passes; the same structures stand in cells.py. Pointers are to T, but mean, variance, sum and dot, which
// are sums over the batch, are double.
struct Shape {
    int num, height, width, channels, stride, threads;
};
struct Upstream {  // a gradient that arrives at an operation's result: scale[c] * sample[n] * g
    const void *g;       // blocked or NHWC, of the output's size
    const void *scale;   // [C]
    const void *sample;  // [N], or null
    int blocked;
};
struct Item {  // one operation on a group's input
    int kind, kernel, dilation;
    int first_upstream, num_upstream;
    const void *depthwise, *pointwise;    // [C, 1, K, K] and [C, C, 1, 1]
    void *y;                              // its result before batch normalisation, blocked
    void *mean, *variance;                // of y over the batch [C]; null: not wanted
    const void *centre, *slope, *offset;  // dy = upstream + slope * (y - centre) + offset, each [C], or null
    void *d_depthwise, *d_pointwise;      // gradients, or null
};
struct Group {  // operations that share an input
    const void *x;
    const void *scale, *shift;  // the input is ReLU(scale * x + shift), each [C]; null: ReLU(x), pools see x itself
    int first_item, num_items;
    int blocked;   // whether x and dx are
    void *dx;      // gradient by x, or by scale * x + shift where those are given
    const void *centre;  // then also: sum of dx, and of dx * (x - centre) [C]
    void *sum, *dot;
};
struct Term {  // one summand of a node: sample[n] * (scale[c] * (y - centre[c]) + shift[c])
    const void *y;
    const void *scale, *centre, *shift;  // [C]; centre and shift may be null
    const void *sample;                  // [N], or null
    int target, blocked;
    void *sum, *dot;  // of the target's gradient g: sum sample * g and sum sample * g * (y - centre) [C]
};

namespace {

// ---- memory

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

// Memory of one thread, kept from call to call and handed out piece by piece.
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
class Aligned {  // zeroed
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

// Calls visit(pixel, value) for every vector of one block of image `n` of a map, whatever its layout.
template <class T, class Visit>
void each_of_block(const void *map, int blocked, const Layout<T> &l, long pixels, int n, int block, Visit visit) {
    if (blocked || (l.blocks == 1 && l.channels == LANES<T>)) {
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

template <class T>
void read_map(const void *map, int blocked, const Layout<T> &l, long pixels, int n, Vec<T> *values) {
    for (int block = 0; block < l.blocks; ++block)
        each_of_block<T>(map, blocked, l, pixels, n, block, [to = values + block * pixels](long p, Vec<T> v) { to[p] = v; });
}

template <class T>
void write_map(void *map, int blocked, const Layout<T> &l, long pixels, int n, const Vec<T> *values) {
    T *image = static_cast<T *>(map) + n * pixels * (blocked ? l.padded() : l.channels);
    if (blocked || (l.blocks == 1 && l.channels == LANES<T>)) {
        std::memcpy(image, values, l.blocks * pixels * VECTOR_BYTES);
        return;
    }
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

// ---- depthwise convolution, one block of channels of one image

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
// A gather: of the columns x = S*m + Q, only every S-th tap meets an output. dt has a border of zeros.
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

template <class T, int K, int D, int S>
void depthwise_transposed(const Vec<T> *dt, int pitch, int height, int width, const Vec<T> *w, Vec<T> *g) {
    for (int y = 0; y < height; ++y, g += width) {
        transposed_columns<T, K, D, S, 0>(dt, pitch, y, width, w, g);
        if (S == 2 && D == 1) transposed_columns<T, K, D, S, S - 1>(dt, pitch, y, width, w, g);
    }
}

// The weight gradient: dw[a, b] += sum over pixels of u[i*S + a*D, j*S + b*D] * dt[i, j].
template <class T, int K, int D, int S>
void depthwise_weights(const Vec<T> *u, int pitch, const Vec<T> *dt, int dt_pitch, int height, int width, Vec<T> *dw) {
    constexpr int ROWS = VECTOR_BYTES == 64 && K <= 5 ? K : K <= 3 ? K : 1;  // as the registers allow
    for (int a = 0; a < K; a += ROWS) {
        for (int i = 0; i < height; ++i) {  // a row's sums at a time: long sums in float lose digits
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
struct Depthwise {  // the three, of one kernel, dilation and stride
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

// ---- pointwise convolution: out[o-block][p] = sum over k of in[k][p] * matrix[k][o-block], for `pixels` pixels

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
void pointwise_weights_tile(const Vec<T> *t, const Vec<T> *dy, long block, int k, int blocks, long pixels, Vec<T> *dm) {
    constexpr int ROWS = LANES<T> < 8 ? LANES<T> : 8;
    constexpr long RUN = 64;  // pixels summed at a time: long sums in float lose digits
    const T *values = reinterpret_cast<const T *>(t + (k / LANES<T>) * block) + k % LANES<T>;
    for (long begin = 0; begin < pixels; begin += RUN) {
        Vec<T> sums[ROWS][O] = {};
        for (long p = begin; p < std::min(pixels, begin + RUN); ++p) {
#pragma GCC unroll 8
            for (int o = 0; o < O; ++o) {
                const Vec<T> d = dy[o * block + p];
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

template <class T>
void pointwise_weights(const Vec<T> *t, const Vec<T> *dy, const Layout<T> &l, long pixels, Vec<T> *dm) {
    constexpr int ROWS = LANES<T> < 8 ? LANES<T> : 8;
    for (int k = 0; k < l.padded(); k += ROWS)
        for (int o = 0; o < l.blocks; o += 2) {
            if (o + 2 <= l.blocks) pointwise_weights_tile<T, 2>(t, dy + o * pixels, pixels, k, l.blocks, pixels, dm + o);
            else pointwise_weights_tile<T, 1>(t, dy + o * pixels, pixels, k, l.blocks, pixels, dm + o);
        }
}

// ---- pools 3x3, padding 1, the padding not counted; on one image, unpadded

template <class T, class Visit>
void each_window(const Layout<T> &l, int i, int j, Visit visit) {
    const int top = i * l.stride - 1, left = j * l.stride - 1;
    if (top >= 0 && left >= 0 && top + 3 <= l.height && left + 3 <= l.width) {  // nearly always: unrolled
        const long at = long(top) * l.width + left;
        visit(at), visit(at + 1), visit(at + 2);
        visit(at + l.width), visit(at + l.width + 1), visit(at + l.width + 2);
        visit(at + 2 * l.width), visit(at + 2 * l.width + 1), visit(at + 2 * l.width + 2);
        return;
    }
    for (int y = std::max(0, i * l.stride - 1); y < std::min(l.height, i * l.stride + 2); ++y)
        for (int x = std::max(0, j * l.stride - 1); x < std::min(l.width, j * l.stride + 2); ++x) visit(long(y) * l.width + x);
}

template <class T>
Vec<T> select(Vec<T> yes, Vec<T> no, decltype(Vec<T>{} < Vec<T>{}) where) {
    return where ? yes : no;
}

template <class T>
void pool(int kind, const Vec<T> *x, const Layout<T> &l, Vec<T> *y) {
    for (int block = 0; block < l.blocks; ++block, x += l.pixels())
        for (int i = 0; i < l.out_height; ++i)
            for (int j = 0; j < l.out_width; ++j) {
                Vec<T> best = Vec<T>{} - std::numeric_limits<T>::infinity(), sum = {};
                int count = 0;
                each_window(l, i, j, [&](long p) {
                    if (kind == MAX_POOL) best = select<T>(best, x[p], best >= x[p]);
                    else sum += x[p], ++count;
                });
                *y++ = kind == MAX_POOL ? best : sum / T(count);
            }
}

// g += the pool's data gradient; a window's first largest value takes it all, as in torch
template <class T>
void pool_transposed(int kind, const Vec<T> *x, const Vec<T> *dy, const Layout<T> &l, Vec<T> *g) {
    for (int block = 0; block < l.blocks; ++block, x += l.pixels(), g += l.pixels())
        for (int i = 0; i < l.out_height; ++i)
            for (int j = 0; j < l.out_width; ++j) {
                Vec<T> left = *dy++, best = Vec<T>{} - std::numeric_limits<T>::infinity();
                int count = 0;
                each_window(l, i, j, [&](long p) { best = select<T>(best, x[p], best >= x[p]), ++count; });
                each_window(l, i, j, [&](long p) {
                    if (kind == AVG_POOL) {
                        g[p] += left / T(count);
                        return;
                    }
                    const Vec<T> taken = select<T>(left, Vec<T>{}, x[p] == best);
                    g[p] += taken;
                    left -= taken;
                });
            }
}

// ---- statistics

// Mean and sum of squared distances of one image's map, per channel.
template <class T>
void image_statistics(const Vec<T> *y, const Layout<T> &l, long pixels, T *mean, T *squares) {
    for (int block = 0; block < l.blocks; ++block, y += pixels) {
        Vec<T> sums[4] = {}, parts[4] = {};
        for (long p = 0; p < pixels; ++p) sums[p & 3] += y[p];
        const Vec<T> m = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / T(pixels);
        for (long p = 0; p < pixels; ++p) parts[p & 3] += (y[p] - m) * (y[p] - m);
        reinterpret_cast<Vec<T> *>(mean)[block] = m;
        reinterpret_cast<Vec<T> *>(squares)[block] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
}

// Chan's combination of the images' statistics: mean and biased variance of the batch.
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

// The sum of g and of g * (y - centre) over one image and block: in runs of pixels, these added in double.
template <class T>
void add_products(const Vec<T> *g, const Vec<T> *y, Vec<T> centre, long pixels, double factor, double *sum, double *dot) {
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
                sums[k] += g[p + k];
                dots[k] += g[p + k] * (y[p + k] - centre);
            }
        for (; p < end; ++p) sums[0] += g[p], dots[0] += g[p] * (y[p] - centre);
        total += __builtin_convertvector((sums[0] + sums[1]) + (sums[2] + sums[3]), Wide);
        product += __builtin_convertvector((dots[0] + dots[1]) + (dots[2] + dots[3]), Wide);
    }
    for (int lane = 0; lane < LANES<T>; ++lane) sum[lane] = total[lane] * factor, dot[lane] = product[lane] * factor;
}

template <class T>
void add_images(const double *parts, const Layout<T> &l, void *total) {  // [N][padded] -> [C]
    for (int c = 0; c < l.channels; ++c) {
        double sum = 0;
        for (int n = 0; n < l.num; ++n) sum += parts[long(n) * l.padded() + c];
        static_cast<double *>(total)[c] = sum;
    }
}

// ---- weights as the kernels want them

template <class T>
struct Packed {
    std::vector<long> depthwise, matrix, transposed;  // where an item's begin
    Aligned<Vec<T>> store;

    Packed(const Layout<T> &l, int num_items, const Item *items) : store(total(l, num_items, items)) {
        long at = 0;
        for (int k = 0; k < num_items; ++k) {
            const Item &item = items[k];
            const int taps = item.kernel * item.kernel;
            depthwise.push_back(at), at += long(taps) * l.blocks;
            matrix.push_back(at), at += long(l.padded()) * l.blocks;
            transposed.push_back(at), at += long(l.padded()) * l.blocks;
            if (item.kind == SEPARABLE) fill(l, item, taps, k);
        }
    }

private:
    static long total(const Layout<T> &l, int num_items, const Item *items) {
        long sum = 1;
        for (int k = 0; k < num_items; ++k) sum += long(items[k].kernel * items[k].kernel + 2 * l.padded()) * l.blocks;
        return sum;
    }
    void fill(const Layout<T> &l, const Item &item, int taps, int k) {
        const T *dw = static_cast<const T *>(item.depthwise), *pw = static_cast<const T *>(item.pointwise);
        T *d = reinterpret_cast<T *>(store.data() + depthwise[k]);
        T *m = reinterpret_cast<T *>(store.data() + matrix[k]), *t = reinterpret_cast<T *>(store.data() + transposed[k]);
        for (int c = 0; c < l.channels; ++c) {
            for (int tap = 0; tap < taps; ++tap)
                d[(c / LANES<T> * taps + tap) * LANES<T> + c % LANES<T>] = dw[c * taps + tap];
            for (int o = 0; o < l.channels; ++o) {
                m[long(c) * l.padded() + o] = pw[long(o) * l.channels + c];
                t[long(o) * l.padded() + c] = pw[long(o) * l.channels + c];
            }
        }
    }
};

// ---- one image of one group

template <class T>
struct Workspace {
    const Layout<T> &l;
    int pad;  // around the input
    long padded_pixels;
    int pitch;
    Vec<T> *raw, *input, *middle, *result;       // x, ReLU(x) with its border, depthwise result, pointwise result
    Vec<T> *middle_gradient, *gradient;          // backward: with a border; by the input
    long gradient_padded_pixels;
    int gradient_pitch;

    Workspace(const Layout<T> &layout, int pad_, bool backward) : l(layout), pad(pad_) {
        pitch = l.width + 2 * pad;
        padded_pixels = long(l.height + 2 * pad) * pitch;
        gradient_pitch = l.out_width + 2 * pad;
        gradient_padded_pixels = long(l.out_height + 2 * pad) * gradient_pitch;
        const long b = l.blocks;
        const long vectors = b * (l.pixels() + padded_pixels + 2 * l.out_pixels() +
                                  (backward ? gradient_padded_pixels + l.pixels() : 0));
        Arena &arena = Arena::mine();
        arena.reset((vectors + 8) * VECTOR_BYTES);
        raw = arena.take<T>(b * l.pixels());
        input = arena.take<T>(b * padded_pixels);
        middle = arena.take<T>(b * l.out_pixels());
        result = arena.take<T>(b * l.out_pixels());
        std::memset(static_cast<void *>(input), 0, b * padded_pixels * VECTOR_BYTES);
        if (backward) {
            middle_gradient = arena.take<T>(b * gradient_padded_pixels);
            gradient = arena.take<T>(b * l.pixels());
            std::memset(static_cast<void *>(middle_gradient), 0, b * gradient_padded_pixels * VECTOR_BYTES);
        }
    }

    void read(const Group &group, int n) {
        read_map<T>(group.x, group.blocked, l, l.pixels(), n, raw);
        for (int block = 0; block < l.blocks; ++block) {
            const Vec<T> scale = channel_vector<T>(group.scale, block, l.channels);
            const Vec<T> shift = channel_vector<T>(group.shift, block, l.channels);
            for (int y = 0; y < l.height; ++y) {
                const Vec<T> *from = raw + block * l.pixels() + long(y) * l.width;
                Vec<T> *to = input + block * padded_pixels + long(y + pad) * pitch + pad;
                if (group.scale == nullptr)
                    for (int x = 0; x < l.width; ++x) to[x] = select<T>(from[x], Vec<T>{}, from[x] > Vec<T>{});
                else
                    for (int x = 0; x < l.width; ++x) {
                        const Vec<T> z = from[x] * scale + shift;
                        to[x] = select<T>(z, Vec<T>{}, z > Vec<T>{});
                    }
            }
        }
    }
    const Vec<T> *first_tap(const Item &item, int block) const {
        const int border = pad - item.dilation * (item.kernel - 1) / 2;
        return input + block * padded_pixels + border * pitch + border;
    }
    Vec<T> *gradient_origin(int block) const { return middle_gradient + block * gradient_padded_pixels + pad * gradient_pitch + pad; }

    void convolve(const Item &item, const Vec<T> *weights) {  // input -> middle
        const auto ops = Depthwise<T>::find(item.kernel, item.dilation, l.stride);
        for (int block = 0; block < l.blocks; ++block)
            ops.forward(first_tap(item, block), pitch, l.out_height, l.out_width,
                        weights + long(block) * item.kernel * item.kernel, middle + block * l.out_pixels());
    }
    void upstream_gradient(const Item &item, const Upstream *upstreams, int n) {  // -> result, by y
        const long size = l.out_pixels();
        for (int k = 0; k < item.num_upstream; ++k) {
            const Upstream &up = upstreams[item.first_upstream + k];
            const T sample = up.sample == nullptr ? T(1) : static_cast<const T *>(up.sample)[n];
            if (k == 0) std::memset(static_cast<void *>(result), 0, l.blocks * size * VECTOR_BYTES);
            for (int block = 0; block < l.blocks; ++block)
                each_of_block<T>(up.g, up.blocked, l, size, n, block,
                                 [to = result + block * size, scale = channel_vector<T>(up.scale, block, l.channels) * sample](
                                     long p, Vec<T> g) { to[p] += scale * g; });
        }
        if (item.slope == nullptr) return;
        for (int block = 0; block < l.blocks; ++block) {
            const Vec<T> centre = channel_vector<T>(item.centre, block, l.channels);
            const Vec<T> slope = channel_vector<T>(item.slope, block, l.channels);
            const Vec<T> offset = channel_vector<T>(item.offset, block, l.channels);
            const Vec<T> *y = block_of<T>(item.y, l, size, n, block);
            Vec<T> *to = result + block * size;
            for (long p = 0; p < size; ++p) to[p] += slope * (y[p] - centre) + offset;
        }
    }
};

template <class T>
int largest_pad(int num_items, const Item *items) {
    int pad = 0;
    for (int k = 0; k < num_items; ++k)
        if (items[k].kind == SEPARABLE) pad = std::max(pad, items[k].dilation * (items[k].kernel - 1) / 2);
    return pad;
}

template <class T>
void groups_forward(const Shape &shape, int num_groups, const Group *groups, int num_items, const Item *items) {
    const Layout<T> l(shape);
    Packed<T> packed(l, num_items, items);
    const long per_item = long(l.num) * l.padded();
    Aligned<T> means(per_item * num_items), squares(per_item * num_items);
    const int pad = largest_pad<T>(num_items, items);
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int chunk = 0; chunk < l.chunks(); ++chunk) {
        Workspace<T> w(l, pad, false);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int g = 0; g < num_groups; ++g) {
                w.read(groups[g], n);
                for (int k = groups[g].first_item; k < groups[g].first_item + groups[g].num_items; ++k) {
                    const Item &item = items[k];
                    if (item.kind == SEPARABLE) {
                        w.convolve(item, packed.store.data() + packed.depthwise[k]);
                        pointwise<T>(w.middle, l.out_pixels(), packed.store.data() + packed.matrix[k], l.blocks,
                                     l.channels, l.out_pixels(), w.result, l.out_pixels());
                    } else {
                        pool<T>(item.kind, w.raw, l, w.result);
                    }
                    write_map<T>(item.y, 1, l, l.out_pixels(), n, w.result);
                    const long at = k * per_item + long(n) * l.padded();
                    if (item.mean != nullptr) image_statistics<T>(w.result, l, l.out_pixels(), means.data() + at, squares.data() + at);
                }
            }
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int k = 0; k < num_items; ++k)
        if (items[k].mean != nullptr)
            batch_statistics<T>(means.data() + k * per_item, squares.data() + k * per_item, l, l.out_pixels(),
                                static_cast<double *>(items[k].mean), static_cast<double *>(items[k].variance));
}

// Sums of weight gradients, one set per chunk.
template <class T>
struct WeightSums {
    std::vector<long> depthwise, matrix;
    long size = 0;

    WeightSums(const Layout<T> &l, int num_items, const Item *items) {
        for (int k = 0; k < num_items; ++k) {
            const bool wanted = items[k].d_depthwise != nullptr;
            depthwise.push_back(size), size += wanted ? long(items[k].kernel) * items[k].kernel * l.blocks : 0;
            matrix.push_back(size), size += wanted ? long(l.padded()) * l.blocks : 0;
        }
    }
    void write(const Layout<T> &l, const Item &item, int k, const Vec<T> *sums) const {  // in the chunks' order
        const int taps = item.kernel * item.kernel;
        T *dw = static_cast<T *>(item.d_depthwise), *pw = static_cast<T *>(item.d_pointwise);
        std::fill(dw, dw + long(l.channels) * taps, T(0));
        std::fill(pw, pw + long(l.channels) * l.channels, T(0));
        for (int chunk = 0; chunk < l.chunks(); ++chunk) {
            const T *d = reinterpret_cast<const T *>(sums + chunk * size + depthwise[k]);
            const T *m = reinterpret_cast<const T *>(sums + chunk * size + matrix[k]);
            for (int c = 0; c < l.channels; ++c) {
                for (int tap = 0; tap < taps; ++tap)
                    dw[c * taps + tap] += d[(c / LANES<T> * taps + tap) * LANES<T> + c % LANES<T>];
                for (int o = 0; o < l.channels; ++o) pw[long(o) * l.channels + c] += m[long(c) * l.padded() + o];
            }
        }
    }
};

template <class T>
void separable_backward(Workspace<T> &w, const Item &item, const Vec<T> *depthwise, const Vec<T> *transposed,
                        Vec<T> *d_depthwise, Vec<T> *d_matrix) {
    const Layout<T> &l = w.l;
    const auto ops = Depthwise<T>::find(item.kernel, item.dilation, l.stride);
    const int taps = item.kernel * item.kernel;
    for (int i = 0; i < l.out_height; ++i)  // result, by y -> by the depthwise result
        pointwise<T>(w.result + long(i) * l.out_width, l.out_pixels(), transposed, l.blocks, l.channels, l.out_width,
                     w.gradient_origin(0) + long(i) * w.gradient_pitch, w.gradient_padded_pixels);
    if (d_matrix != nullptr) {
        w.convolve(item, depthwise);
        pointwise_weights<T>(w.middle, w.result, l, l.out_pixels(), d_matrix);
    }
    for (int block = 0; block < l.blocks; ++block) {
        const Vec<T> *dt = w.gradient_origin(block);
        if (d_depthwise != nullptr)
            ops.weights(w.first_tap(item, block), w.pitch, dt, w.gradient_pitch, l.out_height, l.out_width,
                        d_depthwise + long(block) * taps);
        ops.transposed(dt, w.gradient_pitch, l.height, l.width, depthwise + long(block) * taps,
                       w.gradient + block * l.pixels());
    }
}

// Masks the gradient by the ReLU, adds what the pools and identities pass back, and writes it.
template <class T>
void finish_group(Workspace<T> &w, const Group &group, const Item *items, const Upstream *upstreams, int n, double *sum, double *dot) {
    const Layout<T> &l = w.l;
    for (int block = 0; block < l.blocks; ++block)
        for (int y = 0; y < l.height; ++y) {
            const Vec<T> *input = w.input + block * w.padded_pixels + (y + w.pad) * w.pitch + w.pad;
            Vec<T> *g = w.gradient + block * l.pixels() + long(y) * l.width;
            for (int x = 0; x < l.width; ++x) g[x] = select<T>(g[x], Vec<T>{}, input[x] > Vec<T>{});
        }
    for (int k = group.first_item; k < group.first_item + group.num_items; ++k) {
        const Item &item = items[k];
        if (item.kind == SEPARABLE) continue;
        w.upstream_gradient(item, upstreams, n);
        if (item.kind == IDENTITY)
            for (long v = 0; v < l.blocks * l.pixels(); ++v) w.gradient[v] += w.result[v];
        else
            pool_transposed<T>(item.kind, w.raw, w.result, l, w.gradient);
    }
    write_map<T>(group.dx, group.blocked, l, l.pixels(), n, w.gradient);
    if (group.sum == nullptr) return;
    for (int block = 0; block < l.blocks; ++block)
        add_products<T>(w.gradient + block * l.pixels(), w.raw + block * l.pixels(),
                        channel_vector<T>(group.centre, block, l.channels), l.pixels(), 1.0, sum + block * LANES<T>,
                        dot + block * LANES<T>);
}

template <class T>
void groups_backward(const Shape &shape, int num_groups, const Group *groups, int num_items, const Item *items,
                     const Upstream *upstreams) {
    const Layout<T> l(shape);
    Packed<T> packed(l, num_items, items);
    const WeightSums<T> sums(l, num_items, items);
    Aligned<Vec<T>> weight_sums(sums.size * l.chunks() + 1);
    const long per_group = long(l.num) * l.padded();
    Aligned<double> parts(per_group * num_groups * 2);
    const int pad = largest_pad<T>(num_items, items);
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int chunk = 0; chunk < l.chunks(); ++chunk) {
        Workspace<T> w(l, pad, true);
        Vec<T> *mine = weight_sums.data() + chunk * sums.size;
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int g = 0; g < num_groups; ++g) {
                w.read(groups[g], n);
                std::memset(static_cast<void *>(w.gradient), 0, l.blocks * l.pixels() * VECTOR_BYTES);
                for (int k = groups[g].first_item; k < groups[g].first_item + groups[g].num_items; ++k) {
                    const Item &item = items[k];
                    if (item.kind != SEPARABLE) continue;
                    w.upstream_gradient(item, upstreams, n);
                    const bool wanted = item.d_depthwise != nullptr;
                    separable_backward<T>(w, item, packed.store.data() + packed.depthwise[k],
                                          packed.store.data() + packed.transposed[k],
                                          wanted ? mine + sums.depthwise[k] : nullptr,
                                          wanted ? mine + sums.matrix[k] : nullptr);
                }
                double *part = parts.data() + 2 * g * per_group + long(n) * l.padded();
                finish_group<T>(w, groups[g], items, upstreams, n, part, part + per_group);
            }
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int k = 0; k < num_items; ++k)
        if (items[k].d_depthwise != nullptr) sums.write(l, items[k], k, weight_sums.data());
    for (int g = 0; g < num_groups; ++g)
        if (groups[g].sum != nullptr) {
            add_images<T>(parts.data() + 2 * g * per_group, l, groups[g].sum);
            add_images<T>(parts.data() + (2 * g + 1) * per_group, l, groups[g].dot);
        }
}

// ---- the sum of a node

// out[target] (+)= every term; the shape is that of the outputs. `add` says where there is a sum to add to.
template <class T>
void mix_forward(const Shape &shape, int num_terms, const Term *terms, int num_targets, void *const *outs, const int *add) {
    const Layout<T> l(shape);
    const long size = l.pixels();
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int chunk = 0; chunk < l.chunks(); ++chunk) {
        Arena &arena = Arena::mine();
        arena.reset((l.blocks * size + 8) * VECTOR_BYTES);
        Vec<T> *total = arena.take<T>(l.blocks * size);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int target = 0; target < num_targets; ++target) {
                std::memset(static_cast<void *>(total), 0, l.blocks * size * VECTOR_BYTES);
                if (add[target]) read_map<T>(outs[target], 0, l, size, n, total);
                for (int k = 0; k < num_terms; ++k) {
                    const Term &term = terms[k];
                    const T sample = term.sample == nullptr ? T(1) : static_cast<const T *>(term.sample)[n];
                    if (term.target != target || sample == T(0)) continue;
                    for (int block = 0; block < l.blocks; ++block) {
                        const Vec<T> scale = channel_vector<T>(term.scale, block, l.channels) * sample;
                        const Vec<T> centre = channel_vector<T>(term.centre, block, l.channels);
                        const Vec<T> shift = channel_vector<T>(term.shift, block, l.channels) * sample;
                        each_of_block<T>(term.y, term.blocked, l, size, n, block,
                                         [to = total + block * size, scale, centre, shift](long p, Vec<T> y) {
                                             to[p] += scale * (y - centre) + shift;
                                         });
                    }
                }
                write_map<T>(outs[target], 0, l, size, n, total);
            }
    }
}

// For every term the sums its backward pass needs; gs are the gradients of the targets.
template <class T>
void mix_sums(const Shape &shape, int num_terms, const Term *terms, const void *const *gs) {
    const Layout<T> l(shape);
    const long size = l.pixels(), per_term = long(l.num) * l.padded();
    Aligned<double> parts(per_term * num_terms * 2);
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int chunk = 0; chunk < l.chunks(); ++chunk) {
        Arena &arena = Arena::mine();
        arena.reset((2 * l.blocks * size + 8) * VECTOR_BYTES);
        Vec<T> *g = arena.take<T>(l.blocks * size), *y = arena.take<T>(l.blocks * size);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n) {
            int held = -1;
            for (int k = 0; k < num_terms; ++k) {
                const Term &term = terms[k];
                if (term.target != held) read_map<T>(gs[term.target], 0, l, size, n, g);
                held = term.target;
                const Vec<T> *from = y;
                if (term.blocked)
                    from = block_of<T>(term.y, l, size, n, 0);
                else
                    read_map<T>(term.y, 0, l, size, n, y);
                const T sample = term.sample == nullptr ? T(1) : static_cast<const T *>(term.sample)[n];
                double *part = parts.data() + 2 * k * per_term + long(n) * l.padded();
                for (int block = 0; block < l.blocks; ++block)
                    add_products<T>(g + block * size, from + block * size, channel_vector<T>(term.centre, block, l.channels),
                                    size, sample, part + block * LANES<T>, part + per_term + block * LANES<T>);
            }
        }
    }
    for (int k = 0; k < num_terms; ++k) {
        add_images<T>(parts.data() + 2 * k * per_term, l, terms[k].sum);
        add_images<T>(parts.data() + (2 * k + 1) * per_term, l, terms[k].dot);
    }
}

}  // namespace

extern "C" {

int vector_bytes() { return VECTOR_BYTES; }

#define FOR_TYPE(T, SUFFIX)                                                                                             \
    void groups_forward_##SUFFIX(const Shape *s, int g, const Group *gs, int i, const Item *is) {                       \
        groups_forward<T>(*s, g, gs, i, is);                                                                            \
    }                                                                                                                   \
    void groups_backward_##SUFFIX(const Shape *s, int g, const Group *gs, int i, const Item *is, const Upstream *us) {  \
        groups_backward<T>(*s, g, gs, i, is, us);                                                                       \
    }                                                                                                                   \
    void mix_forward_##SUFFIX(const Shape *s, int n, const Term *ts, int k, void *const *outs, const int *add) {        \
        mix_forward<T>(*s, n, ts, k, outs, add);                                                                        \
    }                                                                                                                   \
    void mix_sums_##SUFFIX(const Shape *s, int n, const Term *ts, const void *const *gs) { mix_sums<T>(*s, n, ts, gs); }

FOR_TYPE(float, float)
FOR_TYPE(double, double)
}
