// Instance norm with what stands around it in MMIRN, on NHWC images: y = blur(relu(norm(x))) + residual, of which
// relu, blur and residual may be absent; and its gradient.
//
// And adaptive instance norm with what stands around it in the generators: y = leaky(norm(a_n xn + b_n)), where xn is the
// instance norm, a and b belong to a sample and channel, and the BatchNorm may be absent; and its gradients.
//
// A thread takes one sample at a time, whose map lies in its cache.  The blur is [1,2,1]⊗[1,2,1]/16 with a reflected
// border of 1 and stride 2.

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

struct Maps {
    Index samples, height, width, channels;
    float eps;
    int relu, blur;

    Index pixels() const { return height * width; }
    Index size() const { return pixels() * channels; }
    Index out_height() const { return blur ? (height + 1) / 2 : height; }
    Index out_width() const { return blur ? (width + 1) / 2 : width; }
    Index out_size() const { return out_height() * out_width() * channels; }
};

inline Index reflected(Index i, Index length) { return i < 0 ? -i : i < length ? i : 2 * (length - 1) - i; }

// Calls work(output pixel, input pixel, weight) for every tap of the blur.
template <typename Work> inline void along_blur(const Maps& m, Work work) {
    const float weights[3] = {0.25f, 0.5f, 0.25f};
    for (Index row = 0; row < m.out_height(); ++row) {
        for (Index column = 0; column < m.out_width(); ++column) {
            for (int u = 0; u < 3; ++u) {
                const Index line = reflected(2 * row + u - 1, m.height) * m.width;
                for (int v = 0; v < 3; ++v) {
                    work(row * m.out_width() + column, line + reflected(2 * column + v - 1, m.width),
                         weights[u] * weights[v]);
                }
            }
        }
    }
}

// to += weight from, along the channels.
inline void add(float* to, float weight, const float* from, Index channels) {
    along_channels(channels, [&](auto width, Index c) {
        constexpr int W = width;
        store<W>(to + c, load<W>(to + c) + weight * load<W>(from + c));
    });
}

// mean and rstd [C] of one sample.
void measure(const float* x, const Maps& m, float* mean, float* rstd) {
    const float share = 1.0f / m.pixels();
    along_channels(m.channels, [&](auto width, Index c) {
        constexpr int W = width;
        Float<W> sum = {}, squares = {};
        for (Index p = 0; p < m.pixels(); ++p) sum += load<W>(x + p * m.channels + c);
        const Float<W> centre = sum * share;
        for (Index p = 0; p < m.pixels(); ++p) {
            const Float<W> d = load<W>(x + p * m.channels + c) - centre;
            squares += d * d;
        }
        store<W>(mean + c, centre);
        store<W>(rstd + c, squares * share + m.eps);
    });
    for (Index c = 0; c < m.channels; ++c) rstd[c] = 1.0f / std::sqrt(rstd[c]);
}

void normalise(const float* x, const Maps& m, const float* mean, const float* rstd, float* z) {
    for (Index p = 0; p < m.pixels(); ++p) {
        along_channels(m.channels, [&](auto width, Index c) {
            constexpr int W = width;
            const Float<W> v = (load<W>(x + p * m.channels + c) - load<W>(mean + c)) * load<W>(rstd + c);
            store<W>(z + p * m.channels + c, m.relu ? positive<W>(v) : v);
        });
    }
}

