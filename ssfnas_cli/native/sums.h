// The sums of terms at the targets.
#pragma once

#include "statistics.h"
#include "threads.h"

namespace {

// Add every term to its target's output. The shape is the outputs'. If add[target] is 0, the output starts at zero.
template <class T>
void add_terms(const Shape &shape, int num_terms, const Term *terms, int num_targets, void *const *outs, const int *add) {
    const Layout<T> l(shape);
    const long size = l.pixels();
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        Arena &arena = Arena::mine();
        arena.reset((l.blocks * size + 8) * VECTOR_BYTES);
        Vec<T> *room = arena.take<T>(l.blocks * size);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int target = 0; target < num_targets; ++target) {
                Vec<T> *total = image_to_write<T>(outs[target], 0, l, size, n, room);
                if (add[target]) blocked_image<T>(outs[target], 0, l, size, n, total);
                else std::memset(static_cast<void *>(total), 0, l.blocks * size * VECTOR_BYTES);
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
    });
}

// For every term, the sums that its backward pass needs. `gs` are the gradients with respect to the targets.
template <class T>
void term_sums(const Shape &shape, int num_terms, const Term *terms, const void *const *gs) {
    const Layout<T> l(shape);
    const long size = l.pixels(), per_term = long(l.num) * l.padded();
    Aligned<double> parts(per_term * num_terms * 2);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        Arena &arena = Arena::mine();
        arena.reset((2 * l.blocks * size + 8) * VECTOR_BYTES);
        Vec<T> *g_room = arena.take<T>(l.blocks * size), *y_room = arena.take<T>(l.blocks * size);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n) {
            const Vec<T> *g = nullptr;
            int held = -1;
            for (int k = 0; k < num_terms; ++k) {
                const Term &term = terms[k];
                if (term.target != held) g = blocked_image<T>(gs[term.target], 0, l, size, n, g_room);
                held = term.target;
                const Vec<T> *y = blocked_image<T>(term.y, term.blocked, l, size, n, y_room);
                const T sample = term.sample == nullptr ? T(1) : static_cast<const T *>(term.sample)[n];
                double *part = parts.data() + 2 * k * per_term + long(n) * l.padded();
                for (int block = 0; block < l.blocks; ++block)
                    add_products<T>(g + block * size, y + block * size, channel_vector<T>(term.centre, block, l.channels),
                                    size, sample, part + block * LANES<T>, part + per_term + block * LANES<T>);
            }
        }
    });
    for_each_chunk(num_terms, shape.threads, [&](int k) {
        add_images<T>(parts.data() + 2 * k * per_term, l, terms[k].sum);
        add_images<T>(parts.data() + (2 * k + 1) * per_term, l, terms[k].dot);
    });
}

}  // namespace
