// A whole pass of a fan or of a projection, forward or backward, as one call: the kernels of cells.cpp one after the
// other, and between them what batch normalisation (BN) makes of the statistics and sums that they return.
//
// What is fast here, and why: on maps of 8x8 pixels and less, a kernel takes about as long as a few calls of Python or
// torch, and the rows of channels between two kernels took some thirty of those. Now a pass is one call. If several
// ranks share a batch, it asks them between two kernels for what they have (Norms::sum).
//
// normalisation.h has the arithmetic of statistics; for its sake this file is compiled by itself.

#include "passes.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <vector>

#include "cells.h"
#include "layout.h"
#include "normalisation.h"

namespace {

struct FanPass {
    const Shape &shape;
    const Fan &fan;
    const FanCall &call;
    const Sizes sizes;
    const int num_inner;
    std::vector<Item> items;
    Rows centre, term_scale, term_shift, inner_scale, inner_shift;

    FanPass(const Shape &shape_, const Fan &fan_, const FanCall &call_)
        : shape(shape_), fan(fan_), call(call_), sizes(shape_, call_.images),
          num_inner(fan_.num_maps - fan_.num_first), items(fan_.items, fan_.items + fan_.num_maps),
          centre(fan_.num_maps, sizes), term_scale(fan_.num_uses, sizes), term_shift(fan_.num_uses, sizes),
          inner_scale(num_inner, sizes), inner_shift(num_inner, sizes) {
        auto *map = static_cast<Stored<T> *>(call.maps);
        int next = 0;  // weight
        for (Item &item : items) {
            if (item.kind != IDENTITY) item.y = map, map += sizes.map_values;
            if (item.kind != SEPARABLE) continue;
            item.depthwise = call.weights[next], item.pointwise = call.weights[next + 1];
            if (call.d_weights != nullptr)
                item.d_depthwise = call.d_weights[next], item.d_pointwise = call.d_weights[next + 1];
            next += 2;
        }
    }

    bool normed(int k) const { return call.norms.eps[k] >= 0; }
    bool has_norms() const {
        for (int k = 0; k < fan.num_maps; ++k)
            if (normed(k)) return true;
        return false;
    }
    double mean(int k, int c) const { return call.mean[long(k) * sizes.channels + c]; }
    double inverse(int k, int c) const { return call.inverse[long(k) * sizes.channels + c]; }
    double scale(int use, int c) const {
        return static_cast<const T *>(call.scale)[call.scale_per_channel ? long(use) * sizes.channels + c : use];
    }
    double factor(int j, int c) const {  // what the BN before second stage j multiplies by
        return call.gamma == nullptr ? 1.0 : static_cast<const T *>(call.gamma)[long(j) * sizes.channels + c];
    }
    const void *sample(int use) const {
        return call.sample == nullptr ? nullptr : static_cast<const T *>(call.sample) + long(use) * sizes.out.num;
    }

    // A group for each second stage, whose input is the first stage's normalised result.
    std::vector<Group> inner_groups() {
        std::vector<Group> groups(num_inner);
        for (int j = 0; j < num_inner; ++j) {
            const int k = fan.inner[j];
            const T *beta = call.beta == nullptr ? nullptr : static_cast<const T *>(call.beta) + long(j) * sizes.channels;
            const auto scaled = [&](int c) { return factor(j, c) * inverse(k, c); };
            inner_scale.set(j, scaled);
            inner_shift.set(j, [&](int c) { return (beta == nullptr ? 0.0 : double(beta[c])) - mean(k, c) * scaled(c); });
            groups[j].x = items[k].y;
            groups[j].scale = inner_scale[j], groups[j].shift = inner_shift[j];
            groups[j].first_item = j, groups[j].num_items = 1;
        }
        return groups;
    }

    // The terms of the targets' sums. Those of one target follow one another, so that its map is read once.
    std::vector<Term> terms() {
        for (int k = 0; k < fan.num_maps; ++k) centre.set(k, [&](int c) { return mean(k, c); });
        std::vector<Term> terms(fan.num_uses);
        for (int i = 0; i < fan.num_uses; ++i) {
            const int use = fan.by_target[i], k = fan.last_map[use];
            const bool identity = items[k].kind == IDENTITY;
            term_scale.set(use, [&](int c) { return scale(use, c) * inverse(k, c); });
            terms[i].y = identity ? call.x : items[k].y;
            terms[i].scale = term_scale[use], terms[i].centre = centre[k], terms[i].sample = sample(use);
            terms[i].target = fan.target[use];
        }
        return terms;
    }

