// What batch normalisation (BN) makes of a map's statistics, for passes.cpp: of images side by side, of all ranks.
//
// Statistics are in double. Their arithmetic is torch's, operation by operation, so that the results have the same bits;
// what includes this is therefore compiled without contracting a product and a sum into one rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "passes.h"

namespace {

using T = REAL;  // what the library is compiled for: float or double; maps in memory are of Stored<T>

// The sizes of a pass's results. Images side by side are so many times the channels of one.
struct Sizes {
    Shape out;
    int images, channels;  // side by side; of one image
    long count;            // the values of one channel over the batch
    long map_values;       // of one map

    Sizes(const Shape &in, int images_) : images(images_), channels(in.channels / images_) {
        const auto divided = [&](int side) { return (side + in.stride - 1) / in.stride; };
        out = {in.num, divided(in.height), divided(in.width), in.channels, 1, in.threads};
        const long pixels = long(out.num) * out.height * out.width;
        count = pixels * images, map_values = pixels * in.channels;
    }
};

// A matrix with a row for each map or term, as the kernels take it: in T, and repeated for images side by side.
class Rows {
public:
    Rows(long rows, const Sizes &sizes) : channels_(sizes.channels), width_(sizes.out.channels), values_(rows * width_) {}
    T *operator[](long row) { return values_.data() + row * width_; }
    template <class Value>
    void set(long row, Value value) {  // value(c) is a channel's
        T *to = (*this)[row];
        for (int c = 0; c < width_; ++c) to[c] = c < channels_ ? T(value(c)) : to[c - channels_];
    }

private:
    int channels_, width_;
    std::vector<T> values_;
};

// Sums over each image's pixels as sums over those of all images side by side.
void add_images(const double *sums, const Sizes &sizes, double *result) {
    for (int c = 0; c < sizes.channels; ++c) {
        double sum = sums[c];
        for (int image = 1; image < sizes.images; ++image) sum += sums[image * sizes.channels + c];
        result[c] = sum;
    }
}

// Means and biased variances of as many pixels of each image as those of all (Chan et al., 1979).
void merge_images(const double *means, const double *variances, const Sizes &sizes, double *mean, double *variance) {
    add_images(means, sizes, mean);
    add_images(variances, sizes, variance);
    for (int c = 0; c < sizes.channels && sizes.images > 1; ++c) {
        mean[c] /= sizes.images;
        double away = 0;
        for (int image = 0; image < sizes.images; ++image) {
            const double distance = means[image * sizes.channels + c] - mean[c];
            away += distance * distance;
        }
        variance[c] = variance[c] / sizes.images + away / sizes.images;
    }
}

T towards(T from, T to, T weight) {  // as torch.lerp computes it
    return std::abs(weight) < T(0.5) ? std::fma(weight, to - from, from) : std::fma(weight - 1, to - from, to);
}

// If several ranks share the batch, replace means over this rank's `count` values of a channel by those over all ranks'
// values. Returns their count.
long average_over_ranks(const Norms &norms, std::vector<double> &means, long count) {
    if (norms.sum == nullptr) return count;
    std::vector<double> sums = {double(count)};
    for (const double mean : means) sums.push_back(mean * double(count));
    norms.sum(sums.data(), long(sums.size()));
    for (size_t c = 0; c < means.size(); ++c) means[c] = sums[c + 1] / sums[0];
    return long(sums[0]);
}

// Replace the means and biased variances of some channels by those of all ranks. They are sums of squares in between:
// what cancels in double is far below the last digit of a map in float.
long merge_ranks(const Norms &norms, std::vector<double> &mean, std::vector<double> &variance, long count) {
    if (norms.sum == nullptr || !norms.training || mean.empty()) return count;
    std::vector<double> moments(mean);
    for (size_t c = 0; c < mean.size(); ++c) moments.push_back(variance[c] + mean[c] * mean[c]);
    count = average_over_ranks(norms, moments, count);
    for (size_t c = 0; c < mean.size(); ++c) {
        mean[c] = moments[c];
        variance[c] = std::max(moments[mean.size() + c] - mean[c] * mean[c], 0.0);
    }
    return count;
}

// Record the batch's statistics of map k in training; in evaluation, overwrite them by the running ones.
void finish_statistics(const Norms &norms, int k, const Sizes &sizes, long count, double *mean, double *variance,
                       double *inverse) {
    T *running_mean = norms.running_means == nullptr ? nullptr : static_cast<T *>(norms.running_means[k]);
    T *running_variance = running_mean == nullptr ? nullptr : static_cast<T *>(norms.running_variances[k]);
    const T unbiased = T(double(count) / double(std::max(count - 1, 1L)));
    for (int c = 0; c < sizes.channels; ++c) {
        if (!norms.training) {
            mean[c] = running_mean[c], variance[c] = running_variance[c];
        } else if (running_mean != nullptr) {
            running_mean[c] = towards(running_mean[c], T(mean[c]), T(norms.momenta[k]));
            running_variance[c] = towards(running_variance[c], T(variance[c]) * unbiased, T(norms.momenta[k]));
        }
        inverse[c] = 1.0 / std::sqrt(variance[c] + norms.eps[k]);
    }
    if (norms.training && running_mean != nullptr && norms.num_batches[k] != nullptr) ++*norms.num_batches[k];
}

// The part of a BN's backward pass that comes from the batch's statistics. If g is the gradient with respect to the
// normalised y, that with respect to y is inverse * g + slope * (y - mean) + offset; `dot` and `sum` are the sums over
// the batch of g * (y - mean) and of g.
double slope_of(double inverse, double dot, long count) { return inverse * inverse * inverse * dot / double(-count); }
double offset_of(double inverse, double sum, long count) { return inverse * sum / double(-count); }

}  // namespace
