// The gradient with respect to an item's result: the upstreams that arrive, and the part through the batch's statistics.
#pragma once

#include "vectors.h"

namespace {

// The gradient with respect to image `n` of y, blocked. Each upstream is read once.
template <class T>
void upstream_gradient(const Layout<T> &l, const Item &item, const Upstream *upstreams, int n, Vec<T> *result) {
    const long size = l.out_pixels();
    for (int block = 0; block < l.blocks; ++block, result += size)
        for (int k = 0; k < item.num_upstream; ++k) {
            const Upstream &up = upstreams[item.first_upstream + k];
            const T sample = up.sample == nullptr ? T(1) : static_cast<const T *>(up.sample)[n];
            const Vec<T> scale = channel_vector<T>(up.scale, block, l.channels) * sample;
            const auto each = [&](auto visit) { each_of_block<T>(up.g, up.blocked, l, size, n, block, visit); };
            if (k > 0) {
                each([result, scale](long p, Vec<T> g) { result[p] += scale * g; });
            } else if (item.slope == nullptr) {
                each([result, scale](long p, Vec<T> g) { result[p] = scale * g; });
            } else {
                const Vec<T> *y = block_of<T>(item.y, l, size, n, block);
                const Vec<T> centre = channel_vector<T>(item.centre, block, l.channels);
                const Vec<T> slope = channel_vector<T>(item.slope, block, l.channels);
                const Vec<T> offset = channel_vector<T>(item.offset, block, l.channels);
                each([=](long p, Vec<T> g) { result[p] = scale * g + (slope * (y[p] - centre) + offset); });
            }
        }
}

}  // namespace
