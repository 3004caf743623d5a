// What the kernels share: indices, packs of neighbouring numbers, the type that sums are kept in.
//
// cuda.py puts this text in front of involution.cu and patches.cu and compiles the whole, so none of them includes it.

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace {

typedef long long Index;

// Each thread works on every index_step()-th item from first_index() on: any grid does for any number of items below
// 2^31 (64-bit divisions, which finding an item's place would take, are several times as slow as 32-bit ones).
__device__ unsigned first_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ unsigned index_step() { return gridDim.x * blockDim.x; }

// Neighbours in memory that move together, in one access where they fill no more than 16 bytes.
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T item[N]; };

template <int N, typename T> __device__ Pack<T, N> load(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <typename T, int N> __device__ void store(T* to, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Half types are summed in float.
template <typename T> struct Accumulator { typedef T type; };
template <> struct Accumulator<__half> { typedef float type; };
template <> struct Accumulator<__nv_bfloat16> { typedef float type; };

template <typename T, int N> __device__ void load(typename Accumulator<T>::type (&sums)[N], const T* from) {
    const Pack<T, N> pack = load<N>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = static_cast<typename Accumulator<T>::type>(pack.item[i]);
}

template <typename T, int N> __device__ void store(T* to, const typename Accumulator<T>::type (&sums)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.item[i] = static_cast<T>(sums[i]);
    store(to, pack);
}

}  // namespace
