// Vectors of W floats, loaded from and stored as float or bfloat16, with GCC's and Clang's vector extensions: the
// compiler makes of them what the processor has.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

namespace {

typedef int64_t Index;
struct BFloat16 { uint16_t bits; };

template <int W> struct Lanes {
    typedef float Float __attribute__((vector_size(4 * W)));
    typedef uint32_t Bits __attribute__((vector_size(4 * W)));
    typedef uint16_t Half __attribute__((vector_size(2 * W)));
};
template <> struct Lanes<1> { typedef float Float; typedef uint32_t Bits; typedef uint16_t Half; };

template <int W> using Float = typename Lanes<W>::Float;
template <int W> using Order = std::make_integer_sequence<int, W>;

template <int W> inline Float<W> load(const float* from) {
    Float<W> v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <int W> inline void store(float* to, Float<W> v) { memcpy(to, &v, sizeof v); }

template <int W> inline Float<W> load(const BFloat16* from) {
    typename Lanes<W>::Half half;
    memcpy(&half, from, sizeof half);
    typename Lanes<W>::Bits bits;
    if constexpr (W == 1) bits = half; else bits = __builtin_convertvector(half, typename Lanes<W>::Bits);
    bits <<= 16;
    Float<W> v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

// To the nearest, ties to even, as torch rounds.  A NaN stays one.
template <int W> inline void store(BFloat16* to, Float<W> v) {
    typedef typename Lanes<W>::Bits Bits;
    Bits bits;
    memcpy(&bits, &v, sizeof bits);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
    const Bits kept = v != v ? quiet : rounded;
    typename Lanes<W>::Half half;
    if constexpr (W == 1) half = kept; else half = __builtin_convertvector(kept, typename Lanes<W>::Half);
    memcpy(to, &half, sizeof half);
}

// ReLU and its gradient; a NaN passes, as in torch.
template <int W> inline Float<W> positive(Float<W> v) { return v < 0.0f ? Float<W>{} : v; }
template <int W> inline Float<W> where_positive(Float<W> v, Float<W> gradient) {
    return v <= 0.0f ? Float<W>{} : gradient;
}

// Three vectors a, b, c as one row of 3 W lanes: lane i of the result is lane 3 i + M of the row.
template <int W, int M, int... I>
inline Float<W> every_third(Float<W> a, Float<W> b, Float<W> c, std::integer_sequence<int, I...>) {
    if constexpr (W == 1) {
        return M == 0 ? a : M == 1 ? b : c;
    } else {
        const Float<W> ab = __builtin_shufflevector(a, b, (3 * I + M < 2 * W ? 3 * I + M : 0)...);
        return __builtin_shufflevector(ab, c, (3 * I + M < 2 * W ? I : 3 * I + M - W)...);
    }
}

// The inverse: lane i of part P of the row is lane (P W + i) / 3 of a, b or c, in turns.
template <int W, int P, int... I>
inline Float<W> in_turns(Float<W> a, Float<W> b, Float<W> c, std::integer_sequence<int, I...>) {
    if constexpr (W == 1) {
        return P == 0 ? a : P == 1 ? b : c;
    } else {
        const Float<W> ab =
            __builtin_shufflevector(a, b, ((P * W + I) / 3 + ((P * W + I) % 3 == 1 ? W : 0))...);
        return __builtin_shufflevector(ab, c, ((P * W + I) % 3 == 2 ? W + (P * W + I) / 3 : I)...);
    }
}

// Applies step(width, c) to all channels: 16 at a time, then one at a time.
template <typename Step> inline void along_channels(Index channels, Step step) {
    Index c = 0;
    for (; c + 16 <= channels; c += 16) step(std::integral_constant<int, 16>(), c);
    if (c + 8 <= channels) { step(std::integral_constant<int, 8>(), c); c += 8; }
    for (; c < channels; ++c) step(std::integral_constant<int, 1>(), c);
}

// Floats on a cache line's border, zero at first.
class Buffer {
public:
    explicit Buffer(Index count)
        : data_(static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64)), &std::free) {
        memset(data_.get(), 0, count * sizeof(float));
    }
    float* operator+(Index offset) { return data_.get() + offset; }
    const float* operator+(Index offset) const { return data_.get() + offset; }
    operator float*() { return data_.get(); }

private:
    std::unique_ptr<float, void (*)(void*)> data_;
};

}  // namespace
