// Involution with both gradients, and the gather of image patches.  reference.py is the specification.
//
// Every tensor is contiguous (NCHW), every size is an argument.  One thread works on one (sample, group, pixel):
// it keeps the pixel's nine kernel values, or their nine sums, in registers and walks the group's channels, so the
// kernel tensor (three times the size of x) moves through memory once, and neighbouring threads touch neighbouring
// pixels of a row.  Both gradients gather, so no two threads write to one address: no atomics, the same bits each time.
// Half types are summed in float.

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace {

typedef long long Index;

const int kTaps = 9;
const int kGroupChannels = 3;

template <typename T> struct Accumulator { typedef T type; };
template <> struct Accumulator<__half> { typedef float type; };
template <> struct Accumulator<__nv_bfloat16> { typedef float type; };

struct Shape {
    Index samples, channels, groups, height, width;

    __device__ Index plane() const { return height * width; }
    __device__ Index sites() const { return samples * groups * plane(); }
    __device__ bool inside(Index row, Index column) const {
        return row >= 0 && row < height && column >= 0 && column < width;
    }
};

// What one thread works on: a pixel of one group of one sample.
struct Site {
    Index row, column, pixel;
    Index image;    // offset of the group's first channel in x and y
    Index kernel;   // offset of the pixel's first tap in the kernel; the next tap lies one plane further
    Index members;  // channels of the group: three, and in the last group the leftover ones too

    __device__ Site(Index index, const Shape& shape) {
        pixel = index % shape.plane();
        row = pixel / shape.width;
        column = pixel % shape.width;
        const Index map = index / shape.plane();
        const Index group = map % shape.groups, sample = map / shape.groups;
        const Index first = group * kGroupChannels;
        members = group + 1 < shape.groups ? kGroupChannels : shape.channels - first;
        image = (sample * shape.channels + first) * shape.plane();
        kernel = map * kTaps * shape.plane() + pixel;
    }
};

__device__ Index first_index() { return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ Index index_step() { return static_cast<Index>(gridDim.x) * blockDim.x; }

template <typename T>
__device__ void involution(const T* __restrict__ x, const T* __restrict__ kernel, T* __restrict__ y, Shape shape) {
    typedef typename Accumulator<T>::type Sum;
    for (Index index = first_index(); index < shape.sites(); index += index_step()) {
        const Site site(index, shape);
        Sum weight[kTaps];
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
            weight[tap] = static_cast<Sum>(kernel[site.kernel + tap * shape.plane()]);
        }
        for (Index member = 0; member < site.members; ++member) {
            const Index image = site.image + member * shape.plane();
            Sum sum = 0;
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                const Index row = site.row + tap / 3 - 1, column = site.column + tap % 3 - 1;
                if (shape.inside(row, column)) {
                    sum += weight[tap] * static_cast<Sum>(x[image + row * shape.width + column]);
                }
            }
            y[image + site.pixel] = static_cast<T>(sum);
        }
    }
}

// x at this pixel went into y at the pixels around it, each time with that pixel's kernel.
template <typename T>
__device__ void involution_grad_input(const T* __restrict__ grad, const T* __restrict__ kernel, T* __restrict__ out,
                                      Shape shape) {
    typedef typename Accumulator<T>::type Sum;
    for (Index index = first_index(); index < shape.sites(); index += index_step()) {
        const Site site(index, shape);
        Sum weight[kTaps];
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
            const Index down = 1 - tap / 3, right = 1 - tap % 3;
            const bool inside = shape.inside(site.row + down, site.column + right);
            const Index reader = site.kernel + tap * shape.plane() + down * shape.width + right;
            weight[tap] = inside ? static_cast<Sum>(kernel[reader]) : Sum(0);
        }
        for (Index member = 0; member < site.members; ++member) {
            const Index image = site.image + member * shape.plane();
            Sum sum = 0;
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                const Index row = site.row + 1 - tap / 3, column = site.column + 1 - tap % 3;
                if (shape.inside(row, column)) {
                    sum += weight[tap] * static_cast<Sum>(grad[image + row * shape.width + column]);
                }
            }
            out[image + site.pixel] = static_cast<T>(sum);
        }
    }
}

template <typename T>
__device__ void involution_grad_kernel(const T* __restrict__ grad, const T* __restrict__ x, T* __restrict__ out,
                                       Shape shape) {
    typedef typename Accumulator<T>::type Sum;
    for (Index index = first_index(); index < shape.sites(); index += index_step()) {
        const Site site(index, shape);
        Sum sum[kTaps] = {};
        for (Index member = 0; member < site.members; ++member) {
            const Index image = site.image + member * shape.plane();
            const Sum pull = static_cast<Sum>(grad[image + site.pixel]);
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                const Index row = site.row + tap / 3 - 1, column = site.column + tap % 3 - 1;
                if (shape.inside(row, column)) {
                    sum[tap] += pull * static_cast<Sum>(x[image + row * shape.width + column]);
                }
            }
        }
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
            out[site.kernel + tap * shape.plane()] = static_cast<T>(sum[tap]);
        }
    }
}

// Folded at 0 and at length - 1.  A centre outside the scene can't lead to a read outside it.
__device__ Index mirror(Index index, Index length) {
    index = index < 0 ? -index : index;
    index = index < length ? index : 2 * (length - 1) - index;
    return index < 0 ? 0 : index;
}

// Copies bits, so that one kernel serves every type of its width.
template <typename Bits>
__device__ void gather_patches(const Bits* __restrict__ cube, const Index* __restrict__ centres, Bits* __restrict__ out,
                               Index patches, Index bands, Index height, Index width, Index size) {
    const Index total = patches * bands * size * size;
    for (Index index = first_index(); index < total; index += index_step()) {
        const Index column = index % size, row = index / size % size;
        const Index map = index / (size * size);
        const Index band = map % bands, patch = map / bands;
        const Index y = mirror(centres[2 * patch] + row - size / 2, height);
        const Index x = mirror(centres[2 * patch + 1] + column - size / 2, width);
        out[index] = cube[(band * height + y) * width + x];
    }
}

}  // namespace

#define INVOLUTION_KERNEL(OP, NAME, T)                                                                                \
    extern "C" __global__ void OP##_##NAME(const T* first, const T* second, T* out, Index samples, Index channels,    \
                                           Index groups, Index height, Index width) {                                 \
        OP<T>(first, second, out, Shape{samples, channels, groups, height, width});                                   \
    }
#define INVOLUTION_KERNELS(NAME, T)                                                                                   \
    INVOLUTION_KERNEL(involution, NAME, T)                                                                            \
    INVOLUTION_KERNEL(involution_grad_input, NAME, T)                                                                 \
    INVOLUTION_KERNEL(involution_grad_kernel, NAME, T)

INVOLUTION_KERNELS(float64, double)
INVOLUTION_KERNELS(float32, float)
INVOLUTION_KERNELS(float16, __half)
INVOLUTION_KERNELS(bfloat16, __nv_bfloat16)

#define GATHER_KERNEL(WIDTH, BITS)                                                                                    \
    extern "C" __global__ void gather_patches_##WIDTH(const BITS* cube, const Index* centres, BITS* out,              \
                                                      Index patches, Index bands, Index height, Index width,          \
                                                      Index size) {                                                   \
        gather_patches<BITS>(cube, centres, out, patches, bands, height, width, size);                                \
    }

GATHER_KERNEL(8bit, unsigned char)
GATHER_KERNEL(16bit, unsigned short)
GATHER_KERNEL(32bit, unsigned int)
GATHER_KERNEL(64bit, unsigned long long)
