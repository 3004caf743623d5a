// Involution and its two gradients.  reference.py is the specification; common.cuh stands in front of this text.
//
// Two layouts of memory: "planes" is NCHW with kernels [N,G,9,H,W]; "pixels" is NHWC with a pixel's kernels tap-major,
// [N,H,W,9,G], or group-major, [N,H,W,G,9] (then V = 1).  A thread works on V neighbours in memory: pixels of a row in
// planes, groups of a pixel in pixels.  The kernel tensor, three times the size of x, moves through memory once.
// Both gradients gather, so no two threads write to one address: no atomics, the same bits each time.
// Every size is an argument.  With `relu`, max(kernel, 0) stands for the kernel.

namespace {

const int kTaps = 9;
const int kGroupChannels = 3;

struct Shape {
    int samples, channels, groups, height, width;
    Index tap_step, group_step;    // from one tap, one group of the kernel tensor to the next

    __device__ Index plane() const { return static_cast<Index>(height) * width; }
    __device__ bool inside(int row, int column) const {
        return row >= 0 && row < height && column >= 0 && column < width;
    }
};

template <typename Sum> __device__ Sum gate(Sum weight, Index relu) { return relu && weight < 0 ? Sum(0) : weight; }

// ---- planes ----

// V neighbouring pixels of a row, in one group of one sample.
template <int V> struct RowSite {
    int row, column, members;    // members: channels of the group, three, and in the last group the leftover ones too
    Index pixel;                 // offset in a plane
    Index image;                 // offset of the group's first channel in x and y
    Index kernel;                // offset of the group's first tap in the kernel

    __device__ RowSite(unsigned index, const Shape& shape) {
        const unsigned packs = shape.width / V, line = index / packs, map = line / shape.height;
        const unsigned sample = map / shape.groups;
        const int group = map % shape.groups, first = group * kGroupChannels;
        row = line % shape.height;
        column = index % packs * V;
        members = group + 1 < shape.groups ? kGroupChannels : shape.channels - first;
        pixel = static_cast<Index>(row) * shape.width + column;
        image = (static_cast<Index>(sample) * shape.channels + first) * shape.plane();
        kernel = static_cast<Index>(sample) * shape.groups * kTaps * shape.plane() + group * shape.group_step;
    }

    __device__ static unsigned count(const Shape& shape) {
        return shape.samples * shape.groups * shape.height * (shape.width / V);
    }
};

// The V pixels from `column` on of a row, and one more on either side; zero outside the image.
template <typename T, typename Sum, int L>
__device__ void load_line(Sum (&line)[L], const T* __restrict__ image, int row, int column, const Shape& shape) {
    const int V = L - 2;
    const bool inside = row >= 0 && row < shape.height;
    const T* start = image + static_cast<Index>(row) * shape.width + column;
    Sum middle[V] = {};
    if (inside) load<T, V>(middle, start);
    line[0] = inside && column > 0 ? static_cast<Sum>(start[-1]) : Sum(0);
#pragma unroll
    for (int i = 0; i < V; ++i) line[i + 1] = middle[i];
    line[V + 1] = inside && column + V < shape.width ? static_cast<Sum>(start[V]) : Sum(0);
}

template <typename T, int V>
__device__ void involution_planes(const T* __restrict__ x, const T* __restrict__ kernel, T* __restrict__ y,
                                  const Shape& shape, Index relu) {
    typedef typename Accumulator<T>::type Sum;
    for (unsigned index = first_index(); index < RowSite<V>::count(shape); index += index_step()) {
        const RowSite<V> site(index, shape);
        Sum weight[kTaps][V];
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
            load<T, V>(weight[tap], kernel + site.kernel + tap * shape.tap_step + site.pixel);
#pragma unroll
            for (int i = 0; i < V; ++i) weight[tap][i] = gate(weight[tap][i], relu);
        }
#pragma unroll 1
        for (int member = 0; member < site.members; ++member) {
            const Index image = site.image + member * shape.plane();
            Sum sum[V] = {}, line[V + 2];
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                if (tap % 3 == 0) load_line<T>(line, x + image, site.row + tap / 3 - 1, site.column, shape);
#pragma unroll
                for (int i = 0; i < V; ++i) sum[i] += weight[tap][i] * line[i + tap % 3];
            }
            store<T, V>(y + image + site.pixel, sum);
        }
    }
}

