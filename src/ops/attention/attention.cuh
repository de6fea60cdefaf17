// Attention with a streaming softmax (FlashAttention-2): no score ever reaches memory.
//
// A warp keeps sixteen rows in registers and meets the other side's rows tile by tile in shared memory. Forward and the
// gradient of q go over keys, the gradients of k and v over queries: each result has one owner that sums in a fixed
// order, so no atomics, and the same bits every time. For that the backward pass forms the scores twice.
//
// q, out and their gradients [batch, queries, heads·D]; k, v and theirs [batch, keys, heads·D]; lse and delta
// [batch, heads, queries] in f32. Scores are in units of log 2, as exp2 is what the hardware has.
#pragma once
#include "rows.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;

// Rows of a tile: two pairs of tiles of it fit into 48 KB.
template <class T, int D> constexpr int TILE = 64 / (sizeof(T) == 4 ? 2 : 1) / (D > 64 ? 2 : 1);
// Sets of sixteen queries that a warp has: two halve the reading of tiles, where registers allow.
template <class T, int D> constexpr int SETS = sizeof(T) == 2 && D <= 64 ? 2 : 1;

struct Sizes {
    int queries, keys, heads;
    float scale, last_key_bias;

    // The bias as what is added to a product before it is scaled.
    __device__ float unscaled_bias() const { return last_key_bias / scale; }
};

// Where the rows of this block's batch entry and of a head begin.
template <int D> __device__ inline size_t head_offset(int tokens, int heads, int head) {
    return size_t(blockIdx.z) * tokens * heads * D + head * D;
}

template <int D> __device__ inline size_t head_offset(int tokens, int heads) {
    return head_offset<D>(tokens, heads, blockIdx.y);
}

// Where the queries of this block's batch entry and of a head begin in [batch, heads, queries].
__device__ inline size_t query_offset(Sizes sizes, int head) {
    return (size_t(blockIdx.z) * sizes.heads + head) * sizes.queries;
}

// A range of keys and the gradient of their probabilities, averaged over heads: [batch, queries, columns].
struct Range {
    const float* grad;
    int first, columns;

    __device__ bool has(int key) const { return key >= first && key < first + columns; }

    __device__ size_t place(int query, int key, Sizes sizes) const {
        return (size_t(blockIdx.z) * sizes.queries + query) * columns + key - first;
    }

    // What one head's probability of a pair gets.
    __device__ float grad_at(int query, int key, Sizes sizes) const {
        return has(key) && query < sizes.queries ? grad[place(query, key, sizes)] / sizes.heads : 0.f;
    }
};

template <class T, int D>
__device__ void forward(const T* q, const T* k, const T* v, T* out, float* lse, Sizes sizes) {
    constexpr int N = TILE<T, D>, M = SETS<T, D>;
    __shared__ __align__(16) T tiles[2][2][N * TILE_STRIDE<T, D>];
    const int stride = sizes.heads * D;
    const int first = (blockIdx.x * WARPS + threadIdx.x / WARP) * 16 * M;
    q += head_offset<D>(sizes.queries, sizes.heads);
    k += head_offset<D>(sizes.keys, sizes.heads);
    v += head_offset<D>(sizes.keys, sizes.heads);
    out += head_offset<D>(sizes.queries, sizes.heads);
    lse += query_offset(sizes, blockIdx.y);

    Rows<T, D> rows[M];
    float sum[M][2] = {}, largest[M][2], result[M][D / 8][4] = {};
#pragma unroll
    for (int m = 0; m < M; m++) {
        load_rows(rows[m], q, stride, first + 16 * m, sizes.queries);
        largest[m][0] = largest[m][1] = -INFINITY;
    }
    const auto copy = [&](int stage, int start) {
        copy_tile<T, D, N, THREADS>(tiles[stage][0], k, stride, start, sizes.keys);
        copy_tile<T, D, N, THREADS>(tiles[stage][1], v, stride, start, sizes.keys);
    };
    copy(0, 0);
    commit_copies();
    for (int start = 0, stage = 0; start < sizes.keys; start += N, stage ^= 1) {
        if (start + N < sizes.keys) copy(stage ^ 1, start + N);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        float scores[M][N / 8][4] = {};
        add_product_transposed<M, D, N>(scores, rows, tiles[stage][0]);
        const bool last = start + N >= sizes.keys;
#pragma unroll
        for (int m = 0; m < M; m++) {
            float best[2] = {largest[m][0], largest[m][1]}, offset[2];
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
#pragma unroll
                for (int part = 0; part < 4; part++) {
                    float& score = scores[m][j][part];
                    if (last) {
                        const int key = start + 8 * j + lane_column() + part % 2;
                        if (key == sizes.keys - 1) score += sizes.unscaled_bias();
                        if (key >= sizes.keys) score = -INFINITY;
                    }
                    best[part / 2] = fmaxf(best[part / 2], score);
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                best[half] = fmaxf(best[half], __shfl_xor_sync(0xffffffffu, best[half], 1));
                best[half] = fmaxf(best[half], __shfl_xor_sync(0xffffffffu, best[half], 2));
                const float correction = exp2_approx((largest[m][half] - best[half]) * sizes.scale);
                largest[m][half] = best[half];
                offset[half] = best[half] * sizes.scale;
                sum[m][half] *= correction;
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    result[m][j][2 * half] *= correction;
                    result[m][j][2 * half + 1] *= correction;
                }
            }
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
#pragma unroll
                for (int part = 0; part < 4; part++) {
                    float& score = scores[m][j][part];
                    score = exp2_approx(score * sizes.scale - offset[part / 2]);
                    sum[m][part / 2] += score;
                }
            }
        }
        add_product<M, D, N>(result, scores, tiles[stage][1]);
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float& total = sum[m][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const int row = first + 16 * m + lane_row() + 8 * half;
            if (lane_column() == 0 && row < sizes.queries) lse[row] = largest[m][half] * sizes.scale + log2f(total);
        }
        store_rows<T, D>(out, stride, first + 16 * m, sizes.queries, result[m], {1 / sum[m][0], 1 / sum[m][1]});
    }
}

