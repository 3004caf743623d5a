// BatchNorm + ReLU + weighted sum of branches, with gradients, for the CPU: what model/layers.py calls norm_relu_sum.
//
// y = sum_b weight_b relu(gamma_b (x_b - mean_b) rstd_b + beta_b) over rows of C channels, the pixels of NHWC images.
// The rows come in domains of equal size, one behind the other; each has statistics of its own.
// Narrow rows are taken several at a time as one wide row, so that vectors are full: channel c lies at c, c + C, ...
// Sums are float within a short run of rows and double across, and the runs are shared out by number and not by thread,
// so the bits do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

const Index kRun = 64;          // rows whose sums stay in float

// The images: so many domains of so many rows of so many channels.
struct Rows {
    Index domains, rows, channels;

    Index all() const { return domains * rows; }
    Index start(Index domain) const { return domain * rows * channels; }
    Index together() const {                            // rows that make a wide one
        Index count = 1;
        while (count * channels % 16 && rows % (2 * count) == 0) count *= 2;
        return count;
    }
    Rows wide() const { return {domains, rows / together(), channels * together()}; }
};

// [K][wide channels] -> [K][channels]
std::vector<double> narrowed(const std::vector<double>& sums, int k, Index channels) {
    const Index wide = sums.size() / k;
    std::vector<double> total(k * channels, 0.0);
    for (int i = 0; i < k; ++i) {
        for (Index c = 0; c < wide; ++c) total[i * channels + c % channels] += sums[i * wide + c];
    }
    return total;
}

std::vector<float> widened(const float* values, const Rows& r) {
    std::vector<float> all;
    for (Index i = 0; i < r.together(); ++i) all.insert(all.end(), values, values + r.channels);
    return all;
}

// Sums over all rows of K values per channel, [K][channels]: add(width, row, channel, sums) adds a row's to K vectors.
template <int K, typename Add>
std::vector<double> channel_sums(Index rows, Index channels, Add add) {
    std::vector<double> total(K * channels, 0.0);
    const Index runs = (rows + kRun - 1) / kRun, shares = runs < 64 ? runs : 64;
    std::vector<double> partial(shares * K * channels, 0.0);    // by share: the same bits with any number of threads
#pragma omp parallel for schedule(static)
    for (Index share = 0; share < shares; ++share) {
        double* to = &partial[share * K * channels];
        for (Index run = share * runs / shares; run < (share + 1) * runs / shares; ++run) {
            const Index end = (run + 1) * kRun < rows ? (run + 1) * kRun : rows;
            along_channels(channels, [&](auto width, Index c) {
                constexpr int W = width;
                Float<W> sums[K] = {};
                for (Index row = run * kRun; row < end; ++row) add(width, row, c, sums);
                float lanes[K][W];
                for (int k = 0; k < K; ++k) store<W>(lanes[k], sums[k]);
                for (int k = 0; k < K; ++k) {
                    for (int i = 0; i < W; ++i) to[k * channels + c + i] += lanes[k][i];
                }
            });
        }
    }
    for (Index share = 0; share < shares; ++share) {
        for (Index i = 0; i < K * channels; ++i) total[i] += partial[share * K * channels + i];
    }
    return total;
}

// Of one domain.  Sums run over the distances from the first row, so that a mean far from zero costs no digits.
template <typename T>
void moments(const T* x, const Rows& r, float* mean, float* variance) {
    for (Index c = 0; c < r.channels; ++c) mean[c] = load<1>(x + c);
    const std::vector<float> origin = widened(mean, r);
    const float* from = origin.data();
    const Rows wide = r.wide();
    const auto add = [=](auto width, Index row, Index c, auto* sum) {
        constexpr int W = width;
        const Float<W> d = load<W>(x + row * wide.channels + c) - load<W>(from + c);
        sum[0] += d;
        sum[1] += d * d;
    };
    const std::vector<double> sums = narrowed(channel_sums<2>(wide.rows, wide.channels, add), 2, r.channels);
    for (Index c = 0; c < r.channels; ++c) {
        const double m = sums[c] / r.rows;
        mean[c] = static_cast<float>(m + origin[c]);
        variance[c] = static_cast<float>(sums[r.channels + c] / r.rows - m * m);
    }
}

