// Patches of a scene with flips and radiation noise, for the CPU: what patches.cu does for a GPU, number for number.
// reference.py is the specification.
//
// Patches are NHWC, one thread works on one patch, and its normal numbers are made 64 at a time: the draws of 16 quads,
// four neighbouring bands of a pixel each.  Philox's words lie in 64-bit lanes, where their products fit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef int64_t Index;
typedef uint64_t Lanes __attribute__((vector_size(128)));      // of a chunk; the compiler splits it into registers
typedef uint32_t LowHalves __attribute__((vector_size(64)));

const int kQuad = 4;
const int kChunk = 16;                        // quads drawn together
const uint64_t kLow = 0xFFFFFFFFu;
const uint64_t kPatchPurpose = 0, kNoisePurpose = 1;

// Philox4x32-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405) of counters whose words are lanes of `c`.
// For a single counter Word is uint64_t.
template <typename Word> inline void philox(Word (&c)[4], uint64_t seed) {
    uint64_t key0 = seed & kLow, key1 = seed >> 32;
    for (int round = 0; round < 10; ++round) {
        const Word first = c[0] * 0xD2511F53u, second = c[2] * 0xCD9E8D57u;
        c[0] = (second >> 32) ^ c[1] ^ key0;
        c[1] = second & kLow;
        c[2] = (first >> 32) ^ c[3] ^ key1;
        c[3] = first & kLow;
        key0 = (key0 + 0x9E3779B9u) & kLow;
        key1 = (key1 + 0xBB67AE85u) & kLow;
    }
}

inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// [0, 1) in steps of 2^-24, exactly.
inline float uniform(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word >> 8)) * (1 / 16777216.0f); }

// The natural logarithm of a normal positive number: x = (1 + m) 2^e with 1 + m in [sqrt(1/2), sqrt(2)), and Cephes'
// polynomial (logf.c) for log(1 + m).
inline float logarithm(float x) {
    const uint32_t root = 0x3F3504F3u, one = 0x3F800000u;
    const uint32_t bits = as_bits(x) + (one - root);
    const float e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
    const float m = as_float((bits & 0x007FFFFFu) + root) - 1;
    float p = 7.0376836292e-2f;
    for (const float coefficient : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                                    -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f}) {
        p = p * m + coefficient;
    }
    return m + (p * m * m * m - 2.12194440e-4f * e - 0.5f * m * m) + 0.693359375f * e;
}

// sin(pi t) and cos(pi t) for t in [0, 2): t = q / 2 + r, Cephes' polynomials (sinf.c) for pi r in [-pi/4, pi/4].
inline void sine_cosine(float t, float& sine, float& cosine) {
    const int32_t q = static_cast<int32_t>(2 * t + 0.5f);
    const float r = (t - 0.5f * q) * 3.14159265358979f, z = r * r;
    const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
    const float c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z
                    - 0.5f * z + 1;
    const uint32_t turned = static_cast<uint32_t>(q & 2) << 30, next = static_cast<uint32_t>((q + 1) & 2) << 30;
    sine = as_float(as_bits(q & 1 ? c : s) ^ turned);
    cosine = as_float(as_bits(q & 1 ? s : c) ^ next);
}

// Standard normal numbers of kChunk quads from `quad` on: four to a quad, by Box and Muller's transform of two pairs.
inline void draw_normals(float* __restrict__ out, uint64_t quad, uint64_t patch, uint64_t seed) {
    uint32_t words[kQuad][kChunk];
    const Lanes steps = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Lanes c[4] = {steps + quad, Lanes{} + (patch & kLow), Lanes{} + (patch >> 32), Lanes{} + kNoisePurpose};
    philox(c, seed);
    for (int k = 0; k < kQuad; ++k) {
        const LowHalves low = __builtin_convertvector(c[k], LowHalves);
        memcpy(words[k], &low, sizeof low);
    }
    float normal[kQuad][kChunk];
    for (int k = 0; k < kQuad; k += 2) {
#pragma omp simd
        for (int i = 0; i < kChunk; ++i) {
            float sine, cosine;
            sine_cosine(2 * uniform(words[k + 1][i]), sine, cosine);
            const float radius = std::sqrt(-2 * logarithm(1 - uniform(words[k][i])));
            normal[k][i] = radius * cosine;
            normal[k + 1][i] = radius * sine;
        }
    }
    for (int i = 0; i < kChunk; ++i) {
        for (int k = 0; k < kQuad; ++k) out[kQuad * i + k] = normal[k][i];
    }
}

