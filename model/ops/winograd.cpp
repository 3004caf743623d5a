// 3x3 convolution of NHWC images by Winograd's F(2x2, 3x3) (Lavin and Gray, CVPR 2016), float32, zero padding 1.
//
// A tile of 2x2 outputs comes from 4x4 inputs: both are transformed, Y = At ((G g Gt) . (Bt d B)) A, and in between
// every one of the 16 positions is a product of matrices [tiles, C_in] x [C_in, C_out]: 16 multiplications in place of
// 36.  A thread takes one sample at a time, whose transformed images stay in its cache.

#include <algorithm>
#include <vector>

#include "matrices.h"
#include "vectors.h"

namespace {

const int kSide = 4, kPositions = 16;
const Index kPanel = 64;        // output channels whose weights, for all input channels, stay in the first-level cache

struct Shape {
    Index samples, height, width, in_channels, out_channels;

    Index tile_rows() const { return (height + 1) / 2; }
    Index tile_columns() const { return (width + 1) / 2; }
    Index tiles() const { return tile_rows() * tile_columns(); }
};

// Bt applied to four values in a row.
template <typename V> inline void spread_four(V& a, V& b, V& c, V& d) {
    const V first = a - c, second = b + c, third = c - b, fourth = b - d;
    a = first, b = second, c = third, d = fourth;
}

// [16][panel][C_in][output channel of the panel] of a convolution's weight [C_out][C_in][3][3]; with `turned`, of the
// convolution that takes the gradient back (taps turned round, channels exchanged).
std::vector<float> transformed_weight(const float* weight, const Shape& s, bool turned) {
    std::vector<float> out(kPositions * s.in_channels * s.out_channels);
    for (Index i = 0; i < s.in_channels; ++i) {
        for (Index o = 0; o < s.out_channels; ++o) {
            const float* g = weight + (turned ? i * s.out_channels + o : o * s.in_channels + i) * 9;
            float half[kSide][3], full[kSide][kSide];
            for (int c = 0; c < 3; ++c) {
                const float a = g[turned ? 8 - c : c], b = g[turned ? 5 - c : 3 + c], d = g[turned ? 2 - c : 6 + c];
                half[0][c] = a, half[1][c] = (a + b + d) / 2, half[2][c] = (a - b + d) / 2, half[3][c] = d;
            }
            for (int r = 0; r < kSide; ++r) {
                const float a = half[r][0], b = half[r][1], d = half[r][2];
                full[r][0] = a, full[r][1] = (a + b + d) / 2, full[r][2] = (a - b + d) / 2, full[r][3] = d;
            }
            for (int p = 0; p < kPositions; ++p) {
                const Index first = o / kPanel * kPanel, width = std::min(kPanel, s.out_channels - first);
                out[p * s.in_channels * s.out_channels + first * s.in_channels + i * width + o - first] =
                    full[p / kSide][p % kSide];
            }
        }
    }
    return out;
}

// [16][tiles][C_in] of one sample.
void transform_image(const float* image, float* to, const Shape& s) {
    const float zero[kVector] = {};
    Index tile = 0;
    for (Index row = -1; row < s.height - 1 + s.height % 2; row += 2) {
        for (Index column = -1; column < s.width - 1 + s.width % 2; column += 2, ++tile) {
            for (Index c = 0; c < s.in_channels; c += kVector) {
                Float<kVector> d[kSide][kSide];
                for (int r = 0; r < kSide; ++r) {
                    for (int k = 0; k < kSide; ++k) {
                        const Index y = row + r, x = column + k;
                        const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
                        d[r][k] = load<kVector>(inside ? image + (y * s.width + x) * s.in_channels + c : zero);
                    }
                }
                for (int k = 0; k < kSide; ++k) spread_four(d[0][k], d[1][k], d[2][k], d[3][k]);
                for (int r = 0; r < kSide; ++r) spread_four(d[r][0], d[r][1], d[r][2], d[r][3]);
                for (int p = 0; p < kPositions; ++p) {
                    store<kVector>(to + (p * s.tiles() + tile) * s.in_channels + c, d[p / kSide][p % kSide]);
                }
            }
        }
    }
}

// One sample's outputs from [16][tiles][C_out].
void gather_image(const float* from, float* image, const Shape& s) {
    for (Index tile = 0; tile < s.tiles(); ++tile) {
        const Index row = tile / s.tile_columns() * 2, column = tile % s.tile_columns() * 2;
        for (Index c = 0; c < s.out_channels; c += kVector) {
            Float<kVector> m[kSide][kSide];
            for (int p = 0; p < kPositions; ++p) {
                m[p / kSide][p % kSide] = load<kVector>(from + (p * s.tiles() + tile) * s.out_channels + c);
            }
            for (int r = 0; r < 2; ++r) {
                Float<kVector> line[kSide];
                for (int k = 0; k < kSide; ++k) {
                    line[k] = r == 0 ? m[0][k] + m[1][k] + m[2][k] : m[1][k] - m[2][k] - m[3][k];
                }
                float* to = image + ((row + r) * s.width + column) * s.out_channels + c;
                if (row + r >= s.height) continue;
                store<kVector>(to, line[0] + line[1] + line[2]);
                if (column + 1 < s.width) store<kVector>(to + s.out_channels, line[1] - line[2] - line[3]);
            }
        }
    }
}

}  // namespace

// y [N][H][W][C_out] of x [N][H][W][C_in]; both numbers of channels are multiples of 16.
extern "C" void winograd_float32(const float* x, const float* weight, float* y, const Shape* shape, int turned) {
    const Shape s = *shape;
    const std::vector<float> right = transformed_weight(weight, s, turned);
#pragma omp parallel
    {
        Buffer spread(kPositions * s.tiles() * s.in_channels), made(kPositions * s.tiles() * s.out_channels);
#pragma omp for schedule(static)
        for (Index n = 0; n < s.samples; ++n) {
            transform_image(x + n * s.height * s.width * s.in_channels, spread, s);
            for (Index p = 0; p < kPositions; ++p) {
                for (Index first = 0; first < s.out_channels; first += kPanel) {
                    const Index width = std::min(kPanel, s.out_channels - first);
                    multiply<false>(s.tiles(), width, s.in_channels,
                                    {spread + p * s.tiles() * s.in_channels, s.in_channels, 1},
                                    right.data() + (p * s.out_channels + first) * s.in_channels, width,
                                    made + p * s.tiles() * s.out_channels + first, s.out_channels);
                }
            }
            gather_image(made, y + n * s.height * s.width * s.out_channels, s);
        }
    }
}