// One BatchNorm of a branch, as the caller hands it over: [C], and the batch's statistics [domains][C].
struct Norm {
    const float *gamma, *beta;
    float *mean, *rstd;             // of the batch: written by the forward pass in training, else given
    float *running_mean, *running_variance;
    float momentum, eps;            // momentum: the weight of the first domain's statistics
    int cumulative;                 // whether those of the next ones have less: 1 / (1 / momentum + 1), ...
};

// The same in one domain as an affine map of wide rows: z = scale x + shift.
struct Affine {
    std::vector<float> scale, shift, mean;

    Affine(const Norm& norm, Index domain, const Rows& r)
        : scale(widened(norm.gamma, r)), shift(widened(norm.beta, r)),
          mean(widened(norm.mean + domain * r.channels, r)) {
        const float* rstd = norm.rstd + domain * r.channels;
        for (size_t i = 0; i < scale.size(); ++i) {
            scale[i] *= rstd[i % r.channels];
            shift[i] -= mean[i] * scale[i];
        }
    }
};

// [domain][branch]
std::vector<Affine> affine_maps(const Norm* norms, int count, const Rows& r) {
    std::vector<Affine> maps;
    for (Index domain = 0; domain < r.domains; ++domain) {
        for (int i = 0; i < count; ++i) maps.emplace_back(norms[i], domain, r);
    }
    return maps;
}

// Each domain's statistics into mean and rstd, and, one after the other, into the running ones (with the unbiased
// variance).
template <typename T>
void measure(const T* x, const Norm& norm, const Rows& r) {
    std::vector<float> variance(r.channels);
    const float unbiased = r.rows > 1 ? static_cast<float>(static_cast<double>(r.rows) / (r.rows - 1)) : 1.0f;
    for (Index domain = 0; domain < r.domains; ++domain) {
        float *mean = norm.mean + domain * r.channels, *rstd = norm.rstd + domain * r.channels;
        const float momentum = norm.cumulative ? 1 / (1 / norm.momentum + domain) : norm.momentum;
        moments(x + r.start(domain), r, mean, variance.data());
        for (Index c = 0; c < r.channels; ++c) {
            rstd[c] = 1.0f / std::sqrt(variance[c] + norm.eps);
            norm.running_mean[c] += momentum * (mean[c] - norm.running_mean[c]);
            norm.running_variance[c] += momentum * (variance[c] * unbiased - norm.running_variance[c]);
        }
    }
}

template <typename T>
void mix(const T* const* x, const Norm* norms, const float* weights, int count, const Rows& r, T* y) {
    const std::vector<Affine> maps = affine_maps(norms, count, r);
    const Rows wide = r.wide();
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < wide.all(); ++row) {
        const Affine* map = &maps[row / wide.rows * count];
        along_channels(wide.channels, [&](auto width, Index c) {
            constexpr int W = width;
            Float<W> sum = {};
            for (int i = 0; i < count; ++i) {
                const Float<W> v = load<W>(x[i] + row * wide.channels + c);
                sum += weights[i] * positive<W>(v * load<W>(&map[i].scale[c]) + load<W>(&map[i].shift[c]));
            }
            store<W>(y + row * wide.channels + c, sum);
        });
    }
}

// Per branch, with d the gradient of relu(z): sums over a domain's rows of d and d (x - mean), [branch][2][C].
template <int Count, typename T>
std::vector<double> gradient_sums(const T* grad, const T* const* x, const Affine* map, const Rows& r, Index domain) {
    const Rows wide = r.wide();
    const auto add = [=](auto width, Index number, Index c, auto* sum) {
        constexpr int W = width;
        const Index at = (domain * wide.rows + number) * wide.channels + c;
        const Float<W> g = load<W>(grad + at);
        for (int i = 0; i < Count; ++i) {
            const Float<W> v = load<W>(x[i] + at);
            const Float<W> z = v * load<W>(&map[i].scale[c]) + load<W>(&map[i].shift[c]);
            const Float<W> d = where_positive<W>(z, g);
            sum[2 * i] += d;
            sum[2 * i + 1] += d * (v - load<W>(&map[i].mean[c]));
        }
    };
    return narrowed(channel_sums<2 * Count>(wide.rows, wide.channels, add), 2 * Count, r.channels);
}

