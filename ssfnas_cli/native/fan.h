// The items of a fan: convolutions and pools, forward and backward.
#pragma once

#include <vector>

#include "depthwise.h"
#include "pointwise.h"
#include "pools.h"
#include "statistics.h"
#include "threads.h"
#include "upstream.h"

namespace {

// The items' weights in the order in which the loops read them.
template <class T>
struct Packed {
    std::vector<long> depthwise, matrix, transposed;  // where the weights of each item begin in `store`
    Aligned<Vec<T>> store;

    Packed(const Layout<T> &l, int num_items, const Item *items) : store(total(l, num_items, items)) {
        long at = 0;
        for (int k = 0; k < num_items; ++k) {
            const Item &item = items[k];
            const int taps = item.kernel * item.kernel;
            depthwise.push_back(at), at += long(taps) * l.blocks;
            matrix.push_back(at), at += matrix_size<T>(l.channels, l.channels);
            transposed.push_back(at), at += matrix_size<T>(l.channels, l.channels);
            if (item.kind == SEPARABLE) fill(l, item, taps, k);
        }
    }

private:
    static long total(const Layout<T> &l, int num_items, const Item *items) {
        long sum = 1;
        for (int k = 0; k < num_items; ++k) sum += long(items[k].kernel) * items[k].kernel * l.blocks + 2 * matrix_size<T>(l.channels, l.channels);
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
        pack_rest<T>(store.data() + matrix[k], l.channels, l.channels);
        pack_rest<T>(store.data() + transposed[k], l.channels, l.channels);
    }
};

// What one thread needs for one image.
template <class T>
struct Workspace {
    const Layout<T> &l;
    int pad;  // the width of the border around the input
    long padded_pixels;
    int pitch;
    int rows;   // of a tile of the output
    long tile;  // vectors of one of its blocks: odd, so that the blocks do not lie in the same lines of the cache
    Vec<T> *raw;                      // x, for pools
    Vec<T> *input, *middle, *result;  // ReLU(x) with its border; tiles of the depthwise result, and of y or its gradient
    Vec<T> *middle_gradient;          // of the depthwise result, with a border
    Vec<T> *gradient;                 // with respect to the input
    long gradient_padded_pixels;
    int gradient_pitch;

    Workspace(const Layout<T> &layout, int pad_, bool backward, bool pools) : l(layout), pad(pad_) {
        pitch = l.width + 2 * pad;
        padded_pixels = long(l.height + 2 * pad) * pitch;
        rows = l.tile_rows(), tile = (long(rows) * l.out_width) | 1;
        gradient_pitch = l.out_width + 2 * pad;
        gradient_padded_pixels = long(l.out_height + 2 * pad) * gradient_pitch;
        const long b = l.blocks, raw_pixels = pools ? l.pixels() : 0;
        const long result_pixels = pools ? std::max(tile, l.out_pixels()) : tile;  // the gradients of pools are not cut into tiles
        const long vectors = b * (raw_pixels + padded_pixels + tile + result_pixels +
                                  (backward ? gradient_padded_pixels + l.pixels() : 0));
        Arena &arena = Arena::mine();
        arena.reset((vectors + 8) * VECTOR_BYTES);
        raw = pools ? arena.take<T>(b * raw_pixels) : nullptr;
        input = arena.take<T>(b * padded_pixels);
        middle = arena.take<T>(b * tile);
        result = arena.take<T>(b * result_pixels);
        clear_border(input, l.height, l.width);
        if (backward) {
            middle_gradient = arena.take<T>(b * gradient_padded_pixels);
            gradient = arena.take<T>(b * l.pixels());
            clear_border(middle_gradient, l.out_height, l.out_width);
        }
    }
    // Set the border around the maps of all blocks to 0. What it surrounds is always written before it is read.
    void clear_border(Vec<T> *map, int height, int width) const {
        const long line = width + 2 * pad;
        const auto clear = [](Vec<T> *from, long count) { std::memset(static_cast<void *>(from), 0, count * VECTOR_BYTES); };
        for (int block = 0; block < l.blocks; ++block, map += (height + 2 * pad) * line) {
            clear(map, pad * line + pad);  // up to the first pixel; then what is between the rows
            for (int y = 1; y < height; ++y) clear(map + (y + pad) * line - pad, 2 * pad);
            clear(map + (height + pad) * line - pad, pad * line + pad);
        }
    }
    // Begin with image `n` of a group's input. Its rows are read by `need`, just before they are used.
    void begin(const Group &group, int n) {
        group_ = &group, image_ = n, rows_read_ = 0;
        if (raw == nullptr) return;
        for (int block = 0; block < l.blocks; ++block) {
            const Pixels<T> from(group.x, l.channels, l.pixels(), n, 0, block);
            for (long p = 0; p < l.pixels(); ++p) raw[block * l.pixels() + p] = from[p];
        }
    }
    // Have the rows of the input before `end`.
    void need(int end) {
        end = std::min(end, l.height);
        if (end <= rows_read_) return;
        for (int block = 0; block < l.blocks; ++block) {
            const Vec<T> scale = channel_vector<T>(group_->scale, block, l.channels, T(1));
            const Vec<T> shift = channel_vector<T>(group_->shift, block, l.channels);
            for (int y = rows_read_; y < end; ++y) {
                const Pixels<T> from(group_->x, l.channels, l.pixels(), image_, long(y) * l.width, block);
                Vec<T> *to = input + block * padded_pixels + long(y + pad) * pitch + pad;
                for (int x = 0; x < l.width; ++x) {
                    from.fetch(x + TILE);
                    to[x] = positive<T>(from[x] * scale + shift);
                }
            }
        }
        rows_read_ = end;
    }
    // Where tap (0, 0) of the output's row `row` begins.
    const Vec<T> *first_tap(const Item &item, int block, int row = 0) const {
        const int border = pad - item.dilation * (item.kernel - 1) / 2;
        return input + block * padded_pixels + (border + row * l.stride) * pitch + border;
    }
    Vec<T> *gradient_origin(int block) const { return middle_gradient + block * gradient_padded_pixels + pad * gradient_pitch + pad; }

