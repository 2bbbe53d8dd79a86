// Projections: ReLU, and 1x1 convolutions on the pixels of one grid or of two.
#pragma once

#include <vector>

#include "pointwise.h"
#include "statistics.h"
#include "threads.h"
#include "upstream.h"

namespace {

constexpr long TILE = 64;  // pixels worked on at once: their channels fit into the first two caches

// The grid of pixels that each tap reads, and the taps' weights in the order in which the loops read them.
template <class T>
struct Grids {
    const Layout<T> &l;  // its channels are the output channels
    const Projection &job;
    int in_blocks;
    Aligned<Vec<T>> matrix, transposed;  // [taps * in][out] and [out][taps * in], blocks filled up with zeros

    Grids(const Layout<T> &layout, const Projection &projection)
        : l(layout), job(projection), in_blocks((projection.in_channels + LANES<T> - 1) / LANES<T>),
          matrix(long(rows()) * layout.blocks), transposed(long(layout.padded()) * job.taps * in_blocks) {
        T *m = reinterpret_cast<T *>(matrix.data()), *t = reinterpret_cast<T *>(transposed.data());
        each_weight([&](int tap, long at, int row, int out) {
            const T value = static_cast<const T *>(job.weights[tap])[at];
            m[long(row) * l.padded() + out] = value;
            t[long(out) * rows() + row] = value;
        });
    }
    int rows() const { return job.taps * in_blocks * LANES<T>; }

    // Call visit(tap, index in the tap's weights, row of the matrix, output channel) for every weight.
    template <class Visit>
    void each_weight(Visit visit) const {
        for (int tap = 0; tap < job.taps; ++tap) {
            const int begin = tap == 0 ? 0 : job.first_channels, end = tap + 1 == job.taps ? l.channels : job.first_channels;
            for (int out = begin; out < end; ++out)
                for (int c = 0; c < job.in_channels; ++c)
                    visit(tap, long(out - begin) * job.in_channels + c, tap * in_blocks * LANES<T> + c, out);
        }
    }

    // Call visit(tap, p, index of the pixel in an image of x, or -1 beyond it) for the output's pixels [begin, end).
    template <class Visit>
    void each_pixel(long begin, long end, Visit visit) const {
        for (int tap = 0; tap < job.taps; ++tap) {
            int i = int(begin / l.out_width), j = int(begin % l.out_width);
            for (long p = begin; p < end; ++p) {
                const int y = i * l.stride + tap, x = j * l.stride + tap;
                visit(tap, p - begin, y < l.height && x < l.width ? long(y) * l.width + x : -1);
                if (++j == l.out_width) j = 0, ++i;
            }
        }
    }

