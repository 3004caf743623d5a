// The gradients of norm.cu, whose text stands in front of this one.

namespace {

// A gradient of act(z) as one of z.
template <typename Sum> __device__ Sum through(Sum z, Sum pull, Wide leak) {
    return z <= 0 ? static_cast<Sum>(leak) * pull : pull;
}

// Per branch, with d the gradient of act(z): sums over a thread's rows of d and d (x - mean) -> partial
// [domain][slice][branch][2][C].
template <typename T, int V>
__device__ void norm_sums(const T* __restrict__ grad, const Branch<T> (&branches)[kBranches],
                          Wide* __restrict__ partial, int count, const Rows& r, Wide leak) {
    typedef typename Accumulator<T>::type Sum;
    const Index run = static_cast<Index>(kRun) * r.slices;
    for (unsigned index = first_index(); index < Share<V>::count(r); index += index_step()) {
        const Share<V> share(index, r);
        Affine<Sum, V> map[kBranches];
        Wide total[2 * kBranches][V] = {};
#pragma unroll
        for (int b = 0; b < kBranches; ++b) {
            if (b < count) map[b].prepare(branches[b], share);
        }
        for (Index start = share.slice; start < r.rows; start += run) {
            const Index end = start + run < r.rows ? start + run : r.rows;
            Sum sum[2 * kBranches][V] = {};
            for (Index row = start; row < end; row += r.slices) {
                Sum pull[V], value[V];
                load<T, V>(pull, grad + share.at(row, r));
#pragma unroll
                for (int b = 0; b < kBranches; ++b) {
                    if (b >= count) continue;
                    load<T, V>(value, branches[b].x + share.at(row, r));
#pragma unroll
                    for (int i = 0; i < V; ++i) {
                        const Sum centred = value[i] - map[b].mean[i];
                        const Sum d = through(centred * map[b].scale[i] + map[b].shift[i], pull[i], leak);
                        sum[2 * b][i] += d;
                        sum[2 * b + 1][i] += d * centred;
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < 2 * kBranches; ++k) {
#pragma unroll
                for (int i = 0; i < V; ++i) total[k][i] += sum[k][i];
            }
        }
#pragma unroll
        for (int k = 0; k < 2 * kBranches; ++k) {
            if (k < 2 * count) store<Wide, V>(partial + share.partial(k, 2 * count, r), total[k]);
        }
    }
}

// partial [domain][slice][branch][2][C] -> [domain][branch][3][C]: the sums of d, of d xn with xn = (x - mean) rstd,
// and of d z, which the weight's gradient is made of, since act(z) = act'(z) z.
template <typename T>
__device__ void norm_finish_sums(const Wide* __restrict__ partial, const Branch<T> (&branches)[kBranches],
                                 Wide* __restrict__ sums, int count, const Rows& r) {
    const Index size = 2 * count * r.channels;
    for (unsigned index = first_index(); index < r.domains * count * r.channels; index += index_step()) {
        const unsigned place = index / r.channels, channel = index % r.channels;
        const unsigned domain = place / count, branch = place % count;
        Branch<T> own = branches[0];
        if (branch) own = branches[1];
        const Wide* from = partial + domain * r.slices * size + branch * 2 * r.channels + channel;
        const Wide sum = add_slices(from, size, r.slices);
        const Wide rstd = inverse_root(own.variance[domain * r.channels + channel], own.eps);
        const Wide projected = rstd * add_slices(from + r.channels, size, r.slices);
        Wide* to = sums + place * 3 * static_cast<Index>(r.channels) + channel;
        to[0] = sum;
        to[r.channels] = projected;
        to[2 * r.channels] = own.gamma[channel] * projected + own.beta[channel] * sum;
    }
}

// The gradients of gamma and beta, [branch][2][C], and of the weights, [branch], from what norm_finish_sums makes.
template <typename Sum>
__device__ void parameter_gradients(const Wide* __restrict__ sums, const Sum* weights, Sum* __restrict__ parameters,
                                    Sum* __restrict__ grad_weights, int count, const Rows& r) {
    const Index size = 3 * static_cast<Index>(r.channels) * count;
    for (unsigned index = first_index(); index < count * r.channels; index += index_step()) {
        const unsigned branch = index / r.channels, channel = index % r.channels;
        const Wide* from = sums + branch * 3 * r.channels + channel;
        const Wide weight = weights ? weights[branch] : Sum(1);
        Sum* to = parameters + branch * 2 * r.channels + channel;
        to[0] = static_cast<Sum>(weight * add_slices(from + r.channels, size, r.domains));
        to[r.channels] = static_cast<Sum>(weight * add_slices(from, size, r.domains));
    }
    for (unsigned branch = first_index(); branch < count; branch += index_step()) {
        const Wide* from = sums + (branch * 3 + 2) * r.channels;
        Wide sum = 0;
        for (int channel = 0; channel < r.channels; ++channel) sum += add_slices(from + channel, size, r.domains);
        grad_weights[branch] = static_cast<Sum>(sum);
    }
}

// The input's gradient, weight gamma rstd (d - mean(d) - xn mean(d xn)), is slope d + along (x - mean) + offset.
template <typename T, int V>
__device__ void norm_gradients(const T* __restrict__ grad, const Branch<T> (&branches)[kBranches],
                               const typename Accumulator<T>::type* weights, const Wide* __restrict__ sums,
                               T* __restrict__ grad_first, T* __restrict__ grad_second, int count, const Rows& r,
                               Wide leak) {
    typedef typename Accumulator<T>::type Sum;
    for (unsigned index = first_index(); index < Share<V>::count(r); index += index_step()) {
        const Share<V> share(index, r);
        Affine<Sum, V> map[kBranches];
        Sum slope[kBranches][V], along[kBranches][V], offset[kBranches][V];
#pragma unroll
        for (int b = 0; b < kBranches; ++b) {
            if (b >= count) continue;
            map[b].prepare(branches[b], share);
            const Wide* own = sums + (share.domain * count + b) * 3 * static_cast<Index>(r.channels) + share.channel;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                slope[b][i] = weights ? weights[b] * map[b].scale[i] : map[b].scale[i];
                along[b][i] = static_cast<Sum>(-slope[b][i] * map[b].rstd[i] * own[r.channels + i] / r.rows);
                offset[b][i] = static_cast<Sum>(-slope[b][i] * own[i] / r.rows);
            }
        }
        for (Index row = share.slice; row < r.rows; row += r.slices) {
            Sum pull[V], value[V];
            load<T, V>(pull, grad + share.at(row, r));
#pragma unroll
            for (int b = 0; b < kBranches; ++b) {
                if (b >= count) continue;
                load<T, V>(value, branches[b].x + share.at(row, r));
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const Sum centred = value[i] - map[b].mean[i];
                    const Sum d = through(centred * map[b].scale[i] + map[b].shift[i], pull[i], leak);
                    value[i] = slope[b][i] * d + along[b][i] * centred + offset[b][i];
                }
                store<T, V>((b ? grad_second : grad_first) + share.at(row, r), value);
            }
        }
    }
}

}  // namespace

