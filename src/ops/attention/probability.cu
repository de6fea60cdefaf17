// The attention probability of a range of keys, averaged over heads, and its gradients. The log-sum-exps come from the
// forward pass of attention.
#include "attention.cuh"

// The scores of a warp's queries with a tile of keys, as probabilities; 0 for keys that there are not.
template <class T, int D, int N>
__device__ inline void probabilities(float (&scores)[1][N / 8][4], const Rows<T, D> (&rows)[1], const T* tile, int start,
                                     float2 row_lse, Sizes sizes) {
    add_product_transposed<1, D, N>(scores, rows, tile);
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int key = start + 8 * j + lane_column() + part % 2;
            const float score = scores[0][j][part] * sizes.scale + (key == sizes.keys - 1 ? sizes.last_key_bias : 0.f);
            scores[0][j][part] = key < sizes.keys ? exp2_approx(score - (part / 2 ? row_lse.y : row_lse.x)) : 0.f;
        }
    }
}

__device__ inline float2 rows_lse(const float* lse, int first, int head, Sizes sizes) {
    const int row = first + lane_row();
    lse += query_offset(sizes, head);
    return {row < sizes.queries ? lse[row] : INFINITY, row + 8 < sizes.queries ? lse[row + 8] : INFINITY};
}

// out [batch, queries, columns] in f32: the probabilities of a range of keys, averaged over heads.
template <class T, int D>
__device__ void range_forward(const T* q, const T* k, const float* lse, float* out, Sizes sizes, Range range) {
    constexpr int N = TILE<T, D>;
    __shared__ __align__(16) T tile[N * TILE_STRIDE<T, D>];
    const int stride = sizes.heads * D, start = range.first + blockIdx.y * N;
    const int first = (blockIdx.x * WARPS + threadIdx.x / WARP) * 16;
    float mean[N / 8][4] = {};
    for (int head = 0; head < sizes.heads; head++) {
        copy_tile<T, D, N, THREADS>(tile, k + head_offset<D>(sizes.keys, sizes.heads, head), stride, start, sizes.keys);
        commit_copies();
        Rows<T, D> rows[1];
        load_rows(rows[0], q + head_offset<D>(sizes.queries, sizes.heads, head), stride, first, sizes.queries);
        wait_for_copies<0>();
        __syncthreads();
        float scores[1][N / 8][4] = {};
        probabilities<T, D, N>(scores, rows, tile, start, rows_lse(lse, first, head, sizes), sizes);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int part = 0; part < 4; part++) mean[j][part] += scores[0][j][part] / sizes.heads;
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int query = first + lane_row() + part / 2 * 8, key = start + 8 * j + lane_column() + part % 2;
            if (query < sizes.queries && range.has(key)) out[range.place(query, key, sizes)] = mean[j][part];
        }
    }
}

// Δ of the range: Σ probability·gradient, what the softmax's gradient subtracts.
template <class T, int D>
__device__ void range_delta(const T* q, const T* k, const float* lse, float* delta, Sizes sizes, Range range) {
    constexpr int N = TILE<T, D>;
    __shared__ __align__(16) T tile[N * TILE_STRIDE<T, D>];
    const int stride = sizes.heads * D;
    const int first = (blockIdx.x * WARPS + threadIdx.x / WARP) * 16;
    const float2 row_lse = rows_lse(lse, first, blockIdx.y, sizes);
    Rows<T, D> rows[1];
    load_rows(rows[0], q + head_offset<D>(sizes.queries, sizes.heads), stride, first, sizes.queries);
    float sums[2] = {};
    for (int start = range.first; start < range.first + range.columns; start += N) {
        copy_tile<T, D, N, THREADS>(tile, k + head_offset<D>(sizes.keys, sizes.heads), stride, start, sizes.keys);
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
        float scores[1][N / 8][4] = {};
        probabilities<T, D, N>(scores, rows, tile, start, row_lse, sizes);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int query = first + lane_row() + part / 2 * 8, key = start + 8 * j + lane_column() + part % 2;
                sums[part / 2] += scores[0][j][part] * range.grad_at(query, key, sizes);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sums[half] += __shfl_xor_sync(0xffffffffu, sums[half], 1);
        sums[half] += __shfl_xor_sync(0xffffffffu, sums[half], 2);
        const int row = first + lane_row() + 8 * half;
        if (lane_column() == 0 && row < sizes.queries) delta[query_offset(sizes, blockIdx.y) + row] = sums[half];
    }
}

#define SIZES int queries, int keys, int heads, float scale, float last_key_bias, int first, int columns
#define KERNELS(NAME, T, D)                                                                                            \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        range_forward_##NAME##_##D(const T* q, const T* k, const float* lse, float* out, SIZES) {                      \
        range_forward<T, D>(q, k, lse, out, {queries, keys, heads, scale, last_key_bias}, {nullptr, first, columns});  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        range_delta_##NAME##_##D(const T* q, const T* k, const float* lse, const float* grad, float* delta, SIZES) {   \
        range_delta<T, D>(q, k, lse, delta, {queries, keys, heads, scale, last_key_bias}, {grad, first, columns});     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        range_queries_##NAME##_##D(const T* q, const T* k, const float* lse, const float* grad, const float* delta,    \
                                   T* dq, SIZES) {                                                                     \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_queries<T, D, true>(q, k, k, q, lse, delta, dq, sizes, {grad, first, columns});                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        range_keys_##NAME##_##D(const T* q, const T* k, const float* lse, const float* grad, const float* delta,       \
                                T* dk, SIZES) {                                                                        \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_keys<T, D, true>(q, k, k, q, lse, delta, dk, dk, sizes, {grad, first, columns});                      \
    }

KERNELS(bf16, bf16, 32)
KERNELS(bf16, bf16, 64)
KERNELS(f32, float, 32)
KERNELS(f32, float, 64)
