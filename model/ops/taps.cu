// The rows of a layer that makes involution kernels, in the order [group, tap] or [tap, group]; common.cuh stands in
// front of this text.

namespace {

const unsigned kTapsOfAKernel = 9;

// weight [rows, columns] and bias [rows] -> the same, row by row from the place that it has in the other order.
template <typename T>
__device__ void reorder_taps(const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ weight_out,
                             T* __restrict__ bias_out, unsigned rows, unsigned columns, bool by_tap) {
    const unsigned groups = rows / kTapsOfAKernel, inner = by_tap ? groups : kTapsOfAKernel, outer = rows / inner;
    for (unsigned index = first_index(); index < rows * (columns + 1); index += index_step()) {
        const unsigned row = index / (columns + 1), column = index % (columns + 1), from = row % inner * outer + row / inner;
        if (column < columns) {
            weight_out[static_cast<Index>(row) * columns + column] = weight[static_cast<Index>(from) * columns + column];
        } else {
            bias_out[row] = bias[from];
        }
    }
}

}  // namespace

#define TAP_KERNEL(NAME, T)                                                                                           \
    extern "C" __global__ void reorder_taps_##NAME(const T* __restrict__ weight, const T* __restrict__ bias,          \
                                                   T* __restrict__ weight_out, T* __restrict__ bias_out, Index rows,  \
                                                   Index columns, Index by_tap) {                                     \
        reorder_taps<T>(weight, bias, weight_out, bias_out, rows, columns, by_tap);                                   \
    }

TAP_KERNEL(float64, double)
TAP_KERNEL(float32, float)