// x at this pixel went into y at the pixels around it, each time with that pixel's kernel.
template <typename T, int V>
__device__ void involution_grad_input_planes(const T* __restrict__ grad, const T* __restrict__ kernel,
                                             T* __restrict__ out, const Shape& shape, Index relu) {
    typedef typename Accumulator<T>::type Sum;
    for (unsigned index = first_index(); index < RowSite<V>::count(shape); index += index_step()) {
        const RowSite<V> site(index, shape);
        Sum weight[kTaps][V], line[V + 2];
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
            load_line<T>(line, kernel + site.kernel + tap * shape.tap_step, site.row + 1 - tap / 3, site.column, shape);
#pragma unroll
            for (int i = 0; i < V; ++i) weight[tap][i] = gate(line[i + 2 - tap % 3], relu);
        }
#pragma unroll 1
        for (int member = 0; member < site.members; ++member) {
            const Index image = site.image + member * shape.plane();
            Sum sum[V] = {};
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                if (tap % 3 == 0) load_line<T>(line, grad + image, site.row + 1 - tap / 3, site.column, shape);
#pragma unroll
                for (int i = 0; i < V; ++i) sum[i] += weight[tap][i] * line[i + 2 - tap % 3];
            }
            store<T, V>(out + image + site.pixel, sum);
        }
    }
}

template <typename T, int V>
__device__ void involution_grad_kernel_planes(const T* __restrict__ grad, const T* __restrict__ x,
                                              const T* __restrict__ kernel, T* __restrict__ out, const Shape& shape,
                                              Index relu) {
    typedef typename Accumulator<T>::type Sum;
    for (unsigned index = first_index(); index < RowSite<V>::count(shape); index += index_step()) {
        const RowSite<V> site(index, shape);
        Sum sum[kTaps][V] = {};
#pragma unroll 1
        for (int member = 0; member < site.members; ++member) {
            const Index image = site.image + member * shape.plane();
            Sum pull[V], line[V + 2];
            load<T, V>(pull, grad + image + site.pixel);
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                if (tap % 3 == 0) load_line<T>(line, x + image, site.row + tap / 3 - 1, site.column, shape);
#pragma unroll
                for (int i = 0; i < V; ++i) sum[tap][i] += pull[i] * line[i + tap % 3];
            }
        }
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
            const Index place = site.kernel + tap * shape.tap_step + site.pixel;
            if (relu) {
                Sum weight[V];
                load<T, V>(weight, kernel + place);
#pragma unroll
                for (int i = 0; i < V; ++i) sum[tap][i] = weight[i] <= 0 ? Sum(0) : sum[tap][i];
            }
            store<T, V>(out + place, sum[tap]);
        }
    }
}

// ---- pixels ----

// V neighbouring groups at one pixel of one sample.
template <int V> struct PixelSite {
    int row, column;
    int channel;        // the first one of the 3 V channels; below three channels in all there is no such block
    int tail, end;      // channels that join the last of the V groups besides
    Index pixel;        // counted over all samples
    Index kernel;       // offset of the first group in the kernels of a pixel

    __device__ PixelSite(unsigned index, const Shape& shape) {
        const unsigned packs = shape.groups / V, place = index / packs, line = place / shape.width;
        const int group = index % packs * V;
        row = line % shape.height;
        column = place % shape.width;
        pixel = place;
        channel = group * kGroupChannels;
        kernel = group * shape.group_step;
        tail = whole(shape) ? shape.groups * kGroupChannels : 0;
        end = group + V < shape.groups ? tail : shape.channels;
    }

    __device__ static bool whole(const Shape& shape) { return shape.channels >= kGroupChannels; }
    __device__ static unsigned count(const Shape& shape) {
        return shape.samples * shape.height * shape.width * (shape.groups / V);
    }
};