#define NORM_FINISH_SUMS(NAME, SUM)                                                                                   \
    extern "C" __global__ void norm_finish_sums_##NAME(const Wide* __restrict__ partial, NORM_BRANCHES(SUM, SUM),     \
                                                       Wide* __restrict__ sums, NORM_SIZES, Wide eps0, Wide eps1) {   \
        NORM_TABLE(SUM);                                                                                              \
        norm_finish_sums<SUM>(partial, branches, sums, count, NORM_ROWS);                                             \
    }

#define NORM_GRADIENTS(V, NAME, T, SUM)                                                                               \
    extern "C" __global__ void norm_sums##V##_##NAME(const T* __restrict__ grad, NORM_BRANCHES(T, SUM),               \
                                                     Wide* __restrict__ partial, NORM_SIZES, Wide eps0, Wide eps1,    \
                                                     Wide leak) {                                                     \
        NORM_TABLE(T);                                                                                                \
        norm_sums<T, V>(grad, branches, partial, count, NORM_ROWS, leak);                                             \
    }                                                                                                                 \
    extern "C" __global__ void norm_gradients##V##_##NAME(                                                            \
        const T* __restrict__ grad, NORM_BRANCHES(T, SUM), const SUM* __restrict__ weights,                           \
        const Wide* __restrict__ sums, SUM* __restrict__ parameters, SUM* __restrict__ grad_weights,                  \
        T* __restrict__ grad0, T* __restrict__ grad1, NORM_SIZES, Wide eps0, Wide eps1, Wide leak) {                  \
        NORM_TABLE(T);                                                                                                \
        if (parameters) parameter_gradients<SUM>(sums, weights, parameters, grad_weights, count, NORM_ROWS);          \
        norm_gradients<T, V>(grad, branches, weights, sums, grad0, grad1, count, NORM_ROWS, leak);                    \
    }

EVERY_NORM(NORM_FINISH_SUMS, NORM_GRADIENTS)
