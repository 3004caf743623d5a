// BatchNorm + leaky ReLU + weighted sum of one or two branches.  norms_reference.py is the specification; common.cuh
// stands in front of this text, norm_grad.cu behind it.
//
// y = sum_b weight_b act((x_b - mean_b) rstd_b gamma_b + beta_b) over rows of C channels, the pixels of NHWC images;
// act(z) = z for z > 0, else leak z.  The rows come in domains of equal size, one behind the other; each has statistics
// of its own.  A thread works on V neighbouring channels in every slices-th row of a domain, so that the threads of a
// warp touch neighbours in memory.
//
// Sums are made in two stages: each thread writes those of its rows, then one thread per sum adds these up in their
// order.  No atomics, the same bits each time.  Sums have the accumulator's type within a run of rows, and are double
// across.

namespace {

const int kBranches = 2;
const int kRun = 32;             // rows whose sums stay in the accumulator's type
typedef double Wide;

struct Rows {
    int domains, channels, slices;      // slices: the parts of a domain's rows
    Index rows;                         // of a domain
};

// One thread's part of an image.
template <int V> struct Share {
    int domain, slice, channel;
    Index start;                 // offset of the domain's first row in an image
    Index statistic;             // offset of the domain in [domains, C]

    __device__ Share(unsigned index, const Rows& r) {
        const unsigned packs = r.channels / V, place = index / packs;
        channel = index % packs * V;
        slice = place % r.slices;
        domain = place / r.slices;
        start = domain * r.rows * r.channels + channel;
        statistic = static_cast<Index>(domain) * r.channels + channel;
    }

    __device__ static unsigned count(const Rows& r) { return r.domains * r.slices * (r.channels / V); }
    __device__ Index at(Index row, const Rows& r) const { return start + row * r.channels; }
    __device__ Index partial(int sum, int sums, const Rows& r) const {            // in [domains, slices, sums, C]
        return ((static_cast<Index>(domain) * r.slices + slice) * sums + sum) * r.channels + channel;
    }
};

// What a branch is made of: images [domains · rows, C], parameters [C], statistics [domains, C].
template <typename T> struct Branch {
    typedef typename Accumulator<T>::type Sum;
    const T* x;
    const Sum *gamma, *beta, *mean, *variance;
    Wide eps;
};

template <typename Sum> __device__ Sum inverse_root(Sum variance, Wide eps) {
    return 1 / sqrt(variance + static_cast<Sum>(eps));
}

// z = (x - mean) scale + shift for a thread's channels.
template <typename Sum, int V> struct Affine {
    Sum mean[V], rstd[V], scale[V], shift[V];

    template <typename T> __device__ void prepare(const Branch<T>& branch, const Share<V>& share) {
        load<Sum, V>(mean, branch.mean + share.statistic);
        load<Sum, V>(rstd, branch.variance + share.statistic);
        load<Sum, V>(scale, branch.gamma + share.channel);
        load<Sum, V>(shift, branch.beta + share.channel);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            rstd[i] = inverse_root(rstd[i], branch.eps);
            scale[i] *= rstd[i];
        }
    }
};

// ---- statistics ----

// Sums of x and its square over a thread's rows -> partial [branch][domain][slice][2][C].  Each run is summed around
// its first row and moved to zero in double, so that a mean far from zero costs no digits.
template <typename T, int V>
__device__ void norm_moments(const T* __restrict__ first, const T* __restrict__ second, Wide* __restrict__ partial,
                             int count, const Rows& r) {
    typedef typename Accumulator<T>::type Sum;
    const Index run = static_cast<Index>(kRun) * r.slices;
    for (unsigned index = first_index(); index < count * Share<V>::count(r); index += index_step()) {
        const unsigned branch = index / Share<V>::count(r);
        const Share<V> share(index % Share<V>::count(r), r);
        const T* __restrict__ x = branch ? second : first;
        Wide total[2][V] = {};
        for (Index start = share.slice; start < r.rows; start += run) {
            const Index end = start + run < r.rows ? start + run : r.rows;
            Sum origin[V], sum[2][V] = {};
            load<T, V>(origin, x + share.at(start, r));
            int rows = 0;
            for (Index row = start; row < end; row += r.slices, ++rows) {
                Sum value[V];
                load<T, V>(value, x + share.at(row, r));
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const Sum d = value[i] - origin[i];
                    sum[0][i] += d;
                    sum[1][i] += d * d;
                }
            }
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const Wide middle = origin[i], moved = sum[0][i] + rows * middle;
                total[0][i] += moved;
                total[1][i] += sum[1][i] + middle * (sum[0][i] + moved);
            }
        }
        Wide* own = partial + static_cast<Index>(branch) * r.domains * r.slices * 2 * r.channels;