    // Call visit(first row, rows, first pixel, pixels) for the tiles of the output.
    template <class Visit>
    void each_row_tile(const Visit &visit) const {
        for (int row = 0; row < l.out_height; row += rows) {
            const int count = std::min(rows, l.out_height - row);
            visit(row, count, long(row) * l.out_width, long(count) * l.out_width);
        }
    }
    void convolve(const Item &item, const Vec<T> *weights, int row, int count) {  // input -> middle
        const auto ops = Depthwise<T>::find(item.kernel, item.dilation, l.stride);
        need((row + count - 1) * l.stride + pad + 1);
        for (int block = 0; block < l.blocks; ++block)
            ops.forward(first_tap(item, block, row), pitch, count, l.out_width,
                        weights + long(block) * item.kernel * item.kernel, middle + block * tile);
    }

private:
    const Group *group_ = nullptr;
    int image_ = 0, rows_read_ = 0;
};

template <class T>
bool has_pools(int num_items, const Item *items) {
    return std::any_of(items, items + num_items, [](const Item &item) { return item.kind != SEPARABLE; });
}

template <class T>
int largest_pad(int num_items, const Item *items) {
    int pad = 0;
    for (int k = 0; k < num_items; ++k)
        if (items[k].kind == SEPARABLE) pad = std::max(pad, items[k].dilation * (items[k].kernel - 1) / 2);
    return pad;
}

template <class T>
void separable_forward(Workspace<T> &w, const Item &item, const Vec<T> *depthwise, const Vec<T> *matrix, int n, T *mean, T *squares) {
    const Layout<T> &l = w.l;
    w.each_row_tile([&](int row, int rows, long begin, long count) {
        w.convolve(item, depthwise, row, rows);
        pointwise<T>(w.middle, w.tile, matrix, l.channels, l.channels, count, w.result, w.tile);
        if (item.mean != nullptr) add_to_statistics<T>(w.result, w.tile, l.blocks, count, begin, mean, squares);
        write_tile<T>(w.result, w.tile, l, item.y, l.out_pixels(), n, begin, count);
    });
}

template <class T>
void groups_forward(const Shape &shape, int num_groups, const Group *groups, int num_items, const Item *items) {
    const Layout<T> l(shape);
    Packed<T> packed(l, num_items, items);
    const long per_item = long(l.num) * l.padded(), size = l.out_pixels();
    Aligned<T> means(per_item * num_items), squares(per_item * num_items);
    const int pad = largest_pad<T>(num_items, items);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        const Tiles tiles;
        Workspace<T> w(l, pad, false, has_pools<T>(num_items, items));
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int g = 0; g < num_groups; ++g) {
                w.begin(groups[g], n);
                for (int k = groups[g].first_item; k < groups[g].first_item + groups[g].num_items; ++k) {
                    const Item &item = items[k];
                    const long at = k * per_item + long(n) * l.padded();
                    if (item.kind == SEPARABLE) {
                        separable_forward<T>(w, item, packed.store.data() + packed.depthwise[k],
                                             packed.store.data() + packed.matrix[k], n, means.data() + at, squares.data() + at);
                        continue;
                    }
                    pool<T>(item.kind, w.raw, l, w.result);
                    if (item.mean != nullptr)
                        add_to_statistics<T>(w.result, size, l.blocks, size, 0, means.data() + at, squares.data() + at);
                    write_tile<T>(w.result, size, l, item.y, size, n, 0, size);
                }
            }
    });
    for_each_chunk(num_items, shape.threads, [&](int k) {
        if (items[k].mean != nullptr)
            batch_statistics<T>(means.data() + k * per_item, squares.data() + k * per_item, l, size,
                                static_cast<double *>(items[k].mean), static_cast<double *>(items[k].variance));
    });
}