// What one domain adds to the gradients of one branch's parameters, and what its input's gradient is made of:
// weight gamma rstd (d - mean(d) - xn mean(d xn)) with xn = (x - mean) rstd, that is
// slope d + along (x - mean) + offset, of wide rows.
struct Branch {
    std::vector<float> slope, along, offset;

    Branch(const Norm& norm, const Affine& map, const float* rstd, const double* sums, float weight, const Rows& r,
           float* grad_gamma, float* grad_beta, float* grad_weight)
        : slope(map.scale), along(map.scale.size()), offset(map.scale.size()) {
        double through_weight = 0;
        for (Index c = 0; c < r.channels; ++c) {
            const double sum = sums[c], projected = sums[r.channels + c] * rstd[c];
            grad_gamma[c] += static_cast<float>(weight * projected);
            grad_beta[c] += static_cast<float>(weight * sum);
            // the sum of d z, since relu(z) = 1[z > 0] z
            through_weight += norm.gamma[c] * projected + norm.beta[c] * sum;
            for (size_t i = c; i < slope.size(); i += r.channels) {
                slope[i] *= weight;
                along[i] = static_cast<float>(-slope[i] * rstd[c] * projected / r.rows);
                offset[i] = static_cast<float>(-slope[i] * sum / r.rows);
            }
        }
        *grad_weight += static_cast<float>(through_weight);
    }
};

// grad_gamma and grad_beta are [branch][C], sums over the domains.
template <typename T>
void mix_backward(const T* grad, const T* const* x, const Norm* norms, const float* weights, int count, const Rows& r,
                  T* const* grad_x, float* grad_gamma, float* grad_beta, float* grad_weights) {
    const Index channels = r.channels;
    const std::vector<Affine> maps = affine_maps(norms, count, r);
    std::fill(grad_gamma, grad_gamma + count * channels, 0.0f);
    std::fill(grad_beta, grad_beta + count * channels, 0.0f);
    std::fill(grad_weights, grad_weights + count, 0.0f);
    std::vector<Branch> branches;                           // [domain][branch], as the maps
    for (Index domain = 0; domain < r.domains; ++domain) {
        const Affine* map = &maps[domain * count];
        const std::vector<double> sums = count == 1 ? gradient_sums<1>(grad, x, map, r, domain)
                                                    : gradient_sums<2>(grad, x, map, r, domain);
        for (int i = 0; i < count; ++i) {
            branches.emplace_back(norms[i], map[i], norms[i].rstd + domain * channels, &sums[2 * i * channels],
                                  weights[i], r, grad_gamma + i * channels, grad_beta + i * channels,
                                  grad_weights + i);
        }
    }
    const Rows wide = r.wide();
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < wide.all(); ++row) {
        const Affine* map = &maps[row / wide.rows * count];
        const Branch* branch = &branches[row / wide.rows * count];
        along_channels(wide.channels, [&](auto width, Index c) {
            constexpr int W = width;
            const Index at = row * wide.channels + c;
            const Float<W> g = load<W>(grad + at);
            for (int i = 0; i < count; ++i) {
                const Branch& b = branch[i];
                const Float<W> v = load<W>(x[i] + at);
                const Float<W> z = v * load<W>(&map[i].scale[c]) + load<W>(&map[i].shift[c]);
                store<W>(grad_x[i] + at, load<W>(&b.slope[c]) * where_positive<W>(z, g) +
                                             load<W>(&b.along[c]) * (v - load<W>(&map[i].mean[c])) +
                                             load<W>(&b.offset[c]));
            }
        });
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                               \
    extern "C" void mix_##NAME(const T* const* x, const Norm* norms, const float* weights, int count,                 \
                               const Rows* rows, int training, T* y) {                                                \
        for (int i = 0; training && i < count; ++i) measure(x[i], norms[i], *rows);                                   \
        mix(x, norms, weights, count, *rows, y);                                                                      \
    }                                                                                                                 \
    extern "C" void mix_backward_##NAME(const T* grad, const T* const* x, const Norm* norms, const float* weights,    \
                                        int count, const Rows* rows, T* const* grad_x, float* grad_gamma,             \
                                        float* grad_beta, float* grad_weights) {                                      \
        mix_backward(grad, x, norms, weights, count, *rows, grad_x, grad_gamma, grad_beta, grad_weights);             \
    }

EXPORT(float32, float)
EXPORT(bfloat16, BFloat16)