    // Read ReLU(x) of image `n` for the output's pixels [begin, end) into tile, [taps * in-blocks][TILE].
    void gather(int n, long begin, long end, Vec<T> *tile) const {
        const T *image = static_cast<const T *>(job.x) + n * l.pixels() * job.in_channels;
        each_pixel(begin, end, [&](int tap, long p, long at) {
            for (int block = 0; block < in_blocks; ++block) {
                Vec<T> value = {};
                if (at >= 0) value = load_block(image + at * job.in_channels, block);
                tile[(tap * in_blocks + block) * TILE + p] = value > Vec<T>{} ? value : Vec<T>{};
            }
        });
    }
    // Write the gradient into image `n` of dx, or 0 if the tile of x was not above 0. Pixels that no tap reads are left.
    void scatter(int n, long begin, long end, const Vec<T> *tile, const Vec<T> *gradient) const {
        T *image = static_cast<T *>(job.dx) + n * l.pixels() * job.in_channels;
        each_pixel(begin, end, [&](int tap, long p, long at) {
            for (int block = 0; block < in_blocks && at >= 0; ++block) {
                const long from = (tap * in_blocks + block) * TILE + p;
                const Vec<T> value = tile[from] > Vec<T>{} ? gradient[from] : Vec<T>{};
                const int left = job.in_channels - block * LANES<T>;
                T *to = image + at * job.in_channels + block * LANES<T>;
                if (left >= LANES<T>) store<T>(to, value, LANES<T>);
                else store<T>(to, value, left);
            }
        });
    }

private:
    Vec<T> load_block(const T *pixel, int block) const {
        const int left = job.in_channels - block * LANES<T>;
        return left >= LANES<T> ? load<T>(pixel + block * LANES<T>, LANES<T>) : load<T>(pixel + block * LANES<T>, left);
    }
};

// Compute y, a blocked map, and its statistics if wanted. The shape's channels are the output channels.
template <class T>
void project_forward(const Shape &shape, const Projection &job, const Item &result) {
    const Layout<T> l(shape);
    Grids<T> grids(l, job);
    const long size = l.out_pixels(), all = long(l.num) * l.padded();
    Aligned<T> means(all), squares(all);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        Arena &arena = Arena::mine();
        arena.reset((job.taps * grids.in_blocks * TILE + 8) * VECTOR_BYTES);
        Vec<T> *tile = arena.take<T>(job.taps * grids.in_blocks * TILE);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n) {
            Vec<T> *y = image_to_write<T>(result.y, 1, l, size, n, nullptr);
            for (long begin = 0; begin < size; begin += TILE) {
                const long end = std::min(size, begin + TILE);
                grids.gather(n, begin, end, tile);
                pointwise<T>(tile, TILE, grids.matrix.data(), l.blocks, grids.rows(), end - begin, y + begin, size);
            }
            const long at = long(n) * l.padded();
            if (result.mean != nullptr) image_statistics<T>(y, l, size, means.data() + at, squares.data() + at);
        }
    });
    if (result.mean != nullptr)
        batch_statistics<T>(means.data(), squares.data(), l, size, static_cast<double *>(result.mean),
                            static_cast<double *>(result.variance));
}

// Compute dx and, if wanted, the weights' gradients.
template <class T>
void project_backward(const Shape &shape, const Projection &job, const Item &result, const Upstream *upstreams) {
    const Layout<T> l(shape);
    Grids<T> grids(l, job);
    const long size = l.out_pixels(), tile_size = job.taps * grids.in_blocks * TILE;
    const long weights_size = job.d_weights[0] == nullptr ? 0 : long(grids.rows()) * l.blocks;
    Aligned<Vec<T>> sums(weights_size * l.chunks() + 1);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        Arena &arena = Arena::mine();
        arena.reset((l.blocks * size + 2 * tile_size + 8) * VECTOR_BYTES);
        Vec<T> *dy = arena.take<T>(l.blocks * size), *tile = arena.take<T>(tile_size), *gradient = arena.take<T>(tile_size);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n) {
            upstream_gradient<T>(l, result, upstreams, n, dy);
            const long image = l.pixels() * job.in_channels * sizeof(T);
            if (l.stride > 1) std::memset(static_cast<char *>(job.dx) + n * image, 0, image);
            for (long begin = 0; begin < size; begin += TILE) {
                const long end = std::min(size, begin + TILE);
                grids.gather(n, begin, end, tile);
                if (weights_size != 0)
                    pointwise_weights<T>(tile, TILE, grids.rows(), dy + begin, size, l.blocks, end - begin,
                                         sums.data() + chunk * weights_size);
                pointwise<T>(dy + begin, size, grids.transposed.data(), job.taps * grids.in_blocks, l.padded(), end - begin,
                             gradient, TILE);
                grids.scatter(n, begin, end, tile, gradient);
            }
        }
    });
    if (weights_size == 0) return;
    grids.each_weight([&](int tap, long at, int row, int out) {  // chunks are added in order
        T sum = T(0);
        for (int chunk = 0; chunk < l.chunks(); ++chunk)
            sum += reinterpret_cast<const T *>(sums.data() + chunk * weights_size)[long(row) * l.padded() + out];
        static_cast<T *>(job.d_weights[tap])[at] = sum;
    });
}

}  // namespace