// The sums of weight gradients: one set for each chunk.
template <class T>
struct WeightSums {
    std::vector<long> depthwise, matrix;
    long size = 0;

    WeightSums(const Layout<T> &l, int num_items, const Item *items) {
        for (int k = 0; k < num_items; ++k) {
            const bool wanted = items[k].d_depthwise != nullptr;
            depthwise.push_back(size), size += wanted ? long(items[k].kernel) * items[k].kernel * l.blocks : 0;
            matrix.push_back(size), size += wanted ? WeightGradient<T>{l.channels, l.channels}.size() : 0;
        }
    }
    void write(const Layout<T> &l, const Item &item, int k, const Vec<T> *sums) const {
        const WeightGradient<T> gradient{l.channels, l.channels};
        const int taps = item.kernel * item.kernel;
        T *dw = static_cast<T *>(item.d_depthwise), *pw = static_cast<T *>(item.d_pointwise);
        const T *d = reinterpret_cast<const T *>(sums + depthwise[k]);
        for (int c = 0; c < l.channels; ++c) {
            for (int tap = 0; tap < taps; ++tap) dw[c * taps + tap] = d[(c / LANES<T> * taps + tap) * LANES<T> + c % LANES<T>];
            for (int o = 0; o < l.channels; ++o) pw[long(o) * l.channels + c] = gradient.at(sums + matrix[k], c, o);
        }
    }
};

// From the gradient with respect to y to that of the depthwise result, and the pointwise weights' gradient.
template <class T>
void pointwise_backward(Workspace<T> &w, const Item &item, const Upstream *upstreams, int n, const Vec<T> *depthwise,
                        const Vec<T> *transposed, Vec<T> *d_matrix) {
    const Layout<T> &l = w.l;
    w.each_row_tile([&](int row, int rows, long begin, long count) {
        upstream_gradient<T>(l, item, upstreams, n, begin, count, w.result, w.tile);
        for (int i = 0; i < rows; ++i)
            pointwise<T>(w.result + long(i) * l.out_width, w.tile, transposed, l.channels, l.channels, l.out_width,
                         w.gradient_origin(0) + long(row + i) * w.gradient_pitch, w.gradient_padded_pixels);
        if (d_matrix == nullptr) return;
        w.convolve(item, depthwise, row, rows);
        WeightGradient<T>{l.channels, l.channels}.add(w.middle, w.tile, w.result, w.tile, count, d_matrix);
    });
}

// Mask the gradient by the ReLU in the rows [begin, end) of a block.
template <class T>
void mask_gradient(Workspace<T> &w, int block, int begin, int end) {
    for (int y = begin; y < end; ++y) {
        const Vec<T> *input = w.input + block * w.padded_pixels + (y + w.pad) * w.pitch + w.pad;
        Vec<T> *g = w.gradient + block * w.l.pixels() + long(y) * w.l.width;
        for (int x = 0; x < w.l.width; ++x) g[x] = select<T>(g[x], Vec<T>{}, input[x] > Vec<T>{});
    }
}

// Write the rows [y, end) of the gradient, and add to the sums over it if they are wanted.
template <class T>
void write_gradient(Workspace<T> &w, const Group &group, int n, int y, int end, double *sum, double *dot) {
    const Layout<T> &l = w.l;
    const long begin = long(y) * l.width, count = long(end - y) * l.width;
    for (int block = 0; group.sum != nullptr && block < l.blocks; ++block)
        add_products<T>(w.gradient + block * l.pixels() + begin,
                        Pixels<T>(group.x, l.channels, l.pixels(), n, begin, block),
                        Pixels<T>(group.x, l.channels, l.pixels(), n, begin + count, block),
                        channel_vector<T>(group.centre, block, l.channels), count, 1.0, sum + block * LANES<T>,
                        dot + block * LANES<T>);
    write_tile<T>(w.gradient + begin, l.pixels(), l, group.dx, l.pixels(), n, begin, count);
}

