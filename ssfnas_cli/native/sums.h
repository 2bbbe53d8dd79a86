// The sums of terms at the targets.
#pragma once

#include "statistics.h"
#include "threads.h"

namespace {

// The sum of the terms [first, last) over some pixels of one block of image `n`.
template <class T>
void sum_of_terms(const Layout<T> &l, const Term *first, const Term *last, int n, long begin, long count, int block, Vec<T> *total) {
    for (const Term *term = first; term != last; ++term) {
        const T sample = term->sample == nullptr ? T(1) : static_cast<const T *>(term->sample)[n];
        if (sample == T(0)) continue;
        const Vec<T> scale = channel_vector<T>(term->scale, block, l.channels) * sample;
        const Vec<T> centre = channel_vector<T>(term->centre, block, l.channels);
        const Vec<T> shift = channel_vector<T>(term->shift, block, l.channels) * sample;
        const Pixels<T> y(term->y, l.channels, l.pixels(), n, begin, block);
        const bool wraps = term + 1 == last;
        const Pixels<T> next((wraps ? first : term + 1)->y, l.channels, l.pixels(), n, begin + (wraps ? TILE : 0), block);
        for (long p = 0; p < count; ++p) {
            next.fetch(p);
            total[p] += scale * (y[p] - centre) + shift;
        }
    }
}

// Add every term to its target's output. Terms of one target follow one another. The shape is the outputs'. If add[target]
// is 0, the output starts at zero.
template <class T>
void add_terms(const Shape &shape, int num_terms, const Term *terms, int num_targets, void *const *outs, const int *add) {
    const Layout<T> l(shape);
    std::vector<const Term *> first(num_targets + 1, terms + num_terms);  // of each target
    for (const Term *term = terms + num_terms; term-- != terms;) first[term->target] = term;
    for (int target = num_targets; target-- > 0;) first[target] = std::min(first[target], first[target + 1]);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        Arena &arena = Arena::mine();
        arena.reset((l.blocks * PITCH + 8) * VECTOR_BYTES);
        Vec<T> *const totals = arena.take<T>(l.blocks * PITCH);
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            for (int target = 0; target < num_targets; ++target)
                each_tile(l.pixels(), [&](long begin, long count) {
                    for (int block = 0; block < l.blocks; ++block) {
                        const Pixels<T> out(outs[target], l.channels, l.pixels(), n, begin, block);
                        Vec<T> *total = totals + block * PITCH;
                        for (long p = 0; p < count; ++p) total[p] = add[target] ? out[p] : Vec<T>{};
                        sum_of_terms<T>(l, first[target], first[target + 1], n, begin, count, block, total);
                    }
                    write_tile<T>(totals, PITCH, l, outs[target], l.pixels(), n, begin, count);
                });
    });
}

// For every term, the sums that its backward pass needs. `gs` are the gradients with respect to the targets.
template <class T>
void term_sums(const Shape &shape, int num_terms, const Term *terms, const void *const *gs) {
    const Layout<T> l(shape);
    const long size = l.pixels(), per_term = long(l.num) * l.padded();
    Aligned<double> parts(per_term * num_terms * 2);
    for_each_chunk(l.chunks(), shape.threads, [&](int chunk) {
        for (int n = l.chunk_begin(chunk); n < l.chunk_begin(chunk + 1); ++n)
            each_tile(size, [&](long begin, long count) {
                for (int k = 0; k < num_terms; ++k) {
                    const Term &term = terms[k];
                    const T sample = term.sample == nullptr ? T(1) : static_cast<const T *>(term.sample)[n];
                    if (sample == T(0)) continue;
                    double *part = parts.data() + 2 * k * per_term + long(n) * l.padded();
                    const bool last = k + 1 == num_terms;
                    const void *next = terms[last ? 0 : k + 1].y;
                    for (int block = 0; block < l.blocks; ++block)
                        add_products<T>(Pixels<T>(gs[term.target], l.channels, size, n, begin, block),
                                        Pixels<T>(term.y, l.channels, size, n, begin, block),
                                        Pixels<T>(next, l.channels, size, n, begin + (last ? TILE : 0), block),
                                        channel_vector<T>(term.centre, block, l.channels), count, sample,
                                        part + block * LANES<T>, part + per_term + block * LANES<T>);
                }
            });
    });
    for_each_chunk(num_terms, shape.threads, [&](int k) {
        add_images<T>(parts.data() + 2 * k * per_term, l, terms[k].sum);
        add_images<T>(parts.data() + (2 * k + 1) * per_term, l, terms[k].dot);
    });
}

}  // namespace