    void forward() {
        const long row = shape.channels;
        std::vector<double> measured(2 * fan.num_maps * row);
        for (int k = 0; k < fan.num_maps && call.norms.training; ++k)
            if (normed(k)) items[k].mean = &measured[k * row], items[k].variance = &measured[(fan.num_maps + k) * row];
        std::vector<Item> first;  // an identity needs no work
        std::copy_if(items.begin(), items.begin() + fan.num_first, std::back_inserter(first),
                     [](const Item &item) { return item.kind != IDENTITY; });
        Group group{};
        group.x = call.x, group.num_items = int(first.size());
        if (!first.empty()) kernel_groups_forward(&shape, 1, &group, group.num_items, first.data());
        finish_maps(0, fan.num_first, measured);
        if (num_inner > 0) {
            const auto groups = inner_groups();
            kernel_groups_forward(&sizes.out, num_inner, groups.data(), num_inner, &items[fan.num_first]);
            finish_maps(fan.num_first, fan.num_maps, measured);
        }
        auto sums = terms();
        for (int i = 0; i < fan.num_uses && call.shift != nullptr; ++i) {
            const int use = fan.by_target[i];
            const T *shift = static_cast<const T *>(call.shift) + long(use) * sizes.channels;
            term_shift.set(use, [&](int c) { return shift[c]; });
            sums[i].shift = term_shift[use];
        }
        kernel_add_terms(&sizes.out, fan.num_uses, sums.data(), fan.num_targets, call.outs, call.add);
    }

    void finish_maps(int begin, int end, const std::vector<double> &measured) {
        const long width = sizes.channels;
        std::fill(call.mean + begin * width, call.mean + end * width, 0.0);  // which stay so without a BN
        std::fill(call.inverse + begin * width, call.inverse + end * width, 1.0);
        std::vector<int> maps;
        for (int k = begin; k < end; ++k)
            if (normed(k)) maps.push_back(k);
        std::vector<double> mean(maps.size() * width), variance(mean.size());
        for (size_t i = 0; i < maps.size(); ++i) {
            const double *means = &measured[long(maps[i]) * shape.channels];
            merge_images(means, means + long(fan.num_maps) * shape.channels, sizes, &mean[i * width], &variance[i * width]);
        }
        const long count = merge_ranks(call.norms, mean, variance, sizes.count);
        for (size_t i = 0; i < maps.size(); ++i) {
            double *result = call.mean + maps[i] * width;
            std::copy_n(&mean[i * width], width, result);
            finish_statistics(call.norms, maps[i], sizes, count, result, &variance[i * width], call.inverse + maps[i] * width);
        }
    }

    void backward() {
        std::vector<Upstream> upstreams(fan.num_uses + num_inner);
        Rows slope(fan.num_maps, sizes), offset(fan.num_maps, sizes);
        terms_backward(upstreams, slope, offset);
        if (call.dx == nullptr) return;
        const size_t bytes = (num_inner * sizes.map_values * sizeof(Stored<T>) + 64) / 64 * 64;
        const std::unique_ptr<void, void (*)(void *)> inner(num_inner > 0 ? std::aligned_alloc(64, bytes) : nullptr, std::free);
        second_stages_backward(upstreams, slope, offset, static_cast<Stored<T> *>(inner.get()));
        Group group{};
        group.x = call.x, group.num_items = fan.num_first, group.dx = call.dx;
        kernel_groups_backward(&shape, 1, &group, fan.num_first, items.data(), upstreams.data());
    }

