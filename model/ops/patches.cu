// Patches of a scene: the plain gather, and the gather with flips and radiation noise.  reference.py is the
// specification; common.cuh stands in front of this text.
//
// A thread works on a quad: four neighbouring bands of one pixel of one patch (fewer at the last band).  Neighbouring
// threads take neighbouring pixels where the patches are NCHW, neighbouring quads where they are NHWC.  The scene lies
// in memory in any way: its steps are arguments.  Random numbers are a function of (seed, patch, quad), so they depend
// neither on the grid nor on the layout.

namespace {

const int kQuad = 4;

// ---- random numbers ----

struct Words { unsigned word[4]; };

const unsigned kPatchPurpose = 0, kNoisePurpose = 1;

// Philox4x32-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405).
__device__ Words philox(Words counter, unsigned long long seed) {
    unsigned key0 = static_cast<unsigned>(seed), key1 = static_cast<unsigned>(seed >> 32);
    unsigned* c = counter.word;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long first = 0xD2511F53ull * c[0], second = 0xCD9E8D57ull * c[2];
        c[0] = static_cast<unsigned>(second >> 32) ^ c[1] ^ key0;
        c[1] = static_cast<unsigned>(second);
        c[2] = static_cast<unsigned>(first >> 32) ^ c[3] ^ key1;
        c[3] = static_cast<unsigned>(first);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// The words of a quad (for what concerns a whole patch, of quad 0) of a patch.
__device__ Words draw(unsigned long long seed, Index patch, unsigned quad, unsigned purpose) {
    const Words counter = {{quad, static_cast<unsigned>(patch), static_cast<unsigned>(patch >> 32), purpose}};
    return philox(counter, seed);
}

// [0, 1) in steps of 2^-24, exactly.
__device__ float uniform(unsigned word) { return static_cast<float>(word >> 8) * (1.0f / 16777216.0f); }

// Two standard normal numbers by Box and Muller's transform; 1 - u lies in (0, 1].
__device__ void normals(unsigned first, unsigned second, float* pair) {
    const float radius = sqrtf(-2.0f * logf(1.0f - uniform(first)));
    float sine, cosine;
    sincospif(2.0f * uniform(second), &sine, &cosine);
    pair[0] = radius * cosine;
    pair[1] = radius * sine;
}

// ---- gather ----

struct Scene {
    int bands, height, width;
    Index band_step, row_step, column_step;
};

// Folded at the scene's edges, the edge pixel repeated.  A centre outside the scene can't lead to a read outside it.
__device__ Index mirror(Index index, Index length) {
    index = index < 0 ? -1 - index : index;
    index = index < length ? index : 2 * length - 1 - index;
    return index < 0 ? 0 : index;
}

struct QuadSite {
    int row, column, band, quad;    // quad: number within the patch, pixel by pixel
    Index patch, out, band_step;    // out: offset of the first of the quad's values; the next is band_step further

    __device__ QuadSite(unsigned index, int bands, int size, Index channels_last) {
        const unsigned quads = (bands + kQuad - 1) / kQuad, area = size * size;
        const unsigned outer = index / (channels_last ? quads : area), inner = index % (channels_last ? quads : area);
        const unsigned here = channels_last ? inner : outer % quads, pixel = channels_last ? outer % area : inner;
        patch = outer / (channels_last ? area : quads);
        row = pixel / size;
        column = pixel % size;
        band = here * kQuad;
        quad = pixel * quads + here;
        band_step = channels_last ? 1 : area;
        out = patch * area * bands + (channels_last ? static_cast<Index>(pixel) * bands : pixel) + band * band_step;
    }

    __device__ static unsigned count(Index patches, int bands, int size) {
        return patches * size * size * ((bands + kQuad - 1) / kQuad);
    }
};

// Whether a quad can be moved in one access.
template <typename T> __device__ bool packed(const T* address, int band, int bands, Index band_step) {
    return band_step == 1 && band + kQuad <= bands && reinterpret_cast<size_t>(address) % sizeof(Pack<T, kQuad>) == 0;
}

template <typename T>
__device__ Pack<T, kQuad> read_quad(const T* __restrict__ cube, const Scene& scene, const QuadSite& site, Index y,
                                    Index x) {
    const T* from = cube + site.band * scene.band_step + y * scene.row_step + x * scene.column_step;
    if (packed(from, site.band, scene.bands, scene.band_step)) return load<kQuad>(from);
    Pack<T, kQuad> values = {};
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        if (site.band + i < scene.bands) values.item[i] = from[i * scene.band_step];
    }
    return values;
}

template <typename T>
__device__ void write_quad(T* __restrict__ out, const Scene& scene, const QuadSite& site,
                           const Pack<T, kQuad>& values) {
    T* to = out + site.out;
    if (packed(to, site.band, scene.bands, site.band_step)) {
        store(to, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        if (site.band + i < scene.bands) to[i * site.band_step] = values.item[i];
    }
}

// Copies bits, so that one kernel serves every type of its width.
template <typename Bits>
__device__ void gather(const Bits* __restrict__ cube, const Index* __restrict__ centres, Bits* __restrict__ out,
                       Index patches, const Scene& scene, int size, Index channels_last) {
    for (unsigned index = first_index(); index < QuadSite::count(patches, scene.bands, size); index += index_step()) {
        const QuadSite site(index, scene.bands, size, channels_last);
        const Index y = mirror(centres[2 * site.patch] + site.row - size / 2, scene.height);
        const Index x = mirror(centres[2 * site.patch + 1] + site.column - size / 2, scene.width);
        write_quad(out, scene, site, read_quad(cube, scene, site, y, x));
    }
}

}  // namespace

#define SCENE_SIZES                                                                                                   \
    Index bands, Index height, Index width, Index band_step, Index row_step, Index column_step, Index size,          \
        Index channels_last
#define SCENE                                                                                                         \
    (Scene{static_cast<int>(bands), static_cast<int>(height), static_cast<int>(width), band_step, row_step,          \
           column_step})

#define GATHER_KERNEL(WIDTH, BITS)                                                                                    \
    extern "C" __global__ void gather_patches_##WIDTH(const BITS* __restrict__ cube,                                  \
                                                      const Index* __restrict__ centres, BITS* __restrict__ out,      \
                                                      Index patches, SCENE_SIZES) {                                   \
        gather<BITS>(cube, centres, out, patches, SCENE, static_cast<int>(size), channels_last);                      \
    }

