// Lets a host C++ compiler build the kernels: the words of CUDA that it uses, on a CPU.
//
// A kernel is an ordinary function here.  place_thread() says which thread the next call stands for, and the caller
// loops over blocks and threads.  Half types convert as on the device: exact to float, nearest-even from float.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__

struct Dim3 {
    unsigned x;
};

static Dim3 blockIdx, threadIdx, blockDim, gridDim;

extern "C" void place_thread(unsigned block, unsigned thread, unsigned blocks, unsigned threads) {
    blockIdx.x = block;
    threadIdx.x = thread;
    gridDim.x = blocks;
    blockDim.x = threads;
}

using std::sqrt;

typedef _Float16 __half;

struct __nv_bfloat16 {
    std::uint16_t bits;

    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) {
        std::uint32_t word;
        std::memcpy(&word, &value, sizeof word);
        const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
        bits = is_nan ? 0x7fffu : static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
    }

    explicit operator float() const {
        const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    }
};

static void sincospif(float x, float* sine, float* cosine) {
    const double angle = 3.14159265358979323846 * x;
    *sine = static_cast<float>(std::sin(angle));
    *cosine = static_cast<float>(std::cos(angle));
}