#pragma unroll
        for (int k = 0; k < 2; ++k) store<Wide, V>(own + share.partial(k, 2, r), total[k]);
    }
}

// The sum over the slices of one entry of [slice][size].
__device__ Wide add_slices(const Wide* __restrict__ partial, Index size, int slices) {
    Wide sum = 0;
#pragma unroll 8
    for (int slice = 0; slice < slices; ++slice) sum += partial[slice * size];
    return sum;
}

// partial [branch][domain][slice][2][C] -> mean and variance [branch][2][domain][C].
template <typename Sum>
__device__ void norm_finish_moments(const Wide* __restrict__ partial, Sum* __restrict__ statistics, int count,
                                    const Rows& r) {
    const Index size = 2 * r.channels, one = static_cast<Index>(r.domains) * r.channels;
    for (unsigned index = first_index(); index < count * one; index += index_step()) {
        const unsigned place = index / r.channels, channel = index % r.channels, branch = place / r.domains;
        const Wide* own = partial + place * r.slices * size + channel;
        const Wide mean = add_slices(own, size, r.slices) / r.rows;
        const Wide variance = add_slices(own + r.channels, size, r.slices) / r.rows - mean * mean;
        Sum* to = statistics + branch * one + index;
        to[0] = static_cast<Sum>(mean);
        to[one] = static_cast<Sum>(variance < 0 ? 0 : variance);
    }
}

// A norm's running statistics and its count of batches; where their plain average is wanted, the count before, else -1.
template <typename Sum> struct Running {
    Sum *mean, *variance;
    Index *batches, before;
    Wide momentum;
};

// Running statistics moved towards those of each domain, one after the other, with the unbiased variance.
template <typename T, typename Sum>
__device__ void advance(const Branch<T>& branch, const Running<Sum>& running, const Rows& r) {
    const Sum unbiased = static_cast<Sum>(r.rows > 1 ? static_cast<Wide>(r.rows) / (r.rows - 1) : 1);
    for (unsigned channel = first_index(); channel < r.channels; channel += index_step()) {
        Sum mean = running.mean[channel], variance = running.variance[channel];
        for (int domain = 0; domain < r.domains; ++domain) {
            const Index at = static_cast<Index>(domain) * r.channels + channel, batch = running.before + domain + 1;
            const Sum share = static_cast<Sum>(running.before < 0 ? running.momentum : 1 / static_cast<Wide>(batch));
            mean += share * (branch.mean[at] - mean);
            variance += share * (branch.variance[at] * unbiased - variance);
        }
        running.mean[channel] = mean;
        running.variance[channel] = variance;
        if (channel == 0) *running.batches += r.domains;
    }
}

// ---- images ----

template <typename T, int V>
__device__ void norm_mix(const Branch<T> (&branches)[kBranches], const typename Accumulator<T>::type* weights,
                         T* __restrict__ y, int count, const Rows& r, Wide leak) {
    typedef typename Accumulator<T>::type Sum;
    for (unsigned index = first_index(); index < Share<V>::count(r); index += index_step()) {
        const Share<V> share(index, r);
        Affine<Sum, V> map[kBranches];
        Sum weight[kBranches];
#pragma unroll
        for (int b = 0; b < kBranches; ++b) {
            if (b < count) map[b].prepare(branches[b], share);
            weight[b] = weights && b < count ? weights[b] : Sum(1);
        }
        for (Index row = share.slice; row < r.rows; row += r.slices) {
            Sum sum[V] = {}, value[V];
#pragma unroll
            for (int b = 0; b < kBranches; ++b) {
                if (b >= count) continue;
                load<T, V>(value, branches[b].x + share.at(row, r));
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const Sum z = (value[i] - map[b].mean[i]) * map[b].scale[i] + map[b].shift[i];
                    sum[i] += weight[b] * (z < 0 ? static_cast<Sum>(leak) * z : z);
                }
            }
            store<T, V>(y + share.at(row, r), sum);
        }
    }
}

}  // namespace

