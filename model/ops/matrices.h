// Products of matrices that lie in the cache.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

const int kVector = 16, kMaxRows = 6, kMaxVectors = 4;

inline Index padded(Index count, Index vector = kVector) { return (count + vector - 1) / vector * vector; }

// a[m, k] = from[m rows + k columns].
struct Left {
    const float* from;
    Index rows, columns;
};

// M rows by V vectors of W columns of c (+)= a b, with b [depth][b_stride] and c [.][c_stride].
template <int M, int W, int V, bool Add>
inline void tile(Left a, const float* b, Index b_stride, float* c, Index c_stride, Index depth) {
    Float<W> sum[M][V];
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) sum[m][v] = Add ? load<W>(c + m * c_stride + v * W) : Float<W>{};
    }
    for (Index k = 0; k < depth; ++k) {
        Float<W> right[V];
        for (int v = 0; v < V; ++v) right[v] = load<W>(b + k * b_stride + v * W);
        for (int m = 0; m < M; ++m) {
            const float left = a.from[m * a.rows + k * a.columns];
            for (int v = 0; v < V; ++v) sum[m][v] += left * right[v];
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) store<W>(c + m * c_stride + v * W, sum[m][v]);
    }
}

template <int W, int V, bool Add>
void tiles(Index m, Left a, const float* b, Index b_stride, float* c, Index c_stride, Index depth) {
    switch (m) {
        case 1: return tile<1, W, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 2: return tile<2, W, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 3: return tile<3, W, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 4: return tile<4, W, V, Add>(a, b, b_stride, c, c_stride, depth);
        case 5: return tile<5, W, V, Add>(a, b, b_stride, c, c_stride, depth);
        default: return tile<6, W, V, Add>(a, b, b_stride, c, c_stride, depth);
    }
}

// c [rows][columns] (+)= a [rows][depth] b [depth][columns]; columns a multiple of 8.  The rows are split evenly.
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
            if (vectors == 4) tiles<16, 4, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            else if (vectors == 3) tiles<16, 3, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            else if (vectors == 2) tiles<16, 2, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            else if (vectors == 1) tiles<16, 1, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            else tiles<8, 1, Add>(m, from, b + column, b_stride, to, c_stride, depth);
            row += m;
        }
        column += vectors ? vectors * kVector : kVector / 2;
    }
}

}  // namespace