    // The gradients with respect to scale and shift, and the upstreams of the branches' last maps.
    void terms_backward(std::vector<Upstream> &upstreams, Rows &slope, Rows &offset) {
        const long row = shape.channels, width = sizes.channels;
        std::vector<double> products(2 * fan.num_uses * row), dots(width);
        std::vector<double> slopes(2 * fan.num_maps * width);
        double *const offsets = &slopes[fan.num_maps * width];
        auto sums = terms();
        for (int i = 0; i < fan.num_uses; ++i)
            sums[i].sum = &products[2 * fan.by_target[i] * row], sums[i].dot = static_cast<double *>(sums[i].sum) + row;
        kernel_term_sums(&sizes.out, fan.num_uses, sums.data(), call.gs);
        for (int use = 0; use < fan.num_uses; ++use) {
            const int k = fan.last_map[use];
            double *d_shift = call.d_shift + use * width, *d_scale = call.d_scale + use * width;
            add_images(&products[2 * use * row], sizes, d_shift);
            add_images(&products[(2 * use + 1) * row], sizes, dots.data());
            for (int c = 0; c < width; ++c) {
                d_scale[c] = dots[c] * inverse(k, c);
                slopes[k * width + c] += slope_of(inverse(k, c), scale(use, c) * dots[c], sizes.count);
                offsets[k * width + c] += offset_of(inverse(k, c), scale(use, c) * d_shift[c], sizes.count);
            }
        }
        if (call.dx != nullptr && has_norms()) average_over_ranks(call.norms, slopes, sizes.count);
        for (int k = 0; k < fan.num_maps; ++k) {
            if (!normed(k)) continue;
            slope.set(k, [&](int c) { return slopes[k * width + c]; });
            offset.set(k, [&](int c) { return offsets[k * width + c]; });
            items[k].centre = centre[k], items[k].slope = slope[k], items[k].offset = offset[k];
        }
        for (int i = 0; i < fan.num_uses; ++i) {
            const int use = fan.by_map[i];
            upstreams[i] = {call.gs[fan.target[use]], term_scale[use], sample(use)};
        }
    }

    // The gradients with respect to gamma and beta, and the upstreams of the first stages before.
    void second_stages_backward(std::vector<Upstream> &upstreams, Rows &slope, Rows &offset, Stored<T> *map) {
        if (num_inner == 0) return;
        const long row = shape.channels, width = sizes.channels;
        std::vector<double> products(2 * num_inner * row), sums(width), dots(width), slopes(2 * num_inner * width);
        double *const offsets = &slopes[num_inner * width];
        auto groups = inner_groups();
        for (int j = 0; j < num_inner; ++j) {
            groups[j].dx = map + j * sizes.map_values, groups[j].centre = items[fan.inner[j]].centre;
            groups[j].sum = &products[2 * j * row], groups[j].dot = &products[(2 * j + 1) * row];
            upstreams[fan.num_uses + j] = {groups[j].dx, groups[j].scale, nullptr};
        }
        kernel_groups_backward(&sizes.out, num_inner, groups.data(), num_inner, &items[fan.num_first], upstreams.data());
        for (int j = 0; j < num_inner; ++j) {
            const int k = fan.inner[j];
            add_images(static_cast<const double *>(groups[j].sum), sizes, sums.data());
            add_images(static_cast<const double *>(groups[j].dot), sizes, dots.data());
            for (int c = 0; c < width; ++c) {
                slopes[j * width + c] = slope_of(inverse(k, c), factor(j, c) * dots[c], sizes.count);
                offsets[j * width + c] = offset_of(inverse(k, c), factor(j, c) * sums[c], sizes.count);
                if (call.d_gamma == nullptr) continue;
                static_cast<T *>(call.d_gamma)[j * width + c] = T(dots[c] * inverse(k, c));
                static_cast<T *>(call.d_beta)[j * width + c] = T(sums[c]);
            }
        }
        average_over_ranks(call.norms, slopes, sizes.count);
        for (int j = 0; j < num_inner; ++j) {
            slope.set(fan.inner[j], [&](int c) { return slopes[j * width + c]; });
            offset.set(fan.inner[j], [&](int c) { return offsets[j * width + c]; });
        }
    }
};

struct ProjectionPass {
    const Shape &shape;
    const ProjectionCall &call;
    const Sizes sizes;
    Item result{};
    Rows rows;  // centre, scale, slope, offset
    std::vector<double> mean, variance;  // of the convolutions' result, [C]

