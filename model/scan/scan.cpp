// The operators of scanner.py for the CPU: involution of every class of pixels, the sum of the 3x3 convolution's tap
// products with ReLU and branch mixing, and pooling.  reference.py is their specification.
//
// Maps are [class of the row][class of the column][rows][columns][channels]; the maps that go in have one more row and
// column on each side.  A table has three entries per class, the classes that the taps -1, 0, +1 meet, or kOutside.
// Numbers are float or bfloat16, sums float.  Threads share the pixels out, so every number has one writer.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef int64_t Index;
struct BFloat16 { uint16_t bits; };

const int kOutside = -1, kTaps = 9, kGroup = 3;
const int kLanes = 16;
const Index kRun = 8;             // pixels that a thread takes at once: what all their classes read fits the L2 cache

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

// ---- numbers and vectors of them, loaded from and stored as T ------------------------------------------------------

inline float number(float x) { return x; }

inline float number(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

inline void assign(float& to, float x) { to = x; }

inline void assign(BFloat16& to, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    to.bits = uint16_t(x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : bits >> 16 | 0x40u);
}

inline Floats load(const float* from) {
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline Floats load(const BFloat16* from) {
    Halves half;
    memcpy(&half, from, sizeof half);
    const Words bits = __builtin_convertvector(half, Words) << 16;
    Floats v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

inline void store(float* to, Floats v) { memcpy(to, &v, sizeof v); }

// To the nearest, ties to even, as torch rounds; a NaN stays one.
inline void store(BFloat16* to, Floats v) {
    Words bits;
    memcpy(&bits, &v, sizeof bits);
    const Words rounded = v == v ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : bits >> 16 | 0x40u;
    const Halves half = __builtin_convertvector(rounded, Halves);
    memcpy(to, &half, sizeof half);
}

// A NaN passes both, as in torch.
inline Floats positive(Floats v) { return v < 0.0f ? Floats{} : v; }
inline float positive(float v) { return v < 0.0f ? 0.0f : v; }
inline Floats larger(Floats a, Floats b) { return (a < b) | (b != b) ? b : a; }
inline float larger(float a, float b) { return a < b || b != b ? b : a; }

}  // namespace

// Sizes of a stage's maps: n and m classes per axis before and after it.
struct Maps { Index before, after, rows, columns, channels; };

namespace {

// Kernels of `pixels` (at most kRun) neighbours: k[pixel][c] = bias[c] + sum over r of hidden[pixel][r] weight[r][c].
template <class T>
inline void make_kernels(const T* hidden, Index pixels, Index reduced, const T* weight, const T* bias, Index size,
                         bool relu, float* k) {
    const T* from[kRun];
    for (Index pixel = 0; pixel < kRun; ++pixel) from[pixel] = hidden + std::min(pixel, pixels - 1) * reduced;
    const int vectors = 3, block = vectors * kLanes;         // kRun times as many sums: they fit AVX-512's registers
    const bool wide = size >= block;
    for (Index c = 0; wide && c < size; c += block) {
        const Index at = std::min(c, size - block);          // the last block goes back, and repeats some
        Floats sums[kRun][vectors];
        for (int v = 0; v < vectors; ++v) {
            const Floats start = load(bias + at + v * kLanes);
            for (int pixel = 0; pixel < kRun; ++pixel) sums[pixel][v] = start;
        }
        for (Index r = 0; r < reduced; ++r) {
            Floats row[vectors];
            for (int v = 0; v < vectors; ++v) row[v] = load(weight + r * size + at + v * kLanes);
            for (int pixel = 0; pixel < kRun; ++pixel) {
                const float factor = number(from[pixel][r]);
                for (int v = 0; v < vectors; ++v) sums[pixel][v] += factor * row[v];
            }
        }
        for (int pixel = 0; pixel < kRun; ++pixel) for (int v = 0; v < vectors; ++v)
            store(k + pixel * size + at + v * kLanes, relu ? positive(sums[pixel][v]) : sums[pixel][v]);
    }
    for (Index c = 0; !wide && c < size; ++c) for (int pixel = 0; pixel < kRun; ++pixel) {
        float sum = number(bias[c]);
        for (Index r = 0; r < reduced; ++r) sum += number(from[pixel][r]) * number(weight[r * size + c]);
        k[pixel * size + c] = relu ? positive(sum) : sum;
    }
}

// One pixel: y[c] = sum over taps of kernel[tap][group of c] x[tap][c], the channels grouped as in reference.py.
template <class T>
inline void involve_pixel(const T* const* x, const float* kernel, T* y, Index channels) {
    const Index full = channels / kGroup, groups = std::max<Index>(1, full);
    for (Index start = 0; full >= kLanes && start < full; start += kLanes) {
        const Index g = std::min(start, full - kLanes);
        Floats k[kTaps];
        for (int tap = 0; tap < kTaps; ++tap) k[tap] = load(kernel + tap * groups + g);
        for (Index member = 0; member < kGroup; ++member) {
            Floats sum{};
            for (int tap = 0; tap < kTaps; ++tap) sum += k[tap] * load(x[tap] + member * full + g);
            store(y + member * full + g, sum);
        }
    }
    for (Index c = full < kLanes ? 0 : kGroup * full; c < channels; ++c) {
        const Index g = c < kGroup * full ? c % full : groups - 1;
        float sum = 0;
        for (int tap = 0; tap < kTaps; ++tap) sum += kernel[tap * groups + g] * number(x[tap][c]);
        assign(y[c], sum);
    }
}

// A run of pixels for the class (i, j), whose kernels have been made.
template <class T>
inline void involve_run(const T* x, const float* kernels, const T* zeros, const int* above, const int* left,
                        const Maps& maps, Index row, Index begin, Index end, T* y) {
    const Index channels = maps.channels, line = (maps.columns + 2) * channels, map = (maps.rows + 2) * line;
    const Index size = kTaps * std::max<Index>(1, channels / kGroup);
    const T* from[kTaps];
    Index step[kTaps];
    for (int tap = 0; tap < kTaps; ++tap) {
        const int u = tap / 3, v = tap % 3;
        const bool inside = above[u] != kOutside && left[v] != kOutside;
        from[tap] = inside ? x + (maps.before * above[u] + left[v]) * map + (row + u) * line + (begin + v) * channels
                           : zeros;
        step[tap] = inside ? channels : 0;
    }
    for (Index pixel = 0; pixel < end - begin; ++pixel) {
        involve_pixel(from, kernels + pixel * size, y + pixel * channels, channels);
        for (int tap = 0; tap < kTaps; ++tap) from[tap] += step[tap];
    }
}

// hidden[n²]: per class [rows][columns + 2][reduced].  weight[reduced][9 G], bias[9 G].
template <class T>
void involve(const T* x, const T* const* hidden, Index reduced, const T* weight, const T* bias, const T* zeros,
             const int* table, const Maps& maps, bool relu, T* y) {
    const Index n = maps.before, m = maps.after, rows = maps.rows, columns = maps.columns, channels = maps.channels;
    const Index size = kTaps * std::max<Index>(1, channels / kGroup), runs = (columns + kRun - 1) / kRun;
#pragma omp parallel
    {
        std::vector<float> kernels(kRun * size);
#pragma omp for schedule(static)
        for (Index job = 0; job < rows * runs; ++job) {
            const Index row = job / runs, begin = job % runs * kRun, end = std::min(begin + kRun, columns);
            for (Index k = 0; k < n * n; ++k) {
                const T* from = hidden[k] + (row * (columns + 2) + begin + 1) * reduced;
                make_kernels(from, end - begin, reduced, weight, bias, size, relu, kernels.data());
                for (Index i = 0; i < m; ++i) for (Index j = 0; j < m; ++j) {
                    const int *above = table + 3 * i, *left = table + 3 * j;
                    if (n * above[1] + left[1] == k)
                        involve_run(x, kernels.data(), zeros, above, left, maps, row, begin, end,
                                    y + (((m * i + j) * rows + row) * columns + begin) * channels);
                }
            }
        }
    }
}

// One pixel: y = relu(spectral) + relu(bias + sum over taps of product[tap]).
template <int taps, class T>
inline void mix_pixel(const T* spectral, const T* const* product, const T* bias, T* y, Index channels) {
    Index c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        Floats sum = load(bias + c);
        for (int tap = 0; tap < taps; ++tap) sum += load(product[tap] + c);
        store(y + c, positive(load(spectral + c)) + positive(sum));
    }
    for (; c < channels; ++c) {
        float sum = number(bias[c]);
        for (int tap = 0; tap < taps; ++tap) sum += number(product[tap][c]);
        assign(y[c], positive(number(spectral[c])) + positive(sum));
    }
}

template <class T>
inline void mix_pixel(int taps, const T* spectral, const T* const* product, const T* bias, T* y, Index channels) {
    switch (taps) {               // one to three taps per axis are inside the patch
        case 1: return mix_pixel<1>(spectral, product, bias, y, channels);
        case 2: return mix_pixel<2>(spectral, product, bias, y, channels);
        case 3: return mix_pixel<3>(spectral, product, bias, y, channels);
        case 4: return mix_pixel<4>(spectral, product, bias, y, channels);
        case 6: return mix_pixel<6>(spectral, product, bias, y, channels);
        default: return mix_pixel<9>(spectral, product, bias, y, channels);
    }
}

// products[9 (m i + j) + tap]: the product of class (i, j)'s tap at row 0, column 0, or null where the tap is outside;
// steps[the same]: numbers from one column to the next.  y's rows and columns lie y_line and channels apart, its maps
// y_map.
template <class T>
void mix(const T* spectral, const T* const* products, const Index* steps, const T* bias, const Maps& maps, T* y,
         Index y_line, Index y_map) {
    const Index m = maps.after, rows = maps.rows, columns = maps.columns, channels = maps.channels;
    const Index runs = (columns + kRun - 1) / kRun;
#pragma omp parallel for schedule(static)
    for (Index job = 0; job < rows * runs; ++job) {
        const Index row = job / runs, begin = job % runs * kRun, end = std::min(begin + kRun, columns);
        for (Index k = 0; k < m * m; ++k) {
            const T* from[kTaps];
            Index step[kTaps];
            int taps = 0;
            for (int tap = 0; tap < kTaps; ++tap) if (const T* product = products[kTaps * k + tap]) {
                step[taps] = steps[kTaps * k + tap];
                from[taps] = product + (row * (columns + 2) + begin) * step[taps];
                ++taps;
            }
            const T* add = spectral + ((k * rows + row) * columns + begin) * channels;
            T* to = y + k * y_map + row * y_line + begin * channels;
            for (Index column = begin; column < end; ++column) {
                mix_pixel(taps, add, from, bias, to, channels);
                for (int tap = 0; tap < taps; ++tap) from[tap] += step[tap];
                add += channels;
                to += channels;
            }
        }
    }
}

template <class T>
inline void pool_pixel(const T* a, const T* b, const T* c, const T* d, T* y, Index channels) {
    Index k = 0;
    for (; k + kLanes <= channels; k += kLanes)
        store(y + k, larger(larger(load(a + k), load(b + k)), larger(load(c + k), load(d + k))));
    for (; k < channels; ++k)
        assign(y[k], larger(larger(number(a[k]), number(b[k])), larger(number(c[k]), number(d[k]))));
}

// x[m][m][rows + 1][..][channels] -> y[p][rows][columns][side][channels]: for p pairs of row classes and the pairs of
// column classes of the `side` pooled columns 2x2 maxima, those of pooled column k at columns + 2 k.
template <class T>
void pool(const T* x, const int* row_pairs, Index count, const int* column_pairs, Index side, const Maps& maps, T* y) {
    const Index m = maps.before, rows = maps.rows, columns = maps.columns, channels = maps.channels;
    const Index line = (columns + 2 * side) * channels, map = (rows + 1) * line;
#pragma omp parallel for schedule(static) collapse(2)
    for (Index p = 0; p < count; ++p) for (Index row = 0; row < rows; ++row) {
        const T* upper = x + m * row_pairs[2 * p] * map + row * line;
        const T* lower = x + m * row_pairs[2 * p + 1] * map + (row + 1) * line;
        T* to = y + (p * rows + row) * columns * side * channels;
        for (Index column = 0; column < columns; ++column) for (Index k = 0; k < side; ++k, to += channels) {
            const Index left = column_pairs[2 * k] * map + (column + 2 * k) * channels;
            const Index right = column_pairs[2 * k + 1] * map + (column + 2 * k + 1) * channels;
            pool_pixel(upper + left, upper + right, lower + left, lower + right, to, channels);
        }
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                                \
    extern "C" void involve_##NAME(const T* x, const T* const* hidden, Index reduced, const T* weight, const T* bias,  \
                                   const T* zeros, const int* table, const Maps* maps, int relu, T* y) {               \
        involve(x, hidden, reduced, weight, bias, zeros, table, *maps, relu != 0, y);                                  \
    }                                                                                                                  \
    extern "C" void mix_##NAME(const T* spectral, const T* const* products, const Index* steps, const T* bias,         \
                               const Maps* maps, T* y, Index y_line, Index y_map) {                                    \
        mix(spectral, products, steps, bias, *maps, y, y_line, y_map);                                                 \
    }                                                                                                                  \
    extern "C" void pool_##NAME(const T* x, const int* row_pairs, Index count, const int* column_pairs, Index side,    \
                                const Maps* maps, T* y) {                                                              \
        pool(x, row_pairs, count, column_pairs, side, *maps, y);                                                       \
    }

EXPORT(float32, float)
EXPORT(bfloat16, BFloat16)
