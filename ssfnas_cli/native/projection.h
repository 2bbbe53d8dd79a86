// Projections: ReLU, and 1x1 convolutions on the pixels of one grid or of two.
#pragma once

#include <vector>

#include "pointwise.h"
#include "statistics.h"
#include "threads.h"
#include "upstream.h"

namespace {

// The grid of pixels that each tap reads, and the taps' weights in the order in which the loops read them.
template <class T>
struct Grids {
    const Layout<T> &l;  // its channels are the output channels
    const Projection &job;
    int in_blocks;
    Aligned<Vec<T>> matrix, transposed;  // [taps * in][out] and [out][taps * in], blocks filled up with zeros

    Grids(const Layout<T> &layout, const Projection &projection)
        : l(layout), job(projection), in_blocks((projection.in_channels + LANES<T> - 1) / LANES<T>),
          matrix(matrix_size<T>(rows(), layout.channels)), transposed(matrix_size<T>(layout.channels, in_width())) {
        T *m = reinterpret_cast<T *>(matrix.data()), *t = reinterpret_cast<T *>(transposed.data());
        each_weight([&](int tap, long at, int row, int out) {
            const T value = static_cast<const T *>(job.weights[tap])[at];
            m[long(row) * l.padded() + out] = value;
            t[long(out) * rows() + row] = value;
        });
        pack_rest<T>(matrix.data(), rows(), l.channels);
        pack_rest<T>(transposed.data(), l.channels, in_width());
    }
    int rows() const { return job.taps * in_blocks * LANES<T>; }
    int in_width() const { return job.taps == 1 ? job.in_channels : rows(); }  // input channels, up to the last tap's rest

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

    // Read ReLU(x) of image `n` for the output's pixels [begin, end) into tile, [taps * in-blocks][PITCH].
    void gather(int n, long begin, long end, Vec<T> *tile) const {
        const auto *image = static_cast<const Stored<T> *>(job.x) + n * l.pixels() * job.in_channels;
        each_pixel(begin, end, [&](int tap, long p, long at) {
            Vec<T> *to = tile + tap * in_blocks * PITCH + p;
            each_block([&](int block, int lanes) {
                const auto *from = image + at * job.in_channels + block * LANES<T>;
                __builtin_prefetch(from + long(TILE) * job.in_channels);
                to[block * PITCH] = at < 0 ? Vec<T>{} : positive<T>(load<T>(from, lanes));
            });
        });
    }
    // Write the gradient into image `n` of dx, or 0 if the tile of x was not above 0. Pixels that no tap reads are left.
    void scatter(int n, long begin, long end, const Vec<T> *tile, Vec<T> *gradient) const {
        if (job.taps == 1 && l.stride == 1) {
            Layout<T> wide = l;
            wide.channels = job.in_channels, wide.blocks = in_blocks;
            for (long v = 0; v < in_blocks * PITCH; ++v) gradient[v] = tile[v] > Vec<T>{} ? gradient[v] : Vec<T>{};
            write_tile<T>(gradient, PITCH, wide, job.dx, l.pixels(), n, begin, end - begin);
            return;
        }
        auto *image = static_cast<Stored<T> *>(job.dx) + n * l.pixels() * job.in_channels;
        each_pixel(begin, end, [&](int tap, long p, long at) {
            if (at < 0) return;
            each_block([&](int block, int lanes) {
                const long from = (tap * in_blocks + block) * PITCH + p;
                store<T>(image + at * job.in_channels + block * LANES<T>,
                         tile[from] > Vec<T>{} ? gradient[from] : Vec<T>{}, lanes);
            });
        });
    }

private:
    // Call visit(block, its lanes); a constant number of them is loaded faster.
    template <class Visit>
    void each_block(const Visit &visit) const {
        const int whole = job.in_channels / LANES<T>;
        for (int block = 0; block < whole; ++block) visit(block, LANES<T>);
        if (whole < in_blocks) visit(whole, job.in_channels - whole * LANES<T>);
    }
};

// Compute y and its statistics if wanted. The shape's channels are the output channels.
template <class T>
void project_forward(const Shape &shape, const Projection &job, const Item &result) {
    const Layout<T> l(shape);
    Grids<T> grids(l, job);
    const long size = l.out_pixels(), all = long(l.num) * l.padded(), tile_size = job.taps * grids.in_blocks * PITCH;
    Aligned<T> means(all), squares(all);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        const Tiles tiles;
        Arena &arena = Arena::mine();
        arena.reset((tile_size + l.blocks * PITCH + 8) * VECTOR_BYTES);
        Vec<T> *tile = arena.take<T>(tile_size), *y = arena.take<T>(l.blocks * PITCH);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            each_tile(size, [&](long begin, long count) {
                const long at = long(n) * l.padded();
                grids.gather(n, begin, begin + count, tile);
                pointwise<T>(tile, PITCH, grids.matrix.data(), grids.rows(), l.channels, count, y, PITCH);
                if (result.mean != nullptr)
                    add_to_statistics<T>(y, PITCH, l.blocks, count, begin, means.data() + at, squares.data() + at);
                write_tile<T>(y, PITCH, l, result.y, size, n, begin, count);
            });
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
    const long size = l.out_pixels(), tile_size = job.taps * grids.in_blocks * PITCH;
    const WeightGradient<T> gradient{grids.rows(), l.channels};
    const long weights_size = job.d_weights[0] == nullptr ? 0 : gradient.size();
    Aligned<Vec<T>> sums(weights_size * l.chunks() + 1);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        const Tiles tiles;
        Arena &arena = Arena::mine();
        arena.reset((l.blocks * PITCH + 2 * tile_size + 8) * VECTOR_BYTES);
        Vec<T> *dy = arena.take<T>(l.blocks * PITCH), *tile = arena.take<T>(tile_size), *d_tile = arena.take<T>(tile_size);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n) {
            const long image = l.pixels() * job.in_channels * sizeof(Stored<T>);
            if (l.stride > 1) std::memset(static_cast<char *>(job.dx) + n * image, 0, image);
            each_tile(size, [&](long begin, long count) {
                upstream_gradient<T>(l, result, upstreams, n, begin, count, dy, PITCH);
                grids.gather(n, begin, begin + count, tile);
                if (weights_size != 0)
                    gradient.add(tile, PITCH, dy, PITCH, count, sums.data() + chunk * weights_size);
                pointwise<T>(dy, PITCH, grids.transposed.data(), l.channels, grids.in_width(), count, d_tile, PITCH);
                grids.scatter(n, begin, begin + count, tile, d_tile);
            });
        }
    });
    if (weights_size == 0) return;
    add_chunks<T>(sums.data(), weights_size, l.chunks());
    grids.each_weight([&](int tap, long at, int row, int out) {
        static_cast<T *>(job.d_weights[tap])[at] = gradient.at(sums.data(), row, out);
    });
}

}  // namespace