    ProjectionPass(const Shape &shape_, const ProjectionCall &call_)
        : shape(shape_), call(call_), sizes(shape_, 1), rows(4, sizes), mean(sizes.channels), variance(sizes.channels) {
        result.y = call.y;
    }
    double factor(int c) const { return call.gamma == nullptr ? 1.0 : static_cast<const T *>(call.gamma)[c]; }

    Term term() {
        rows.set(0, [&](int c) { return call.mean[c]; });
        rows.set(1, [&](int c) { return call.inverse[c] * factor(c); });
        Term term{};
        term.y = call.y, term.centre = rows[0], term.scale = rows[1], term.shift = call.beta;
        return term;
    }

    void convolve() {
        if (call.norms.training) result.mean = mean.data(), result.variance = variance.data();
        kernel_project_forward(&shape, &call.job, &result);
    }
    void normalise(long count) {  // the values of a channel that mean and variance are of
        std::copy(mean.begin(), mean.end(), call.mean);
        finish_statistics(call.norms, 0, sizes, count, call.mean, variance.data(), call.inverse);
        const Term normalised = term();
        const int add = 0;
        kernel_add_terms(&sizes.out, 1, &normalised, 1, &call.out, &add);
    }

    // The slope and then the offset of every channel.
    std::vector<double> sum_gradients() {
        const int width = sizes.channels;
        std::vector<double> dots(width), slopes(2 * width);
        Term sums = term();
        sums.sum = call.d_beta, sums.dot = dots.data();
        kernel_term_sums(&sizes.out, 1, &sums, &call.g);
        for (int c = 0; c < width; ++c) {
            slopes[c] = slope_of(call.inverse[c], factor(c) * dots[c], sizes.count);
            slopes[width + c] = offset_of(call.inverse[c], factor(c) * call.d_beta[c], sizes.count);
            call.d_gamma[c] = dots[c] * call.inverse[c];
        }
        return slopes;
    }
    void pass_back(const double *slopes) {
        rows.set(2, [&](int c) { return slopes[c]; });
        rows.set(3, [&](int c) { return slopes[sizes.channels + c]; });
        result.centre = rows[0], result.slope = rows[2], result.offset = rows[3], result.num_upstream = 1;
        const Upstream upstream = {call.g, rows[1], nullptr};
        kernel_project_backward(&shape, &call.job, &result, &upstream);
    }
};

// Several projections to maps of one size. If several ranks share the batch, they are asked once for all of them.
struct ProjectionsPass {
    std::vector<ProjectionPass> passes;

    ProjectionsPass(int num, const Shape *shapes, const ProjectionCall *calls) {
        passes.reserve(num);  // a pass refers to itself
        for (int k = 0; k < num; ++k) passes.emplace_back(shapes[k], calls[k]);
    }
    const Norms &norms() const { return passes[0].call.norms; }
    long count() const { return passes[0].sizes.count; }

    void forward() {
        std::vector<double> means, variances;
        for (ProjectionPass &pass : passes) {
            pass.convolve();
            means.insert(means.end(), pass.mean.begin(), pass.mean.end());
            variances.insert(variances.end(), pass.variance.begin(), pass.variance.end());
        }
        const long merged = merge_ranks(norms(), means, variances, count());
        auto mean = means.begin(), variance = variances.begin();
        for (ProjectionPass &pass : passes) {
            std::copy_n(mean, pass.mean.size(), pass.mean.begin()), mean += pass.mean.size();
            std::copy_n(variance, pass.variance.size(), pass.variance.begin()), variance += pass.variance.size();
            pass.normalise(merged);
        }
    }

    void backward() {
        std::vector<double> slopes;
        for (ProjectionPass &pass : passes) {
            const auto of_pass = pass.sum_gradients();
            slopes.insert(slopes.end(), of_pass.begin(), of_pass.end());
        }
        average_over_ranks(norms(), slopes, count());
        const double *next = slopes.data();
        for (ProjectionPass &pass : passes) pass.pass_back(next), next += 2 * pass.sizes.channels;
    }
};

}  // namespace

