// Products of matrices that lie in the cache.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

const int kVector = 16, kMaxRows = 6, kMaxVectors = 4;

inline Index padded(Index count) { return (count + kVector - 1) / kVector * kVector; }

// a[m, k] = from[m rows + k columns].
struct Left {
    const float* from;
    Index rows, columns;
};

// M rows by 16 V columns of c (+)= a b, with b [depth][b_stride] and c [.][c_stride].
template <int M, int V, bool Add>
inline void tile(Left a, const float* b, Index b_stride, float* c, Index c_stride, Index depth) {
    Float<kVector> sum[M][V];
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) sum[m][v] = Add ? load<kVector>(c + m * c_stride + v * kVector) : Float<kVector>{};
    }
    for (Index k = 0; k < depth; ++k) {
        Float<kVector> right[V];
        for (int v = 0; v < V; ++v) right[v] = load<kVector>(b + k * b_stride + v * kVector);
        for (int m = 0; m < M; ++m) {
            const float left = a.from[m * a.rows + k * a.columns];
            for (int v = 0; v < V; ++v) sum[m][v] += left * right[v];
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) store<kVector>(c + m * c_stride + v * kVector, sum[m][v]);
    }
}

template <int V, bool Add>
void tiles(Index m, Left a, const float* b, Index b_stride, float* c, Index c_stride, Index depth) {
    switch (m) {
        case 1: return tile<1, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 2: return tile<2, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 3: return tile<3, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 4: return tile<4, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 5: return tile<5, V, Add>(a, b, b_stride, c, c_stride, depth);
        default: return tile<6, V, Add>(a, b, b_stride, c, c_stride, depth);
    }
}

// c [rows][columns] (+)= a [rows][depth] b [depth][columns]; columns a multiple of 16.  The rows are split evenly.
template <bool Add>
void multiply(Index rows, Index columns, Index depth, Left a, const float* b, Index b_stride, float* c,
              Index c_stride) {
    const Index parts = (rows + kMaxRows - 1) / kMaxRows;
    for (Index column = 0; column < columns;) {
        const Index vectors = std::min<Index>((columns - column) / kVector, kMaxVectors);
        for (Index part = 0, row = 0; part < parts; ++part) {
            const Index m = (part + 1) * rows / parts - row;
            const Left from = {a.from + row * a.rows, a.rows, a.columns};
            float* to = c + row * c_stride + column;
            if (vectors == 4) tiles<4, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            else if (vectors == 3) tiles<3, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            else if (vectors == 2) tiles<2, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            else tiles<1, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            row += m;
        }
        column += vectors * kVector;
    }
}

}  // namespace
