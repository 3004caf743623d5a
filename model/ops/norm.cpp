// BatchNorm + ReLU + weighted sum of branches, with gradients, for the CPU: what model/layers.py calls norm_relu_sum.
//
// y = sum_b weight_b relu(gamma_b (x_b - mean_b) rstd_b + beta_b) over rows of C channels, the pixels of NHWC images.
// Sums are float within a short run of rows and double across, and the runs are shared out by number and not by thread,
// so the bits do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

const Index kRun = 64;          // rows whose sums stay in float

// Sums over all rows of `count` values per channel: work(row, sums) adds one row's.
template <typename Work>
std::vector<double> channel_sums(Index rows, Index count, Work work) {
    std::vector<double> total(count, 0.0);
    const Index runs = (rows + kRun - 1) / kRun, shares = runs < 64 ? runs : 64;
    std::vector<double> partial(shares * count, 0.0);       // by share and not by thread: the same bits with any number
#pragma omp parallel
    {
        std::vector<float> sums(count);
#pragma omp for schedule(static)
        for (Index share = 0; share < shares; ++share) {
            for (Index run = share * runs / shares; run < (share + 1) * runs / shares; ++run) {
                std::fill(sums.begin(), sums.end(), 0.0f);
                const Index end = (run + 1) * kRun < rows ? (run + 1) * kRun : rows;
                for (Index row = run * kRun; row < end; ++row) work(row, sums.data());
                for (Index i = 0; i < count; ++i) partial[share * count + i] += sums[i];
            }
        }
    }
    for (Index share = 0; share < shares; ++share) {
        for (Index i = 0; i < count; ++i) total[i] += partial[share * count + i];
    }
    return total;
}

// Applies step(width, c) to all channels: 16 at a time, then one at a time.
template <typename Step> inline void along_channels(Index channels, Step step) {
    Index c = 0;
    for (; c + 16 <= channels; c += 16) step(std::integral_constant<int, 16>(), c);
    if (c + 8 <= channels) { step(std::integral_constant<int, 8>(), c); c += 8; }
    for (; c < channels; ++c) step(std::integral_constant<int, 1>(), c);
}

// Sums run over the distances from the first row, so that a mean far from zero costs no digits.
template <typename T>
void moments(const T* x, Index rows, Index channels, float* mean, float* variance) {
    std::vector<float> origin(channels);
    for (Index c = 0; c < channels; ++c) origin[c] = load<1>(x + c);
    const float* from = origin.data();
    const std::vector<double> sums = channel_sums(rows, 2 * channels, [=](Index row, float* sum) {
        along_channels(channels, [&](auto width, Index c) {
            constexpr int W = width;
            const Float<W> d = load<W>(x + row * channels + c) - load<W>(from + c);
            store<W>(sum + c, load<W>(sum + c) + d);
            store<W>(sum + channels + c, load<W>(sum + channels + c) + d * d);
        });
    });
    for (Index c = 0; c < channels; ++c) {
        const double m = sums[c] / rows;
        mean[c] = static_cast<float>(m + origin[c]);
        variance[c] = static_cast<float>(sums[channels + c] / rows - m * m);
    }
}

const int kBranches = 2;

// One BatchNorm of a branch, as the caller hands it over.  All of length C.
struct Norm {
    const float *gamma, *beta;
    float *mean, *rstd;             // of the batch: written by the forward pass in training, else given
    float *running_mean, *running_variance;
};

// The same as an affine map: z = scale x + shift.
struct Affine {
    std::vector<float> scale, shift;

    Affine(const Norm& norm, Index channels) : scale(channels), shift(channels) {
        for (Index c = 0; c < channels; ++c) {
            scale[c] = norm.gamma[c] * norm.rstd[c];
            shift[c] = norm.beta[c] - norm.mean[c] * scale[c];
        }
    }
};

// Batch statistics into mean and rstd, and into the running ones (with the unbiased variance).
template <typename T>
void measure(const T* x, const Norm& norm, Index rows, Index channels, float momentum, float eps) {
    std::vector<float> variance(channels);
    moments(x, rows, channels, norm.mean, variance.data());
    const float unbiased = rows > 1 ? static_cast<float>(static_cast<double>(rows) / (rows - 1)) : 1.0f;
    for (Index c = 0; c < channels; ++c) {
        norm.rstd[c] = 1.0f / std::sqrt(variance[c] + eps);
        norm.running_mean[c] += momentum * (norm.mean[c] - norm.running_mean[c]);
        norm.running_variance[c] += momentum * (variance[c] * unbiased - norm.running_variance[c]);
    }
}

template <typename T>
void mix(const T* const* x, const Norm* norms, const float* weights, int count, Index rows, Index channels, T* y) {
    std::vector<Affine> maps;
    for (int i = 0; i < count; ++i) maps.emplace_back(norms[i], channels);
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < rows; ++row) {
        along_channels(channels, [&](auto width, Index c) {
            constexpr int W = width;
            Float<W> sum = {};
            for (int i = 0; i < count; ++i) {
                const Float<W> v = load<W>(x[i] + row * channels + c);
                sum += weights[i] * positive<W>(v * load<W>(&maps[i].scale[c]) + load<W>(&maps[i].shift[c]));
            }
            store<W>(y + row * channels + c, sum);
        });
    }
}