// FlashAttention's Δ = rowsum(dO∘O), what the softmax's gradient subtracts: a warp a query and head.
template <class T, int D>
__device__ void row_dots(const T* out, const T* d_out, float* delta, Sizes sizes) {
    const int query = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (query >= sizes.queries) return;
    const size_t offset = head_offset<D>(sizes.queries, sizes.heads) + size_t(query) * sizes.heads * D;
    float sum = 0;
    for (int i = lane; i < D; i += WARP) sum += to_float(out[offset + i]) * to_float(d_out[offset + i]);
    sum = warp_sum(sum);
    if (lane == 0) delta[query_offset(sizes, blockIdx.y) + query] = sum;
}

// The gradient of q: a warp has queries, and goes over keys. The gradient of the probabilities is that of the output times
// v, or, OF_RANGE, given.
template <class T, int D, bool OF_RANGE>
__device__ void backward_queries(const T* q, const T* k, const T* v, const T* d_out, const float* lse,
                                 const float* delta, T* dq, Sizes sizes, Range range = {}) {
    // Of a tile's keys as many at a time as registers allow.
    constexpr int N = TILE<T, D>, M = SETS<T, D>, PART = N / M;
    __shared__ __align__(16) T tiles[2][2][N * TILE_STRIDE<T, D>];
    const int stride = sizes.heads * D;
    const int first = (blockIdx.x * WARPS + threadIdx.x / WARP) * 16 * M;
    q += head_offset<D>(sizes.queries, sizes.heads);
    d_out += head_offset<D>(sizes.queries, sizes.heads);
    dq += head_offset<D>(sizes.queries, sizes.heads);
    k += head_offset<D>(sizes.keys, sizes.heads);
    v += head_offset<D>(sizes.keys, sizes.heads);
    const size_t of_head = query_offset(sizes, blockIdx.y);

    Rows<T, D> rows[M], d_rows[M];
    float row_lse[M][2], row_delta[M][2], result[M][D / 8][4] = {};
#pragma unroll
    for (int m = 0; m < M; m++) {
        load_rows(rows[m], q, stride, first + 16 * m, sizes.queries);
        if (!OF_RANGE) load_rows(d_rows[m], d_out, stride, first + 16 * m, sizes.queries);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + 16 * m + lane_row() + 8 * half;
            row_lse[m][half] = row < sizes.queries ? lse[of_head + row] : INFINITY;
            row_delta[m][half] = row < sizes.queries ? delta[of_head + row] : 0.f;
        }
    }
    const auto copy = [&](int stage, int start) {
        copy_tile<T, D, N, THREADS>(tiles[stage][0], k, stride, start, sizes.keys);
        if (!OF_RANGE) copy_tile<T, D, N, THREADS>(tiles[stage][1], v, stride, start, sizes.keys);
    };
    copy(0, 0);
    commit_copies();
    for (int start = 0, stage = 0; start < sizes.keys; start += N, stage ^= 1) {
        if (start + N < sizes.keys) copy(stage ^ 1, start + N);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        const bool last = start + N >= sizes.keys;
#pragma unroll
        for (int begin = 0; begin < N; begin += PART) {
            const T* k_tile = tiles[stage][0] + begin * TILE_STRIDE<T, D>;
            const T* v_tile = tiles[stage][1] + begin * TILE_STRIDE<T, D>;
            float scores[M][PART / 8][4] = {}, d_scores[M][PART / 8][4] = {};
            add_product_transposed<M, D, PART>(scores, rows, k_tile);
            if (!OF_RANGE) add_product_transposed<M, D, PART>(d_scores, d_rows, v_tile);
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int j = 0; j < PART / 8; j++) {
#pragma unroll
                    for (int part = 0; part < 4; part++) {
                        const int key = start + begin + 8 * j + lane_column() + part % 2;
                        float score = scores[m][j][part];
                        float& d_score = d_scores[m][j][part];
                        if (OF_RANGE) {
                            d_score = range.grad_at(first + 16 * m + lane_row() + part / 2 * 8, key, sizes);
                        }
                        if (last) {
                            if (key == sizes.keys - 1) score += sizes.unscaled_bias();
                            if (key >= sizes.keys) score = -INFINITY;
                        }
                        const float probability = exp2_approx(score * sizes.scale - row_lse[m][part / 2]);
                        d_score = probability * (d_score - row_delta[m][part / 2]);
                    }
                }
            }
            add_product<M, D, PART>(result, d_scores, k_tile);
        }
        __syncthreads();
    }
    const float scale = sizes.scale * 0.693147181f;  // the scores' units of log 2 undone