GATHER_KERNEL(8bit, unsigned char)
GATHER_KERNEL(16bit, unsigned short)
GATHER_KERNEL(32bit, unsigned int)
GATHER_KERNEL(64bit, unsigned long long)

// Patch n of the call is number first + n of the seed's patches.  gain_low, gain_width and noise are those of the
// radiation noise.  The seed is read on the device, so that a captured graph sees a new one at each replay.
extern "C" __global__ void gather_augmented(const float* __restrict__ cube, const Index* __restrict__ centres,
                                            const unsigned long long* __restrict__ seed, float* __restrict__ out,
                                            Index patches, SCENE_SIZES, Index first, Index flip, Index radiation,
                                            float gain_low, float gain_width, float noise) {
    const Scene scene = SCENE;
    const int side = static_cast<int>(size);
    for (unsigned index = first_index(); index < QuadSite::count(patches, scene.bands, side); index += index_step()) {
        const QuadSite site(index, scene.bands, side, channels_last);
        const Words patch = draw(*seed, first + site.patch, 0, kPatchPurpose);
        const unsigned coins = flip ? patch.word[0] : 0;      // bits: flipped at all, left-right, up-down
        const int row = (coins & 5) == 5 ? side - 1 - site.row : site.row;
        const int column = (coins & 3) == 3 ? side - 1 - site.column : site.column;
        const Index y = mirror(centres[2 * site.patch] + row - side / 2, scene.height);
        const Index x = mirror(centres[2 * site.patch + 1] + column - side / 2, scene.width);
        Pack<float, kQuad> values = read_quad(cube, scene, site, y, x);
        if (radiation && patch.word[1] & 1) {
            const float gain = gain_low + gain_width * uniform(patch.word[2]);
            const Words words = draw(*seed, first + site.patch, site.quad, kNoisePurpose);
            float normal[kQuad];
            normals(words.word[0], words.word[1], normal);
            normals(words.word[2], words.word[3], normal + 2);
#pragma unroll
            for (int i = 0; i < kQuad; ++i) values.item[i] = gain * values.item[i] + noise * normal[i];
        }
        write_quad(out, scene, site, values);
    }
}
