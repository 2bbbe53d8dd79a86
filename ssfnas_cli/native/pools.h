// Pools over 3x3 windows with padding 1, which average pooling does not count. The image itself is not padded.
#pragma once

#include <limits>

#include "vectors.h"

namespace {

template <class T, class Visit>
void each_window(const Layout<T> &l, int i, int j, Visit visit) {
    const int top = i * l.stride - 1, left = j * l.stride - 1;
    if (top >= 0 && left >= 0 && top + 3 <= l.height && left + 3 <= l.width) {  // the window lies inside: unrolled
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

// Add the pool's data gradient to g. The first largest value of a window gets all of it, as in torch.
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

}  // namespace
