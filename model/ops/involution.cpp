// Involution with both gradients for the CPU, by itself and together with the 1x1 convolution that makes its kernels.
// reference.py is the specification.
//
// A thread takes one sample at a time (sample.h).  Where the convolution is done here, the kernels of the whole batch,
// three times the size of its images, are never in memory.

#include <algorithm>

#include "matrices.h"
#include "sample.h"
#include "vectors.h"

namespace {

// ---- the convolution that makes the kernels -----------------------------------------------------------------------

// kernel[tap, group] = bias + weight . hidden, with weight [groups][taps][reduced], bias [groups][taps].  The bias is
// the weight of one more hidden channel that is always 1.
struct Maker {
    Index reduced, room;        // hidden channels; room for them and the 1 in a buffer
    Buffer by_hidden;           // [reduced + 1][stride]: to make kernels
    Buffer by_kernel;           // [stride][room]: to take their gradient back

    Maker(const float* weight, const float* bias, Index count, const Shape& s)
        : reduced(count), room(padded(count + 1, 8)), by_hidden((count + 1) * s.stride()), by_kernel(s.stride() * room) {
        for (Index g = 0; g < s.groups; ++g) {
            for (Index t = 0; t < kTaps; ++t) {
                const Index from = g * kTaps + t, to = t * s.groups + g;
                for (Index r = 0; r < reduced; ++r) {
                    by_hidden[r * s.stride() + to] = by_kernel[to * room + r] = weight[from * reduced + r];
                }
                by_hidden[reduced * s.stride() + to] = bias[from];
            }
        }
    }

    template <typename T> void read(const T* hidden, float* h, Index pixels) const {
        for (Index p = 0; p < pixels; ++p) {
            for (Index r = 0; r < reduced; ++r) h[p * room + r] = load<1>(hidden + p * reduced + r);
            h[p * room + reduced] = 1;
        }
    }

    template <typename T> void write(const float* h, T* hidden, Index pixels) const {
        for (Index p = 0; p < pixels; ++p) {
            for (Index r = 0; r < reduced; ++r) store<1>(hidden + p * reduced + r, h[p * room + r]);
        }
    }

    void make(const float* h, float* k, const Shape& s, bool relu) const {
        for (Index row = 0; row < s.height; ++row) {
            float* to = k + s.place(row, 0) * s.stride();
            multiply<false>(s.width, s.stride(), reduced + 1, {h + row * s.width * room, room, 1}, by_hidden + 0,
                            s.stride(), to, s.stride());
            for (Index i = 0; relu && i < s.width * s.stride(); i += kVector) {
                store<kVector>(to + i, positive<kVector>(load<kVector>(to + i)));
            }
        }
    }
};

// ---- whole batches -----------------------------------------------------------------------------------------------

// Calls work(width) with the widest vector that the groups fill, as a constant.
template <typename Work> void with_width(const Shape& s, Work work) {
    if (s.groups >= 16) work(std::integral_constant<int, 16>());
    else if (s.groups >= 8) work(std::integral_constant<int, 8>());
    else if (s.groups >= 4) work(std::integral_constant<int, 4>());
    else work(std::integral_constant<int, 1>());
}

struct Room {                // what a thread needs for a sample
    Buffer x, grad, k, hidden;
    Index strip;             // rows whose kernel gradients are in the cache at a time: as many as fill a deep product
    Buffer pull;

