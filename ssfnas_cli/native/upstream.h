// The gradient with respect to an item's result: the upstreams that arrive, and the part through the batch's statistics.
#pragma once

#include "vectors.h"

namespace {

// The gradient with respect to `count` pixels of image `n` of y from pixel `begin`, in blocks of `tile` vectors.
template <class T>
void upstream_gradient(const Layout<T> &l, const Item &item, const Upstream *upstreams, int n, long begin, long count,
                       Vec<T> *result, long tile) {
    const long size = l.out_pixels();
    for (int block = 0; block < l.blocks; ++block, result += tile)
        for (int k = 0; k < item.num_upstream; ++k) {
            const Upstream &up = upstreams[item.first_upstream + k];
            const T sample = up.sample == nullptr ? T(1) : static_cast<const T *>(up.sample)[n];
            const Vec<T> scale = channel_vector<T>(up.scale, block, l.channels) * sample;
            const Pixels<T> g(up.g, l.channels, size, n, begin, block);
            if (k > 0) {
                for (long p = 0; p < count; ++p) result[p] += scale * g[p];
            } else if (item.slope == nullptr) {
                for (long p = 0; p < count; ++p) result[p] = scale * g[p];
            } else {
                const Pixels<T> y(item.y, l.channels, size, n, begin, block);
                const Vec<T> centre = channel_vector<T>(item.centre, block, l.channels);
                const Vec<T> slope = channel_vector<T>(item.slope, block, l.channels);
                const Vec<T> offset = channel_vector<T>(item.offset, block, l.channels);
                for (long p = 0; p < count; ++p) {
                    g.fetch(p + count), y.fetch(p + count);
                    result[p] = scale * g[p] + (slope * (y[p] - centre) + offset);
                }
            }
        }
}

}  // namespace