// Per branch, with d the gradient of relu(z): sums over the rows of d and d (x - mean), [branch][2][C].
template <typename T>
std::vector<double> gradient_sums(const T* grad, const T* const* x, const Norm* norms, const Affine* maps, int count,
                                  Index rows, Index channels) {
    return channel_sums(rows, 2 * count * channels, [=](Index row, float* sums) {
        along_channels(channels, [&](auto width, Index c) {
            constexpr int W = width;
            const Float<W> g = load<W>(grad + row * channels + c);
            for (int i = 0; i < count; ++i) {
                const Float<W> v = load<W>(x[i] + row * channels + c);
                const Float<W> z = v * load<W>(&maps[i].scale[c]) + load<W>(&maps[i].shift[c]);
                const Float<W> d = where_positive<W>(z, g);
                float* sum = sums + 2 * i * channels + c;
                store<W>(sum, load<W>(sum) + d);
                store<W>(sum + channels, load<W>(sum + channels) + d * (v - load<W>(norms[i].mean + c)));
            }
        });
    });
}

// The gradients of one branch's parameters from its sums, and what its input's gradient is made of:
// weight gamma rstd (d - mean(d) - xn mean(d xn)) with xn = (x - mean) rstd, that is
// slope d + along (x - mean) + offset.
struct Branch {
    std::vector<float> slope, along, offset;

    Branch(const Norm& norm, const Affine& map, const double* sums, float weight, Index rows, Index channels,
           float* grad_gamma, float* grad_beta, float* grad_weight)
        : slope(channels), along(channels), offset(channels) {
        double through_weight = 0;
        for (Index c = 0; c < channels; ++c) {
            const double sum = sums[c], projected = sums[channels + c] * norm.rstd[c];
            grad_gamma[c] = static_cast<float>(weight * projected);
            grad_beta[c] = static_cast<float>(weight * sum);
            // the sum of d z, since relu(z) = 1[z > 0] z
            through_weight += norm.gamma[c] * projected + norm.beta[c] * sum;
            slope[c] = weight * map.scale[c];
            along[c] = static_cast<float>(-slope[c] * norm.rstd[c] * projected / rows);
            offset[c] = static_cast<float>(-slope[c] * sum / rows);
        }
        *grad_weight = static_cast<float>(through_weight);
    }
};

// grad_gamma and grad_beta are [branch][C].
template <typename T>
void mix_backward(const T* grad, const T* const* x, const Norm* norms, const float* weights, int count, Index rows,
                  Index channels, T* const* grad_x, float* grad_gamma, float* grad_beta, float* grad_weights) {
    std::vector<Affine> maps;
    for (int i = 0; i < count; ++i) maps.emplace_back(norms[i], channels);
    const std::vector<double> sums = gradient_sums(grad, x, norms, maps.data(), count, rows, channels);
    std::vector<Branch> branches;
    for (int i = 0; i < count; ++i) {
        branches.emplace_back(norms[i], maps[i], &sums[2 * i * channels], weights[i], rows, channels,
                              grad_gamma + i * channels, grad_beta + i * channels, grad_weights + i);
    }
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < rows; ++row) {
        along_channels(channels, [&](auto width, Index c) {
            constexpr int W = width;
            const Float<W> g = load<W>(grad + row * channels + c);
            for (int i = 0; i < count; ++i) {
                const Branch& b = branches[i];
                const Float<W> v = load<W>(x[i] + row * channels + c);
                const Float<W> z = v * load<W>(&maps[i].scale[c]) + load<W>(&maps[i].shift[c]);
                store<W>(grad_x[i] + row * channels + c,
                         load<W>(&b.slope[c]) * where_positive<W>(z, g) +
                             load<W>(&b.along[c]) * (v - load<W>(norms[i].mean + c)) + load<W>(&b.offset[c]));
            }
        });
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                               \
    extern "C" void measure_##NAME(const T* x, const Norm* norm, Index rows, Index channels, float momentum,          \
                                   float eps) {                                                                       \
        measure(x, *norm, rows, channels, momentum, eps);                                                             \
    }                                                                                                                 \
    extern "C" void mix_##NAME(const T* const* x, const Norm* norms, const float* weights, int count, Index rows,     \
                               Index channels, T* y) {                                                                \
        mix(x, norms, weights, count, rows, channels, y);                                                             \
    }                                                                                                                 \
    extern "C" void mix_backward_##NAME(const T* grad, const T* const* x, const Norm* norms, const float* weights,    \
                                        int count, Index rows, Index channels, T* const* grad_x, float* grad_gamma,   \
                                        float* grad_beta, float* grad_weights) {                                      \
        mix_backward(grad, x, norms, weights, count, rows, channels, grad_x, grad_gamma, grad_beta, grad_weights);    \
    }

EXPORT(float32, float)
EXPORT(bfloat16, BFloat16)