// grad [of z, before the activation's mask] -> grad_x.
void backward(const float* grad, const float* x, const Maps& m, const float* mean, const float* rstd, float* grad_x) {
    const float share = 1.0f / m.pixels();
    along_channels(m.channels, [&](auto width, Index c) {
        constexpr int W = width;
        const Float<W> centre = load<W>(mean + c), scale = load<W>(rstd + c);
        Float<W> sum = {}, along = {};
        for (Index p = 0; p < m.pixels(); ++p) {
            const Float<W> z = (load<W>(x + p * m.channels + c) - centre) * scale;
            const Float<W> g = load<W>(grad + p * m.channels + c);
            const Float<W> d = m.relu ? where_positive<W>(z, g) : g;
            sum += d;
            along += d * z;
        }
        sum *= share;
        along *= share;
        for (Index p = 0; p < m.pixels(); ++p) {
            const Float<W> z = (load<W>(x + p * m.channels + c) - centre) * scale;
            const Float<W> g = load<W>(grad + p * m.channels + c);
            const Float<W> d = m.relu ? where_positive<W>(z, g) : g;
            store<W>(grad_x + p * m.channels + c, scale * (d - sum - z * along));
        }
    });
}

// ---- adaptive ----------------------------------------------------------------------------------------------------

// What a sample's affine map and the BatchNorm behind it make of xn: y = leaky(scale xn + shift), [samples][C] each.
// styles [samples][2 C]: gamma, so that a = 1 + gamma, and b.
struct Adaptive {
    const float *styles, *gain, *offset;             // gain, offset [C] of the BatchNorm; null where there is none
    float *mean, *rstd;                              // [C] of its batch: written forward, read backward
    float *running_mean, *running_variance;
    float momentum, eps, leak;
};

// The sum of squares of xn over a sample's pixels, which falls short of their number by what eps takes.
inline float energy(float rstd, const Maps& m) { return m.pixels() * (1 - m.eps * rstd * rstd); }

// BatchNorm's statistics of a xn + b, from those of the samples: xn sums to 0.
void measure_styled(const float* statistics, const Adaptive& a, const Maps& m) {
    const double count = static_cast<double>(m.samples) * m.pixels();
    for (Index c = 0; c < m.channels; ++c) {
        double sum = 0, squares = 0;
        for (Index n = 0; n < m.samples; ++n) sum += a.styles[(2 * n + 1) * m.channels + c];
        const double mean = sum / m.samples;
        for (Index n = 0; n < m.samples; ++n) {
            const double scale = 1 + a.styles[2 * n * m.channels + c];
            const double from = a.styles[(2 * n + 1) * m.channels + c] - mean;
            squares += scale * scale * energy(statistics[(2 * n + 1) * m.channels + c], m) + m.pixels() * from * from;
        }
        const double variance = squares / count;
        a.mean[c] = static_cast<float>(mean);
        a.rstd[c] = 1.0f / std::sqrt(static_cast<float>(variance) + a.eps);
        a.running_mean[c] += a.momentum * (a.mean[c] - a.running_mean[c]);
        const float unbiased = static_cast<float>(variance * (count / (count - 1)));
        a.running_variance[c] += a.momentum * (unbiased - a.running_variance[c]);
    }
}

// scale and shift [C] of one sample.
void styled_map(const Adaptive& a, Index n, Index channels, float* scale, float* shift) {
    const float *gamma = a.styles + 2 * n * channels, *beta = gamma + channels;
    for (Index c = 0; c < channels; ++c) {
        const float slope = a.gain ? a.gain[c] * a.rstd[c] : 1.0f;
        scale[c] = slope * (1 + gamma[c]);
        shift[c] = a.gain ? slope * (beta[c] - a.mean[c]) + a.offset[c] : beta[c];
    }
}

// Calls step(width, c, x's normal form at pixel p as a function of p) along a sample's channels.
template <typename Step> inline void along_normal(const float* x, const float* mean, const float* rstd, Index channels,
                                                  Step step) {
    along_channels(channels, [&](auto width, Index c) {
        constexpr int W = width;
        const Float<W> centre = load<W>(mean + c), scale = load<W>(rstd + c);
        step(width, c, [=](Index p) { return (load<W>(x + p * channels + c) - centre) * scale; });
    });
}

template <int W> inline Float<W> leaky(Float<W> v, float leak) { return v > 0.0f ? v : v * leak; }
template <int W> inline Float<W> leaky_gradient(Float<W> v, Float<W> grad, float leak) {
    return v > 0.0f ? grad : grad * leak;
}

}  // namespace