// Through the depthwise convolution, tile by tile: add to its weights' gradient, and to the gradient with respect to the
// input, which the first item begins. `finish(first row, last row)` takes the rows as they are done.
template <class T, class Finish>
void depthwise_backward(Workspace<T> &w, const Item &item, const Vec<T> *depthwise, bool first, Vec<T> *d_depthwise, const Finish &finish) {
    const Layout<T> &l = w.l;
    const auto ops = Depthwise<T>::find(item.kernel, item.dilation, l.stride);
    const int taps = item.kernel * item.kernel;
    w.need(l.height);
    w.each_row_tile([&](int row, int rows, long, long) {
        const int begin = row * l.stride, end = std::min(l.height, (row + rows) * l.stride);
        for (int block = 0; block < l.blocks; ++block) {
            const Vec<T> *dt = w.gradient_origin(block);
            if (d_depthwise != nullptr)
                ops.weights(w.first_tap(item, block, row), w.pitch, dt + long(row) * w.gradient_pitch, w.gradient_pitch, rows,
                            l.out_width, d_depthwise + long(block) * taps);
            Vec<T> *gradient = w.gradient + block * l.pixels();
            if (first) std::memset(static_cast<void *>(gradient + long(begin) * l.width), 0, long(end - begin) * l.width * VECTOR_BYTES);
            ops.transposed(dt, w.gradient_pitch, begin, end, l.width, depthwise + long(block) * taps, gradient);
        }
        finish(begin, end);
    });
}

// Mask the whole gradient, add those of the pools and identities, and write it.
template <class T>
void pools_backward(Workspace<T> &w, const Group &group, const Item *items, const Upstream *upstreams, int n, double *sum, double *dot) {
    const Layout<T> &l = w.l;
    w.need(l.height);
    for (int block = 0; block < l.blocks; ++block) mask_gradient<T>(w, block, 0, l.height);
    for (int k = group.first_item; k < group.first_item + group.num_items; ++k) {
        const Item &item = items[k];
        if (item.kind == SEPARABLE) continue;
        upstream_gradient<T>(l, item, upstreams, n, 0, l.out_pixels(), w.result, l.out_pixels());
        if (item.kind == IDENTITY)
            for (long v = 0; v < l.blocks * l.pixels(); ++v) w.gradient[v] += w.result[v];
        else
            pool_transposed<T>(item.kind, w.raw, w.result, l, w.gradient);
    }
    write_gradient<T>(w, group, n, 0, l.height, sum, dot);
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
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        const Tiles tiles;
        Workspace<T> w(l, pad, true, has_pools<T>(num_items, items));
        Vec<T> *mine = weight_sums.data() + chunk * sums.size;
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int g = 0; g < num_groups; ++g) {
                const Group &group = groups[g];
                const int end = group.first_item + group.num_items;
                double *sum = parts.data() + 2 * g * per_group + long(n) * l.padded(), *dot = sum + per_group;
                const bool pools = has_pools<T>(group.num_items, items + group.first_item);
                w.begin(group, n);
                bool first = true;
                for (int k = group.first_item; k < end; ++k) {
                    if (items[k].kind != SEPARABLE) continue;
                    const bool wanted = items[k].d_depthwise != nullptr, last = k + 1 == end && !pools;
                    const Vec<T> *depthwise = packed.store.data() + packed.depthwise[k];
                    pointwise_backward<T>(w, items[k], upstreams, n, depthwise, packed.store.data() + packed.transposed[k],
                                          wanted ? mine + sums.matrix[k] : nullptr);
                    depthwise_backward<T>(w, items[k], depthwise, first, wanted ? mine + sums.depthwise[k] : nullptr,
                                          [&](int y, int y_end) {
                                              if (!last) return;
                                              for (int block = 0; block < l.blocks; ++block) mask_gradient<T>(w, block, y, y_end);
                                              write_gradient<T>(w, group, n, y, y_end, sum, dot);
                                          });
                    first = false;
                }
                if (!pools) continue;
                if (first) std::memset(static_cast<void *>(w.gradient), 0, l.blocks * l.pixels() * VECTOR_BYTES);
                pools_backward<T>(w, group, items, upstreams, n, sum, dot);
            }
    });
    add_chunks<T>(weight_sums.data(), sums.size, l.chunks());
    for_each_chunk(num_items, shape.threads, [&](int k) {
        if (items[k].d_depthwise != nullptr) sums.write(l, items[k], k, weight_sums.data());
    });
    for_each_chunk(num_groups, shape.threads, [&](int g) {
        if (groups[g].sum != nullptr) {
            add_images<T>(parts.data() + 2 * g * per_group, l, groups[g].sum);
            add_images<T>(parts.data() + (2 * g + 1) * per_group, l, groups[g].dot);
        }
    });
}

}  // namespace
