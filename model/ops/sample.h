// Involution of one sample in a thread's cache, forward and both gradients.
//
// Images are NHWC; numbers are float or bfloat16, sums float.  The sample is read into buffers that are laid out so
// that vectors run along the groups without masks or shuffles:
//   x and the gradient: [H+2][W+2][C] within a border of zeros, a pixel's channels planar: the first channel of every
//       group, then every second, every third, then the leftover ones;
//   kernels: [H+2][W+2][taps x groups], tap-major, within a border of zeros, the activation applied.
// The last block of groups is moved back so that it ends with the last group; what it shares with the block before is
// computed twice.

#pragma once

#include "matrices.h"
#include "vectors.h"

namespace {

const int kTaps = 9;

struct Shape {
    Index samples, height, width, channels, groups;

    Index full_groups() const { return channels >= 3 ? groups : 0; }         // those with three channels
    Index leftover() const { return 3 * full_groups(); }                     // first channel beyond them
    Index taps() const { return kTaps * groups; }                            // kernel values of a pixel
    Index stride() const { return padded(taps()); }                          // and their room in a buffer
    Index pixels() const { return height * width; }
    Index framed() const { return (height + 2) * (width + 2); }
    Index place(Index row, Index column) const { return (row + 1) * (width + 2) + column + 1; }   // within the frame
    Index tap(Index t) const { return (t / 3 - 1) * (width + 2) + t % 3 - 1; }                    // step to its pixel
};

// Calls work(group) for blocks of W groups.
template <int W, typename Work> inline void along_groups(const Shape& s, Work work) {
    for (Index block = 0; block < s.full_groups(); block += W) {
        work(block + W <= s.groups ? block : s.groups - W);
    }
}

template <int W> struct Triple {         // one channel of each of W groups, three times
    Float<W> part[3];

    static Triple planar(const float* from, Index groups) {
        return {load<W>(from), load<W>(from + groups), load<W>(from + 2 * groups)};
    }
    template <typename T> static Triple interleaved(const T* from) {
        const Float<W> a = load<W>(from), b = load<W>(from + W), c = load<W>(from + 2 * W);
        return {every_third<W, 0>(a, b, c, Order<W>()), every_third<W, 1>(a, b, c, Order<W>()),
                every_third<W, 2>(a, b, c, Order<W>())};
    }
    void to_planar(float* to, Index groups) const {
        for (int m = 0; m < 3; ++m) store<W>(to + m * groups, part[m]);
    }
    template <typename T> void to_interleaved(T* to) const {
        store<W>(to, in_turns<W, 0>(part[0], part[1], part[2], Order<W>()));
        store<W>(to + W, in_turns<W, 1>(part[0], part[1], part[2], Order<W>()));
        store<W>(to + 2 * W, in_turns<W, 2>(part[0], part[1], part[2], Order<W>()));
    }
    void add(Float<W> weight, const Triple& v) {
        for (int m = 0; m < 3; ++m) part[m] += weight * v.part[m];
    }
};

// ---- one sample --------------------------------------------------------------------------------------------------

template <int W, typename T>
void read_image(const T* image, float* planar, const Shape& s) {
    for (Index row = 0; row < s.height; ++row) {
        for (Index column = 0; column < s.width; ++column) {
            const T* from = image + (row * s.width + column) * s.channels;
            float* to = planar + s.place(row, column) * s.channels;
            along_groups<W>(s, [&](Index g) { Triple<W>::interleaved(from + 3 * g).to_planar(to + g, s.groups); });
            for (Index c = s.leftover(); c < s.channels; ++c) store<1>(to + c, load<1>(from + c));
        }
    }
}

template <typename T>
void read_kernels(const T* kernel, float* k, const Shape& s, bool relu) {
    for (Index row = 0; row < s.height; ++row) {
        for (Index column = 0; column < s.width; ++column) {
            const T* from = kernel + (row * s.width + column) * s.taps();
            float* to = k + s.place(row, column) * s.stride();
            for (Index i = 0; i < s.taps(); ++i) {
                const float value = load<1>(from + i);
                to[i] = relu ? positive<1>(value) : value;
            }
        }
    }
}

template <typename T>
void write_kernels(const float* row, T* kernel, const Shape& s) {
    for (Index column = 0; column < s.width; ++column) {
        for (Index i = 0; i < s.taps(); ++i) store<1>(kernel + column * s.taps() + i, row[column * s.stride() + i]);
    }
}

// y(p) = sum over taps of k(p, tap) x(p + tap).  With `Back`, the same seen from x: k and x of the pixel that reads p
// through the tap, so that with x a gradient y becomes the gradient of the input.
template <int W, bool Back, typename T>
void convolve(const float* x, const float* k, T* y, const Shape& s) {
    for (Index row = 0; row < s.height; ++row) {
        for (Index column = 0; column < s.width; ++column) {
            const Index here = s.place(row, column);
            T* to = y + (row * s.width + column) * s.channels;
            along_groups<W>(s, [&](Index g) {
                Triple<W> sum = {};
#pragma GCC unroll 9
                for (Index t = 0; t < kTaps; ++t) {
                    const Index other = Back ? here - s.tap(t) : here + s.tap(t);
                    sum.add(load<W>(k + (Back ? other : here) * s.stride() + t * s.groups + g),
                            Triple<W>::planar(x + other * s.channels + g, s.groups));
                }
                sum.to_interleaved(to + 3 * g);
            });
            for (Index c = s.leftover(); c < s.channels; ++c) {
                float sum = 0;
                for (Index t = 0; t < kTaps; ++t) {
                    const Index other = Back ? here - s.tap(t) : here + s.tap(t);
                    sum += k[(Back ? other : here) * s.stride() + (t + 1) * s.groups - 1] * x[other * s.channels + c];
                }
                store<1>(to + c, sum);
            }
        }
    }
}

// The kernels' gradient along one image row: the sum over a group's channels of gradient(p) x(p + tap).
template <int W>
void correlate(const float* grad, const float* x, const float* k, float* out, const Shape& s, Index row, bool relu) {
    for (Index column = 0; column < s.width; ++column, out += s.stride()) {
        const Index here = s.place(row, column);
        const float *own = k + here * s.stride(), *pull = grad + here * s.channels;
        along_groups<W>(s, [&](Index g) {
            const Triple<W> d = Triple<W>::planar(pull + g, s.groups);
#pragma GCC unroll 9
            for (Index t = 0; t < kTaps; ++t) {
                const Triple<W> v = Triple<W>::planar(x + (here + s.tap(t)) * s.channels + g, s.groups);
                const Float<W> sum = d.part[0] * v.part[0] + d.part[1] * v.part[1] + d.part[2] * v.part[2];
                const Index i = t * s.groups + g;
                store<W>(out + i, relu ? where_positive<W>(load<W>(own + i), sum) : sum);
            }
        });
        for (Index t = 0; t < kTaps && s.leftover() < s.channels; ++t) {
            const Index i = (t + 1) * s.groups - 1;
            float sum = s.full_groups() ? out[i] : 0;
            for (Index c = s.leftover(); c < s.channels; ++c) sum += pull[c] * x[(here + s.tap(t)) * s.channels + c];
            out[i] = relu ? where_positive<1>(own[i], sum) : sum;
        }
    }
}

}  // namespace
