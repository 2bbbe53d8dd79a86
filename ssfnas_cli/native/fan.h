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

// What one thread needs for one image.
template <class T>
struct Workspace {
    const Layout<T> &l;
    int pad;  // the width of the border around the input
    long padded_pixels;
    int pitch;
    const Vec<T> *raw;                // x
    Vec<T> *input, *middle, *result;  // ReLU(x) with its border, the depthwise result, the gradient of the pointwise one
    Vec<T> *middle_gradient;          // of the depthwise result, with a border
    Vec<T> *gradient;                 // with respect to the input
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
        room = arena.take<T>(b * l.pixels());
        input = arena.take<T>(b * padded_pixels);
        middle = arena.take<T>(b * l.out_pixels());
        result = arena.take<T>(b * l.out_pixels());
        std::memset(static_cast<void *>(input), 0, b * padded_pixels * VECTOR_BYTES);
        if (backward) {
            middle_gradient = arena.take<T>(b * gradient_padded_pixels);
            gradient_room = arena.take<T>(b * l.pixels());
            std::memset(static_cast<void *>(middle_gradient), 0, b * gradient_padded_pixels * VECTOR_BYTES);
        }
    }

    void read(const Group &group, int n) {
        raw = blocked_image<T>(group.x, group.blocked, l, l.pixels(), n, room);
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
    // Set `gradient`, where the gradient with respect to image `n` of the input is summed, to zeros.
    void begin_gradient(const Group &group, int n) {
        gradient = image_to_write<T>(group.dx, group.blocked, l, l.pixels(), n, gradient_room);
        std::memset(static_cast<void *>(gradient), 0, l.blocks * l.pixels() * VECTOR_BYTES);
    }
    Vec<T> *gradient_origin(int block) const { return middle_gradient + block * gradient_padded_pixels + pad * gradient_pitch + pad; }

    void convolve(const Item &item, const Vec<T> *weights) {  // input -> middle
        const auto ops = Depthwise<T>::find(item.kernel, item.dilation, l.stride);
        for (int block = 0; block < l.blocks; ++block)
            ops.forward(first_tap(item, block), pitch, l.out_height, l.out_width,
                        weights + long(block) * item.kernel * item.kernel, middle + block * l.out_pixels());
    }

private:
    Vec<T> *room, *gradient_room;
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
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        Workspace<T> w(l, pad, false);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int g = 0; g < num_groups; ++g) {
                w.read(groups[g], n);
                for (int k = groups[g].first_item; k < groups[g].first_item + groups[g].num_items; ++k) {
                    const Item &item = items[k];
                    Vec<T> *y = image_to_write<T>(item.y, 1, l, l.out_pixels(), n, nullptr);
                    if (item.kind == SEPARABLE) {
                        w.convolve(item, packed.store.data() + packed.depthwise[k]);
                        pointwise<T>(w.middle, l.out_pixels(), packed.store.data() + packed.matrix[k], l.blocks,
                                     l.channels, l.out_pixels(), y, l.out_pixels());
                    } else {
                        pool<T>(item.kind, w.raw, l, y);
                    }
                    const long at = k * per_item + long(n) * l.padded();
                    if (item.mean != nullptr) image_statistics<T>(y, l, l.out_pixels(), means.data() + at, squares.data() + at);
                }
            }
    });
    for_each_chunk(num_items, shape.threads, [&](int k) {
        if (items[k].mean != nullptr)
            batch_statistics<T>(means.data() + k * per_item, squares.data() + k * per_item, l, l.out_pixels(),
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
            matrix.push_back(size), size += wanted ? long(l.padded()) * l.blocks : 0;
        }
    }
    void write(const Layout<T> &l, const Item &item, int k, const Vec<T> *sums) const {  // chunks are added in order
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
    for (int i = 0; i < l.out_height; ++i)  // from the gradient with respect to y to that of the depthwise result
        pointwise<T>(w.result + long(i) * l.out_width, l.out_pixels(), transposed, l.blocks, l.channels, l.out_width,
                     w.gradient_origin(0) + long(i) * w.gradient_pitch, w.gradient_padded_pixels);
    if (d_matrix != nullptr) {
        w.convolve(item, depthwise);
        pointwise_weights<T>(w.middle, l.out_pixels(), l.padded(), w.result, l.out_pixels(), l.blocks, l.out_pixels(), d_matrix);
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

// Mask the gradient by the ReLU, add the gradients of the pools and identities, and write it.
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
        upstream_gradient<T>(l, item, upstreams, n, w.result);
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
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        Workspace<T> w(l, pad, true);
        Vec<T> *mine = weight_sums.data() + chunk * sums.size;
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int g = 0; g < num_groups; ++g) {
                w.read(groups[g], n);
                w.begin_gradient(groups[g], n);
                for (int k = groups[g].first_item; k < groups[g].first_item + groups[g].num_items; ++k) {
                    const Item &item = items[k];
                    if (item.kind != SEPARABLE) continue;
                    upstream_gradient<T>(l, item, upstreams, n, w.result);
                    const bool wanted = item.d_depthwise != nullptr;
                    separable_backward<T>(w, item, packed.store.data() + packed.depthwise[k],
                                          packed.store.data() + packed.transposed[k],
                                          wanted ? mine + sums.depthwise[k] : nullptr,
                                          wanted ? mine + sums.matrix[k] : nullptr);
                }
                double *part = parts.data() + 2 * g * per_group + long(n) * l.padded();
                finish_group<T>(w, groups[g], items, upstreams, n, part, part + per_group);
            }
    });
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