#pragma unroll
    for (int m = 0; m < M; m++) {
        store_rows<T, D>(dq, stride, first + 16 * m, sizes.queries, result[m], {scale, scale});
    }
}

// The gradients of k and v: a warp has sixteen keys, and goes over queries. Scores are transposed, [keys, queries].
// OF_RANGE as above; then v has none.
template <class T, int D, bool OF_RANGE>
__device__ void backward_keys(const T* q, const T* k, const T* v, const T* d_out, const float* lse, const float* delta,
                              T* dk, T* dv, Sizes sizes, Range range = {}) {
    constexpr int N = TILE<T, D>;
    __shared__ __align__(16) T tiles[2][2][N * TILE_STRIDE<T, D>];
    __shared__ float of_queries[2][2][N];
    const int stride = sizes.heads * D;
    const int first = (blockIdx.x * WARPS + threadIdx.x / WARP) * 16;
    q += head_offset<D>(sizes.queries, sizes.heads);
    d_out += head_offset<D>(sizes.queries, sizes.heads);
    k += head_offset<D>(sizes.keys, sizes.heads);
    v += head_offset<D>(sizes.keys, sizes.heads);
    dk += head_offset<D>(sizes.keys, sizes.heads);
    dv += head_offset<D>(sizes.keys, sizes.heads);
    const size_t of_head = query_offset(sizes, blockIdx.y);

    Rows<T, D> k_rows[1], v_rows[1];
    load_rows(k_rows[0], k, stride, first, sizes.keys);
    if (!OF_RANGE) load_rows(v_rows[0], v, stride, first, sizes.keys);
    float k_result[1][D / 8][4] = {}, v_result[1][D / 8][4] = {}, bias[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bias[half] = first + lane_row() + 8 * half == sizes.keys - 1 ? sizes.unscaled_bias() : 0.f;
    }
    const auto copy = [&](int stage, int start) {
        copy_tile<T, D, N, THREADS>(tiles[stage][0], q, stride, start, sizes.queries);
        if (!OF_RANGE) copy_tile<T, D, N, THREADS>(tiles[stage][1], d_out, stride, start, sizes.queries);
        // Beyond the last query zeros: probabilities that meet none but zeros.
        static_assert(2 * N <= THREADS, "a thread copies one value");
        if (threadIdx.x < 2 * N) {
            const int i = threadIdx.x % N;
            const float* from = (threadIdx.x < N ? lse : delta) + of_head + start + i;
            copy_async<4>(&of_queries[stage][threadIdx.x / N][i], from, start + i < sizes.queries);
        }
    };
    copy(0, 0);
    commit_copies();
    for (int start = 0, stage = 0; start < sizes.queries; start += N, stage ^= 1) {
        if (start + N < sizes.queries) copy(stage ^ 1, start + N);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        float scores[1][N / 8][4];
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int part = 0; part < 4; part++) scores[0][j][part] = bias[part / 2];
        }
        add_product_transposed<1, D, N>(scores, k_rows, tiles[stage][0]);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const float row_lse = of_queries[stage][0][8 * j + lane_column() + part % 2];
                scores[0][j][part] = exp2_approx(scores[0][j][part] * sizes.scale - row_lse);
            }
        }
        float d_scores[1][N / 8][4] = {};
        if (!OF_RANGE) {
            add_product<1, D, N>(v_result, scores, tiles[stage][1]);
            add_product_transposed<1, D, N>(d_scores, v_rows, tiles[stage][1]);
        }
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int column = 8 * j + lane_column() + part % 2, key = first + lane_row() + part / 2 * 8;
                const float row_delta = of_queries[stage][1][column];
                if (OF_RANGE) d_scores[0][j][part] = range.grad_at(start + column, key, sizes);
                d_scores[0][j][part] = scores[0][j][part] * (d_scores[0][j][part] - row_delta);
            }
        }
        add_product<1, D, N>(k_result, d_scores, tiles[stage][0]);
        __syncthreads();
    }
    const float scale = sizes.scale * 0.693147181f;
    store_rows<T, D>(dk, stride, first, sizes.keys, k_result[0], {scale, scale});
    if (!OF_RANGE) store_rows<T, D>(dv, stride, first, sizes.keys, v_result[0], {1, 1});
}