#define NORM_BRANCHES(T, SUM)                                                                                         \
    const T *__restrict__ x0, const SUM *__restrict__ gamma0, const SUM *__restrict__ beta0,                          \
        const SUM *__restrict__ mean0, const SUM *__restrict__ variance0, const T *__restrict__ x1,                   \
        const SUM *__restrict__ gamma1, const SUM *__restrict__ beta1, const SUM *__restrict__ mean1,                 \
        const SUM *__restrict__ variance1
#define NORM_TABLE(T)                                                                                                 \
    const Branch<T> branches[kBranches] = {{x0, gamma0, beta0, mean0, variance0, eps0},                               \
                                           {x1, gamma1, beta1, mean1, variance1, eps1}}
#define NORM_SIZES Index count, Index domains, Index channels, Index slices, Index rows
#define NORM_ROWS (Rows{static_cast<int>(domains), static_cast<int>(channels), static_cast<int>(slices), rows})

#define NORM_STATISTICS(NAME, SUM)                                                                                    \
    extern "C" __global__ void norm_finish_moments_##NAME(const Wide* __restrict__ partial,                           \
                                                          SUM* __restrict__ statistics, NORM_SIZES) {                 \
        norm_finish_moments<SUM>(partial, statistics, count, NORM_ROWS);                                              \
    }

#define NORM_IMAGES(V, NAME, T, SUM)                                                                                  \
    extern "C" __global__ void norm_moments##V##_##NAME(const T* __restrict__ x0, const T* __restrict__ x1,           \
                                                        Wide* __restrict__ partial, NORM_SIZES) {                     \
        norm_moments<T, V>(x0, x1, partial, count, NORM_ROWS);                                                        \
    }                                                                                                                 \
    extern "C" __global__ void norm_mix##V##_##NAME(                                                                  \
        NORM_BRANCHES(T, SUM), const SUM* __restrict__ weights, SUM* running_mean0, SUM* running_variance0,           \
        Index* batches0, SUM* running_mean1, SUM* running_variance1, Index* batches1, T* __restrict__ y, NORM_SIZES,  \
        Index before0, Index before1, Wide eps0, Wide eps1, Wide leak, Wide momentum0, Wide momentum1) {              \
        NORM_TABLE(T);                                                                                                \
        const Running<SUM> first = {running_mean0, running_variance0, batches0, before0, momentum0};                  \
        const Running<SUM> second = {running_mean1, running_variance1, batches1, before1, momentum1};                 \
        if (first.mean) advance(branches[0], first, NORM_ROWS);                                                       \
        if (first.mean && count > 1) advance(branches[1], second, NORM_ROWS);                                         \
        norm_mix<T, V>(branches, weights, y, count, NORM_ROWS, leak);                                                 \
    }

#define EVERY_NORM(STATISTICS, IMAGES)                                                                                \
    STATISTICS(float64, double)                                                                                       \
    STATISTICS(float32, float)                                                                                        \
    IMAGES(1, float64, double, double)                                                                                \
    IMAGES(1, float32, float, float)                                                                                  \
    IMAGES(4, float32, float, float)                                                                                  \
    IMAGES(1, float16, __half, float)                                                                                 \
    IMAGES(4, float16, __half, float)                                                                                 \
    IMAGES(1, bfloat16, __nv_bfloat16, float)                                                                         \
    IMAGES(4, bfloat16, __nv_bfloat16, float)

EVERY_NORM(NORM_STATISTICS, NORM_IMAGES)