// Numbers of one pixel: CHANNELS from `from` on, in packs of V.
template <int V, typename T, typename Sum, int CHANNELS>
__device__ void load_pixel(Sum (&numbers)[CHANNELS], const T* __restrict__ from) {
    Sum part[V];
#pragma unroll
    for (int start = 0; start < CHANNELS; start += V) {
        load<T, V>(part, from + start);
#pragma unroll
        for (int i = 0; i < V; ++i) numbers[start + i] = part[i];
    }
}

template <int V, typename T, typename Sum, int CHANNELS>
__device__ void store_pixel(T* __restrict__ to, const Sum (&numbers)[CHANNELS]) {
    Sum part[V];
#pragma unroll
    for (int start = 0; start < CHANNELS; start += V) {
#pragma unroll
        for (int i = 0; i < V; ++i) part[i] = numbers[start + i];
        store<T, V>(to + start, part);
    }
}

// The sum over the nine pixels around the site (SIGN 1: those that y reads; -1: those that read x), for the channels
// from `channel` on: three to each of the V groups, or a single one of the last group.  `kernel` points at the first of
// the V groups in pixel 0.
template <typename T, int V, int CHANNELS, int SIGN>
__device__ void sum_pixels(const T* __restrict__ x, const T* __restrict__ kernel, T* __restrict__ y, int channel,
                           const PixelSite<V>& site, const Shape& shape, Index relu) {
    typedef typename Accumulator<T>::type Sum;
    Sum sum[CHANNELS] = {};
#pragma unroll (CHANNELS == 1 ? 1 : 3)
    for (int tap = 0; tap < kTaps; ++tap) {
        const int down = SIGN * (tap / 3 - 1), right = SIGN * (tap % 3 - 1);
        if (!shape.inside(site.row + down, site.column + right)) continue;
        const Index pixel = site.pixel + down * shape.width + right;
        const Index weights = (SIGN > 0 ? site.pixel : pixel) * kTaps * shape.groups + tap * shape.tap_step;
        Sum weight[V], numbers[CHANNELS];
        load<T, V>(weight, kernel + weights);
        load_pixel<CHANNELS < V ? 1 : V>(numbers, x + pixel * shape.channels + channel);
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
            sum[i] += gate(weight[CHANNELS == 1 ? V - 1 : i / kGroupChannels], relu) * numbers[i];
        }
    }
    store_pixel<CHANNELS < V ? 1 : V>(y + site.pixel * shape.channels + channel, sum);
}

template <typename T, int V, int SIGN>
__device__ void walk_pixels(const T* __restrict__ x, const T* __restrict__ kernel, T* __restrict__ y,
                            const Shape& shape, Index relu) {
    for (unsigned index = first_index(); index < PixelSite<V>::count(shape); index += index_step()) {
        const PixelSite<V> site(index, shape);
        const T* weights = kernel + site.kernel;
        if (site.whole(shape)) {
            sum_pixels<T, V, kGroupChannels * V, SIGN>(x, weights, y, site.channel, site, shape, relu);
        }
#pragma unroll 1
        for (int channel = site.tail; channel < site.end; ++channel) {
            sum_pixels<T, V, 1, SIGN>(x, weights, y, channel, site, shape, relu);
        }
    }
}

template <typename T, int V>
__device__ void involution_pixels(const T* __restrict__ x, const T* __restrict__ kernel, T* __restrict__ y,
                                  const Shape& shape, Index relu) {
    walk_pixels<T, V, 1>(x, kernel, y, shape, relu);
}

template <typename T, int V>
__device__ void involution_grad_input_pixels(const T* __restrict__ grad, const T* __restrict__ kernel,
                                             T* __restrict__ out, const Shape& shape, Index relu) {
    walk_pixels<T, V, -1>(grad, kernel, out, shape, relu);
}