// statistics [samples][2][C].
extern "C" void adaptive_norm_float32(const float* x, float* y, float* statistics, const Adaptive* adaptive,
                                      const Maps* maps) {
    const Maps& m = *maps;
    const Adaptive& a = *adaptive;
#pragma omp parallel for schedule(static)
    for (Index n = 0; n < m.samples; ++n) {
        float* mean = statistics + 2 * n * m.channels;
        measure(x + n * m.size(), m, mean, mean + m.channels);
    }
    if (a.gain) measure_styled(statistics, a, m);
#pragma omp parallel
    {
        Buffer scale(m.channels), shift(m.channels);
#pragma omp for schedule(static)
        for (Index n = 0; n < m.samples; ++n) {
            const float* mean = statistics + 2 * n * m.channels;
            styled_map(a, n, m.channels, scale, shift);
            along_normal(x + n * m.size(), mean, mean + m.channels, m.channels, [&](auto width, Index c, auto normal) {
                constexpr int W = width;
                for (Index p = 0; p < m.pixels(); ++p) {
                    const Float<W> v = normal(p) * load<W>(scale + c) + load<W>(shift + c);
                    store<W>(y + n * m.size() + p * m.channels + c, leaky<W>(v, a.leak));
                }
            });
        }
    }
}

// grad_styles as the styles; grad_gain, grad_offset [C] where there is a BatchNorm.  With d the gradient before the
// activation, z = a xn + b and zn = (z - mean) rstd, BatchNorm gives dz = slope (d - mean(d) - zn mean(d zn)).
extern "C" void adaptive_norm_backward_float32(const float* grad, const float* x, const float* statistics,
                                               const Adaptive* adaptive, const Maps* maps, float* grad_x,
                                               float* grad_styles, float* grad_gain, float* grad_offset) {
    const Maps& m = *maps;
    const Adaptive& a = *adaptive;
    const Index channels = m.channels;
    // 1. Per sample and channel the sums of d and d xn, where the styles' gradients will stand.
#pragma omp parallel
    {
        Buffer scale(channels), shift(channels);
#pragma omp for schedule(static)
        for (Index n = 0; n < m.samples; ++n) {
            const float *mean = statistics + 2 * n * channels, *from = grad + n * m.size();
            styled_map(a, n, channels, scale, shift);
            along_normal(x + n * m.size(), mean, mean + channels, channels, [&](auto width, Index c, auto normal) {
                constexpr int W = width;
                Float<W> sum = {}, along = {};
                for (Index p = 0; p < m.pixels(); ++p) {
                    const Float<W> z = normal(p), v = z * load<W>(scale + c) + load<W>(shift + c);
                    const Float<W> d = leaky_gradient<W>(v, load<W>(from + p * channels + c), a.leak);
                    sum += d;
                    along += d * z;
                }
                store<W>(grad_styles + 2 * n * channels + c, along);
                store<W>(grad_styles + (2 * n + 1) * channels + c, sum);
            });
        }
    }
    // 2. The batch's means of d and d zn, and the styles' gradients.
    Buffer slope(channels), mean_grad(channels), mean_along(channels);
    const double count = static_cast<double>(m.samples) * m.pixels();
    for (Index c = 0; c < channels; ++c) {
        double sum = 0, along = 0;
        for (Index n = 0; n < m.samples && a.gain; ++n) {
            const float *gamma = a.styles + 2 * n * channels + c, *pull = grad_styles + 2 * n * channels + c;
            sum += pull[channels];
            along += a.rstd[c] * ((1.0 + gamma[0]) * pull[0] + (gamma[channels] - a.mean[c]) * pull[channels]);
        }
        slope[c] = a.gain ? a.gain[c] * a.rstd[c] : 1.0f;
        mean_grad[c] = static_cast<float>(sum / count);
        mean_along[c] = static_cast<float>(along / count);
        if (a.gain) {
            grad_gain[c] = static_cast<float>(along);
            grad_offset[c] = static_cast<float>(sum);
        }
    }
    // 3. Through the instance norm.
#pragma omp parallel
    {
        Buffer scale(channels), shift(channels), first(channels), second(channels);
#pragma omp for schedule(static)
        for (Index n = 0; n < m.samples; ++n) {
            const float *mean = statistics + 2 * n * channels, *rstd = mean + channels, *from = grad + n * m.size();
            const float *gamma = a.styles + 2 * n * channels, *beta = gamma + channels;
            float *pull = grad_styles + 2 * n * channels, share = 1.0f / m.pixels();
            styled_map(a, n, channels, scale, shift);
            for (Index c = 0; c < channels; ++c) {
                // zn = tilt xn + level
                const float tilt = a.gain ? a.rstd[c] * (1 + gamma[c]) : 0;
                const float level = a.gain ? a.rstd[c] * (beta[c] - a.mean[c]) : 0;
                const float along = slope[c] * (pull[c] - mean_along[c] * tilt * energy(rstd[c], m));
                const float given = mean_grad[c] + mean_along[c] * level;
                const float sum = slope[c] * (pull[channels + c] - m.pixels() * given);
                // dz = slope d - second xn - first; less its mean and its part along xn, times a rstd, it is the gradient
                first[c] = slope[c] * given + sum * share;
                second[c] = slope[c] * mean_along[c] * tilt + along * share;
                pull[c] = along;
                pull[channels + c] = sum;
            }
            along_normal(x + n * m.size(), mean, rstd, channels, [&](auto width, Index c, auto normal) {
                constexpr int W = width;
                const Float<W> outer = (load<W>(gamma + c) + 1.0f) * load<W>(rstd + c);
                for (Index p = 0; p < m.pixels(); ++p) {
                    const Float<W> z = normal(p), v = z * load<W>(scale + c) + load<W>(shift + c);
                    const Float<W> d = leaky_gradient<W>(v, load<W>(from + p * channels + c), a.leak);
                    store<W>(grad_x + n * m.size() + p * channels + c,
                             outer * (load<W>(slope + c) * d - load<W>(first + c) - z * load<W>(second + c)));
                }
            });
        }
    }
}