    explicit Room(const Shape& s, Index hidden_room = 0)
        : x(s.framed() * s.channels), grad(s.framed() * s.channels), k(s.framed() * s.stride()),
          hidden(s.pixels() * hidden_room), strip(std::clamp<Index>(64 / s.width, 1, s.height)),
          pull(strip * s.width * s.stride()) {}
};

template <typename T>
void involution(const T* x, const T* kernel, T* y, const Shape& s, bool relu) {
#pragma omp parallel
    {
        Room room(s);
#pragma omp for schedule(static)
        for (Index n = 0; n < s.samples; ++n) {
            const Index image = n * s.pixels() * s.channels;
            with_width(s, [&](auto width) {
                read_image<width>(x + image, room.x, s);
                read_kernels(kernel + n * s.pixels() * s.taps(), room.k, s, relu);
                convolve<width, false>(room.x, room.k, y + image, s);
            });
        }
    }
}

template <typename T>
void involution_backward(const T* grad, const T* x, const T* kernel, T* grad_x, T* grad_kernel, const Shape& s,
                         bool relu) {
#pragma omp parallel
    {
        Room room(s);
#pragma omp for schedule(static)
        for (Index n = 0; n < s.samples; ++n) {
            const Index image = n * s.pixels() * s.channels, kernels = n * s.pixels() * s.taps();
            with_width(s, [&](auto width) {
                read_image<width>(grad + image, room.grad, s);
                read_kernels(kernel + kernels, room.k, s, relu);
                if (grad_x) convolve<width, true>(room.grad, room.k, grad_x + image, s);
                if (!grad_kernel) return;
                read_image<width>(x + image, room.x, s);
                for (Index row = 0; row < s.height; ++row) {
                    correlate<width>(room.grad, room.x, room.k, room.pull, s, row, relu);
                    write_kernels(room.pull, grad_kernel + kernels + row * s.width * s.taps(), s);
                }
            });
        }
    }
}

template <typename T>
void generated(const T* x, const T* hidden, const float* weight, const float* bias, T* y, const Shape& s,
               Index reduced, bool relu) {
    const Maker maker(weight, bias, reduced, s);
#pragma omp parallel
    {
        Room room(s, maker.room);
#pragma omp for schedule(static)
        for (Index n = 0; n < s.samples; ++n) {
            const Index image = n * s.pixels() * s.channels;
            maker.read(hidden + n * s.pixels() * reduced, room.hidden, s.pixels());
            maker.make(room.hidden, room.k, s, relu);
            with_width(s, [&](auto width) {
                read_image<width>(x + image, room.x, s);
                convolve<width, false>(room.x, room.k, y + image, s);
            });
        }
    }
}

const Index kShares = 32;    // of the batch, each with sums of its own: the same bits with any number of threads

template <typename T>
void generated_backward(const T* grad, const T* x, const T* hidden, const float* weight, const float* bias, T* grad_x,
                        T* grad_hidden, float* grad_weight, float* grad_bias, const Shape& s, Index reduced,
                        bool relu) {
    const Maker maker(weight, bias, reduced, s);
    const Index shares = std::min(kShares, s.samples), size = (reduced + 1) * s.stride();
    Buffer sums(grad_weight ? shares * size : 0);
#pragma omp parallel
    {
        Room room(s, maker.room);
        Buffer back(room.strip * s.width * maker.room);
#pragma omp for schedule(static)
        for (Index share = 0; share < shares; ++share) {
            for (Index n = share * s.samples / shares; n < (share + 1) * s.samples / shares; ++n) {
                const Index image = n * s.pixels() * s.channels;
                maker.read(hidden + n * s.pixels() * reduced, room.hidden, s.pixels());
                maker.make(room.hidden, room.k, s, relu);
                with_width(s, [&](auto width) {
                    read_image<width>(grad + image, room.grad, s);
                    if (grad_x) convolve<width, true>(room.grad, room.k, grad_x + image, s);
                    read_image<width>(x + image, room.x, s);
                    for (Index row = 0; row < s.height; row += room.strip) {
                        const Index rows = std::min(room.strip, s.height - row), pixels = rows * s.width;
                        for (Index i = 0; i < rows; ++i) {
                            correlate<width>(room.grad, room.x, room.k, room.pull + i * s.width * s.stride(), s,
                                             row + i, relu);
                        }
                        const float* h = room.hidden + row * s.width * maker.room;
                        if (grad_weight) {
                            multiply<true>(reduced + 1, s.stride(), pixels, {h, 1, maker.room}, room.pull + 0,
                                           s.stride(), sums + share * size, s.stride());
                        }
                        multiply<false>(pixels, maker.room, s.taps(), {room.pull + 0, s.stride(), 1},
                                        maker.by_kernel + 0, maker.room, back, maker.room);
                        maker.write(back, grad_hidden + (n * s.pixels() + row * s.width) * reduced, pixels);
                    }
                });
            }
        }
    }
    for (Index i = 0; grad_weight && i < s.taps(); ++i) {
        const Index to = i % s.groups * kTaps + i / s.groups;
        for (Index r = 0; r <= reduced; ++r) {
            double sum = 0;
            for (Index share = 0; share < shares; ++share) sum += sums[share * size + r * s.stride() + i];
            (r < reduced ? grad_weight[to * reduced + r] : grad_bias[to]) = static_cast<float>(sum);
        }
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                               \
    extern "C" void involution_##NAME(const T* x, const T* kernel, T* y, const Shape* shape, int relu) {              \
        involution(x, kernel, y, *shape, relu);                                                                       \
    }                                                                                                                 \
    extern "C" void involution_backward_##NAME(const T* grad, const T* x, const T* kernel, T* grad_x, T* grad_kernel, \
                                               const Shape* shape, int relu) {                                        \
        involution_backward(grad, x, kernel, grad_x, grad_kernel, *shape, relu);                                      \
    }                                                                                                                 \
    extern "C" void generated_##NAME(const T* x, const T* hidden, const float* weight, const float* bias, T* y,       \
                                     const Shape* shape, Index reduced, int relu) {                                   \
        generated(x, hidden, weight, bias, y, *shape, reduced, relu);                                                 \
    }                                                                                                                 \
    extern "C" void generated_backward_##NAME(const T* grad, const T* x, const T* hidden, const float* weight,        \
                                              const float* bias, T* grad_x, T* grad_hidden, float* grad_weight,       \
                                              float* grad_bias, const Shape* shape, Index reduced, int relu) {        \
        generated_backward(grad, x, hidden, weight, bias, grad_x, grad_hidden, grad_weight, grad_bias, *shape,        \
                           reduced, relu);                                                                            \
    }

EXPORT(float32, float)
EXPORT(bfloat16, BFloat16)