template <typename T, int V>
__device__ void involution_grad_kernel_pixels(const T* __restrict__ grad, const T* __restrict__ x,
                                              const T* __restrict__ kernel, T* __restrict__ out, const Shape& shape,
                                              Index relu) {
    typedef typename Accumulator<T>::type Sum;
    const int channels = kGroupChannels * V;
    for (unsigned index = first_index(); index < PixelSite<V>::count(shape); index += index_step()) {
        const PixelSite<V> site(index, shape);
        const T* here = grad + site.pixel * shape.channels;
        Sum pull[channels] = {};
        if (site.whole(shape)) load_pixel<V>(pull, here + site.channel);
#pragma unroll 3
        for (int tap = 0; tap < kTaps; ++tap) {
            const int down = tap / 3 - 1, right = tap % 3 - 1;
            Sum sum[V] = {};
            if (shape.inside(site.row + down, site.column + right)) {
                const T* there = x + (site.pixel + down * shape.width + right) * shape.channels;
                Sum numbers[channels] = {};
                if (site.whole(shape)) load_pixel<V>(numbers, there + site.channel);
#pragma unroll
                for (int i = 0; i < channels; ++i) sum[i / kGroupChannels] += pull[i] * numbers[i];
        #pragma unroll 1
        for (int channel = site.tail; channel < site.end; ++channel) {
                    sum[V - 1] += static_cast<Sum>(here[channel]) * static_cast<Sum>(there[channel]);
                }
            }
            const Index place = site.pixel * kTaps * shape.groups + site.kernel + tap * shape.tap_step;
            if (relu) {
                Sum weight[V];
                load<T, V>(weight, kernel + place);
#pragma unroll
                for (int i = 0; i < V; ++i) sum[i] = weight[i] <= 0 ? Sum(0) : sum[i];
            }
            store<T, V>(out + place, sum);
        }
    }
}

}  // namespace

#define SIZES                                                                                                         \
    Index samples, Index channels, Index groups, Index height, Index width, Index tap_step, Index group_step, Index relu
#define SHAPE                                                                                                         \
    (Shape{static_cast<int>(samples), static_cast<int>(channels), static_cast<int>(groups), static_cast<int>(height), \
           static_cast<int>(width), tap_step, group_step})

#define INVOLUTION_KERNELS(LAYOUT, V, NAME, T)                                                                        \
    extern "C" __global__ void involution_##LAYOUT##V##_##NAME(const T* __restrict__ x, const T* __restrict__ kernel, \
                                                               T* __restrict__ y, SIZES) {                            \
        involution_##LAYOUT<T, V>(x, kernel, y, SHAPE, relu);                                                         \
    }                                                                                                                 \
    extern "C" __global__ void involution_grad_input_##LAYOUT##V##_##NAME(                                            \
        const T* __restrict__ grad, const T* __restrict__ kernel, T* __restrict__ out, SIZES) {                       \
        involution_grad_input_##LAYOUT<T, V>(grad, kernel, out, SHAPE, relu);                                         \
    }                                                                                                                 \
    extern "C" __global__ void involution_grad_kernel_##LAYOUT##V##_##NAME(                                           \
        const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ kernel, T* __restrict__ out,       \
        SIZES) {                                                                                                      \
        involution_grad_kernel_##LAYOUT<T, V>(grad, x, kernel, out, SHAPE, relu);                                     \
    }

INVOLUTION_KERNELS(planes, 1, float64, double)
INVOLUTION_KERNELS(planes, 1, float32, float)
INVOLUTION_KERNELS(planes, 4, float32, float)
INVOLUTION_KERNELS(planes, 1, float16, __half)
INVOLUTION_KERNELS(planes, 4, float16, __half)
INVOLUTION_KERNELS(planes, 1, bfloat16, __nv_bfloat16)
INVOLUTION_KERNELS(planes, 4, bfloat16, __nv_bfloat16)

INVOLUTION_KERNELS(pixels, 1, float64, double)
INVOLUTION_KERNELS(pixels, 1, float32, float)
INVOLUTION_KERNELS(pixels, 2, float32, float)
INVOLUTION_KERNELS(pixels, 4, float32, float)
INVOLUTION_KERNELS(pixels, 1, float16, __half)
INVOLUTION_KERNELS(pixels, 2, float16, __half)
INVOLUTION_KERNELS(pixels, 8, float16, __half)
INVOLUTION_KERNELS(pixels, 1, bfloat16, __nv_bfloat16)
INVOLUTION_KERNELS(pixels, 2, bfloat16, __nv_bfloat16)
INVOLUTION_KERNELS(pixels, 8, bfloat16, __nv_bfloat16)