// statistics [samples][2][C]; residual as y, or null.
extern "C" void instance_norm_float32(const float* x, const float* residual, float* y, float* statistics,
                                      const Maps* maps) {
    const Maps& m = *maps;
#pragma omp parallel
    {
        Buffer z(m.size());
#pragma omp for schedule(static)
        for (Index n = 0; n < m.samples; ++n) {
            float *mean = statistics + 2 * n * m.channels, *rstd = mean + m.channels, *to = y + n * m.out_size();
            measure(x + n * m.size(), m, mean, rstd);
            normalise(x + n * m.size(), m, mean, rstd, m.blur ? z + 0 : to);
            if (m.blur) {
                std::fill(to, to + m.out_size(), 0.0f);
                along_blur(m, [&](Index out, Index in, float weight) {
                    add(to + out * m.channels, weight, z + in * m.channels, m.channels);
                });
            }
            if (residual) add(to, 1.0f, residual + n * m.out_size(), m.out_size());
        }
    }
}

extern "C" void instance_norm_backward_float32(const float* grad, const float* x, const float* statistics,
                                               float* grad_x, const Maps* maps) {
    const Maps& m = *maps;
#pragma omp parallel
    {
        Buffer z(m.size());
#pragma omp for schedule(static)
        for (Index n = 0; n < m.samples; ++n) {
            const float *mean = statistics + 2 * n * m.channels, *from = grad + n * m.out_size();
            if (m.blur) {
                std::fill(z + 0, z + m.size(), 0.0f);
                along_blur(m, [&](Index out, Index in, float weight) {
                    add(z + in * m.channels, weight, from + out * m.channels, m.channels);
                });
            }
            backward(m.blur ? z + 0 : from, x + n * m.size(), m, mean, mean + m.channels, grad_x + n * m.size());
        }
    }
}
