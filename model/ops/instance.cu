// InstanceNorm with a gain and an offset per sample, a leaky ReLU and a residual, and its gradient.  norms_reference.py
// is the specification; norm_grad.cu stands in front of this text.
//
// y = act((x - mean) rstd (1 + gamma) + beta) + residual, mean and rstd over the pixels of a channel of a sample of
// NHWC images; act(z) = z for z > 0, else leak z.  A thread works on one channel of one sample, so that each sum is one
// thread's.

namespace {

struct Maps {
    int samples, channels;
    Index pixels;
};

template <typename Sum> struct Channel {
    Index image, statistic;      // offsets of its first pixel and of its mean in [samples, 2, C]; rstd lies C behind
    Sum scale, shift;

    __device__ Channel(unsigned index, const Sum* __restrict__ styles, const Maps& maps) {
        const unsigned sample = index / maps.channels, channel = index % maps.channels;
        image = sample * maps.pixels * maps.channels + channel;
        statistic = static_cast<Index>(sample) * 2 * maps.channels + channel;
        scale = styles ? 1 + styles[statistic] : Sum(1);
        shift = styles ? styles[statistic + maps.channels] : Sum(0);
    }
};

template <typename T>
__device__ void instance_norm(const T* __restrict__ x, const typename Accumulator<T>::type* __restrict__ styles,
                              const T* __restrict__ residual, T* __restrict__ y,
                              typename Accumulator<T>::type* __restrict__ statistics, const Maps& maps, Wide eps,
                              Wide leak) {
    typedef typename Accumulator<T>::type Sum;
    for (unsigned index = first_index(); index < maps.samples * maps.channels; index += index_step()) {
        const Channel<Sum> own(index, styles, maps);
        const Sum origin = static_cast<Sum>(x[own.image]);
        Sum sum = 0, squares = 0;
#pragma unroll 4
        for (Index pixel = 0; pixel < maps.pixels; ++pixel) {
            sum += static_cast<Sum>(x[own.image + pixel * maps.channels]) - origin;
        }
        const Sum mean = origin + sum / maps.pixels;
#pragma unroll 4
        for (Index pixel = 0; pixel < maps.pixels; ++pixel) {
            const Sum centred = static_cast<Sum>(x[own.image + pixel * maps.channels]) - mean;
            squares += centred * centred;
        }
        const Sum rstd = inverse_root(squares / maps.pixels, eps);
        statistics[own.statistic] = mean;
        statistics[own.statistic + maps.channels] = rstd;
#pragma unroll 4
        for (Index pixel = 0; pixel < maps.pixels; ++pixel) {
            const Index at = own.image + pixel * maps.channels;
            const Sum z = (static_cast<Sum>(x[at]) - mean) * (rstd * own.scale) + own.shift;
            const Sum more = residual ? static_cast<Sum>(residual[at]) : Sum(0);
            y[at] = static_cast<T>((z < 0 ? static_cast<Sum>(leak) * z : z) + more);
        }
    }
}

// The gradient of x, and of styles where there are any.
template <typename T>
__device__ void instance_norm_backward(const T* __restrict__ grad, const T* __restrict__ x,
                                       const typename Accumulator<T>::type* __restrict__ statistics,
                                       const typename Accumulator<T>::type* __restrict__ styles,
                                       typename Accumulator<T>::type* __restrict__ grad_styles, T* __restrict__ grad_x,
                                       const Maps& maps, Wide leak) {
    typedef typename Accumulator<T>::type Sum;
    for (unsigned index = first_index(); index < maps.samples * maps.channels; index += index_step()) {
        const Channel<Sum> own(index, styles, maps);
        const Sum mean = statistics[own.statistic], rstd = statistics[own.statistic + maps.channels];
        Sum total = 0, projected = 0;
#pragma unroll 4
        for (Index pixel = 0; pixel < maps.pixels; ++pixel) {
            const Index at = own.image + pixel * maps.channels;
            const Sum unit = (static_cast<Sum>(x[at]) - mean) * rstd, pull = static_cast<Sum>(grad[at]);
            const Sum d = through(unit * own.scale + own.shift, pull, leak);
            total += d;
            projected += d * unit;
        }
        if (styles) {
            grad_styles[own.statistic] = projected;
            grad_styles[own.statistic + maps.channels] = total;
        }
#pragma unroll 4
        for (Index pixel = 0; pixel < maps.pixels; ++pixel) {
            const Index at = own.image + pixel * maps.channels;
            const Sum unit = (static_cast<Sum>(x[at]) - mean) * rstd, pull = static_cast<Sum>(grad[at]);
            const Sum d = through(unit * own.scale + own.shift, pull, leak);
            grad_x[at] = static_cast<T>(rstd * own.scale * (d - (total + unit * projected) / maps.pixels));
        }
    }
}

}  // namespace

#define MAPS (Maps{static_cast<int>(samples), static_cast<int>(channels), pixels})
#define INSTANCE_KERNELS(NAME, T, SUM)                                                                                \
    extern "C" __global__ void instance_norm_##NAME(const T* __restrict__ x, const SUM* __restrict__ styles,          \
                                                    const T* __restrict__ residual, T* __restrict__ y,                \
                                                    SUM* __restrict__ statistics, Index samples, Index channels,      \
                                                    Index pixels, Wide eps, Wide leak) {                              \
        instance_norm<T>(x, styles, residual, y, statistics, MAPS, eps, leak);                                        \
    }                                                                                                                 \
    extern "C" __global__ void instance_norm_backward_##NAME(                                                         \
        const T* __restrict__ grad, const T* __restrict__ x, const SUM* __restrict__ statistics,                      \
        const SUM* __restrict__ styles, SUM* __restrict__ grad_styles, T* __restrict__ grad_x, Index samples,         \
        Index channels, Index pixels, Wide leak) {                                                                    \
        instance_norm_backward<T>(grad, x, statistics, styles, grad_styles, grad_x, MAPS, leak);                      \
    }

INSTANCE_KERNELS(float64, double, double)
INSTANCE_KERNELS(float32, float, float)
INSTANCE_KERNELS(float16, __half, float)
INSTANCE_KERNELS(bfloat16, __nv_bfloat16, float)