extern "C" {

const LayoutEntry *cells_layout() {
    static const LayoutEntry entries[] = {
        SIZE_OF(Shape), OFFSET_OF(Shape, num), OFFSET_OF(Shape, height), OFFSET_OF(Shape, width),
        OFFSET_OF(Shape, channels), OFFSET_OF(Shape, stride), OFFSET_OF(Shape, threads),
        SIZE_OF(Item), OFFSET_OF(Item, kind), OFFSET_OF(Item, kernel), OFFSET_OF(Item, dilation),
        OFFSET_OF(Item, first_upstream), OFFSET_OF(Item, num_upstream), OFFSET_OF(Item, depthwise),
        OFFSET_OF(Item, pointwise), OFFSET_OF(Item, y), OFFSET_OF(Item, mean), OFFSET_OF(Item, variance),
        OFFSET_OF(Item, centre), OFFSET_OF(Item, slope), OFFSET_OF(Item, offset), OFFSET_OF(Item, d_depthwise),
        OFFSET_OF(Item, d_pointwise),
        SIZE_OF(Projection), OFFSET_OF(Projection, x), OFFSET_OF(Projection, in_channels),
        OFFSET_OF(Projection, taps), OFFSET_OF(Projection, first_channels), OFFSET_OF(Projection, weights),
        OFFSET_OF(Projection, d_weights), OFFSET_OF(Projection, dx),
        SIZE_OF(Norms), OFFSET_OF(Norms, eps), OFFSET_OF(Norms, running_means), OFFSET_OF(Norms, running_variances),
        OFFSET_OF(Norms, num_batches), OFFSET_OF(Norms, momenta), OFFSET_OF(Norms, training),
        OFFSET_OF(Norms, sum),
        SIZE_OF(Fan), OFFSET_OF(Fan, num_maps), OFFSET_OF(Fan, num_first), OFFSET_OF(Fan, num_uses),
        OFFSET_OF(Fan, num_targets), OFFSET_OF(Fan, items), OFFSET_OF(Fan, inner), OFFSET_OF(Fan, last_map),
        OFFSET_OF(Fan, target), OFFSET_OF(Fan, by_target), OFFSET_OF(Fan, by_map),
        SIZE_OF(FanCall), OFFSET_OF(FanCall, images), OFFSET_OF(FanCall, x), OFFSET_OF(FanCall, weights),
        OFFSET_OF(FanCall, norms), OFFSET_OF(FanCall, scale), OFFSET_OF(FanCall, shift), OFFSET_OF(FanCall, sample),
        OFFSET_OF(FanCall, scale_per_channel), OFFSET_OF(FanCall, gamma), OFFSET_OF(FanCall, beta),
        OFFSET_OF(FanCall, maps), OFFSET_OF(FanCall, mean), OFFSET_OF(FanCall, inverse), OFFSET_OF(FanCall, outs),
        OFFSET_OF(FanCall, add), OFFSET_OF(FanCall, gs), OFFSET_OF(FanCall, d_weights), OFFSET_OF(FanCall, dx),
        OFFSET_OF(FanCall, d_shift), OFFSET_OF(FanCall, d_scale), OFFSET_OF(FanCall, d_gamma), OFFSET_OF(FanCall, d_beta),
        SIZE_OF(ProjectionCall), OFFSET_OF(ProjectionCall, job), OFFSET_OF(ProjectionCall, norms),
        OFFSET_OF(ProjectionCall, gamma), OFFSET_OF(ProjectionCall, beta), OFFSET_OF(ProjectionCall, y),
        OFFSET_OF(ProjectionCall, mean), OFFSET_OF(ProjectionCall, inverse), OFFSET_OF(ProjectionCall, out),
        OFFSET_OF(ProjectionCall, g), OFFSET_OF(ProjectionCall, d_beta), OFFSET_OF(ProjectionCall, d_gamma),
        {nullptr, 0},
    };
    return entries;
}

void fan_forward(const Shape *shape, const Fan *fan, const FanCall *call) { FanPass(*shape, *fan, *call).forward(); }
void fan_backward(const Shape *shape, const Fan *fan, const FanCall *call) { FanPass(*shape, *fan, *call).backward(); }
void projections_forward(int num, const Shape *shapes, const ProjectionCall *calls) {
    ProjectionsPass(num, shapes, calls).forward();
}
void projections_backward(int num, const Shape *shapes, const ProjectionCall *calls) {
    ProjectionsPass(num, shapes, calls).backward();
}
}