// Folded at the scene's edges, the edge pixel repeated.  A centre outside the scene can't lead to a read outside it.
inline Index mirror(Index index, Index length) {
    index = index < 0 ? -1 - index : index;
    index = index < length ? index : 2 * length - 1 - index;
    return index < 0 ? 0 : index;
}

}  // namespace

extern "C" {

struct Scene { const float* cube; Index bands, height, width, row_step, column_step; };   // bands lie side by side
struct Draws { uint64_t seed; Index first; int flip, radiation; float gain_low, gain_width, noise; };

}

namespace {

// Ask for a patch's pixels, which lie anywhere in the scene, so that they come while the noise is drawn.
inline void fetch(const Scene& scene, const Index* centre, Index size) {
    const Index x = mirror(centre[1] - size / 2, scene.width);
    for (Index row = 0; row < size; ++row) {
        const Index y = mirror(centre[0] + row - size / 2, scene.height);
        const float* line = scene.cube + y * scene.row_step + x * scene.column_step;
        for (Index i = 0; i < size * scene.bands; i += 16) __builtin_prefetch(line + i);      // 64 bytes at a time
    }
}

// One patch [size, size, bands] to `out`; `noise` has room for the normal numbers of its quads and a chunk more.
void make_patch(float* __restrict__ out, float* __restrict__ noise, const Scene& scene, const Index* centre,
                Index size, const Draws& draws, uint64_t number) {
    const Index padded = (scene.bands + kQuad - 1) / kQuad * kQuad, quads = size * size * padded / kQuad;
    uint64_t words[4] = {0, number & kLow, number >> 32, kPatchPurpose};
    philox(words, draws.seed);
    const uint64_t coins = draws.flip ? words[0] : 0;       // bits: flipped at all, left-right, up-down
    const bool across = (coins & 3) == 3, along = (coins & 5) == 5, noisy = draws.radiation && (words[1] & 1);
    const float gain = draws.gain_low + draws.gain_width * uniform(static_cast<uint32_t>(words[2]));
    if (noisy) {
        fetch(scene, centre, size);
        for (Index quad = 0; quad < quads; quad += kChunk) {
            draw_normals(noise + quad * kQuad, quad, number, draws.seed);
        }
    }
    for (Index row = 0; row < size; ++row) {
        const Index y = mirror(centre[0] + (along ? size - 1 - row : row) - size / 2, scene.height);
        for (Index column = 0; column < size; ++column, out += scene.bands, noise += padded) {
            const Index x = mirror(centre[1] + (across ? size - 1 - column : column) - size / 2, scene.width);
            const float* __restrict__ from = scene.cube + y * scene.row_step + x * scene.column_step;
            if (noisy) {
                for (Index band = 0; band < scene.bands; ++band) {
                    out[band] = gain * from[band] + draws.noise * noise[band];
                }
            } else {
                std::copy(from, from + scene.bands, out);
            }
        }
    }
}

}  // namespace

// out [patches, size, size, bands], or without channels_last [patches, bands, size, size].  Patch n is number
// draws.first + n of the seed's patches.
extern "C" void gather_augmented(const Scene* scene, const Index* centres, float* out, Index patches, Index size,
                                 const Draws* draws, int channels_last, int threads) {
    const Index bands = scene->bands, area = size * size;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> noise(area * (bands + kQuad) + kChunk * kQuad), pixels(channels_last ? 0 : area * bands);
#pragma omp for schedule(static)
        for (Index n = 0; n < patches; ++n) {
            float* const patch = out + n * area * bands;
            float* const made = channels_last ? patch : pixels.data();
            make_patch(made, noise.data(), *scene, centres + 2 * n, size, *draws, draws->first + n);
            for (Index band = 0; !channels_last && band < bands; ++band) {
                for (Index pixel = 0; pixel < area; ++pixel) patch[band * area + pixel] = made[pixel * bands + band];
            }
        }
    }
}
