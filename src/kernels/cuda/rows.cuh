// Products of a warp's sixteen rows with a tile in shared memory, the two that attention is made of: on tensor cores in
// bf16, with shuffles in f32.
//
// Lane 4g + t has of a matrix of 16 rows the rows g and g + 8; of their columns 8j … 8j + 7 it has 2t and 2t + 1, in the
// order (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1): the layout of what tensor cores return.
#pragma once
#include "common.cuh"
#include "mma.cuh"

// Sixteen rows of D values as a left factor.
template <class T, int D> struct Rows;
template <int D> struct Rows<bf16, D> {
    uint32_t parts[D / 16][4];
};
template <int D> struct Rows<float, D> {
    float parts[D / 8][4];
};

// A tile's rows are apart by a little more than their length, so that eight of them lie in different banks.
template <class T, int D> constexpr int TILE_STRIDE = D + 16 / int(sizeof(T));

__device__ inline int lane_row() { return threadIdx.x % WARP / 4; }
__device__ inline int lane_column() { return threadIdx.x % 4 * 2; }

// Rows `first` to `first + 15` of a matrix of `rows` rows, `stride` values apart; zeros beyond its end.
template <int D>
__device__ inline void load_rows(Rows<bf16, D>& out, const bf16* matrix, int stride, int first, int rows) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int row = first + lane_row() + part % 2 * 8;
            const int column = 16 * k + part / 2 * 8 + lane_column();
            const bf16* from = matrix + size_t(row) * stride + column;
            out.parts[k][part] = row < rows ? *reinterpret_cast<const uint32_t*>(from) : 0;
        }
    }
}

template <int D>
__device__ inline void load_rows(Rows<float, D>& out, const float* matrix, int stride, int first, int rows) {
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int row = first + lane_row() + part / 2 * 8;
            const int column = 8 * j + lane_column() + part % 2;
            out.parts[j][part] = row < rows ? matrix[size_t(row) * stride + column] : 0.f;
        }
    }
}

// Starts copying N rows from `first` on to a tile [N, D] in shared memory; zeros beyond the matrix's end. By a block of
// THREADS, each of which copies the same columns of some rows: their number is known when this is compiled, so that
// nothing loops.
template <class T, int D, int N, int THREADS>
__device__ inline void copy_tile(T* tile, const T* matrix, int stride, int first, int rows) {
    constexpr int STEP = 16 / int(sizeof(T)), ACROSS = D / STEP, AT_ONCE = THREADS / ACROSS;
    static_assert(THREADS % ACROSS == 0 && N % AT_ONCE == 0, "a thread copies as much as every other");
    const int row = threadIdx.x / ACROSS, column = threadIdx.x % ACROSS * STEP;
    const T* from = matrix + size_t(first + row) * stride + column;
#pragma unroll
    for (int i = 0; i < N; i += AT_ONCE) {
        // Beyond the end there is an address, but nothing is read from it.
        copy_async<16>(tile + (row + i) * TILE_STRIDE<T, D> + column, from + size_t(i) * stride, first + row + i < rows);
    }
}

// out [16, N] += rows [16, D] · tile [N, D]ᵀ, for M sets of rows.
template <int M, int D, int N>
__device__ inline void add_product_transposed(float (&out)[M][N / 8][4], const Rows<bf16, D> (&rows)[M],
                                              const bf16* tile) {
    const int lane = threadIdx.x % WARP;
    const bf16* corner = tile + (lane / 16 * 8 + lane % 8) * TILE_STRIDE<bf16, D> + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            uint32_t b[4];
            load_matrices(b, corner + 8 * j * TILE_STRIDE<bf16, D> + 16 * k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16(out[m][j], rows[m].parts[k], b[0], b[1]);
                mma_bf16(out[m][j + 1], rows[m].parts[k], b[2], b[3]);
            }
        }
    }
}

// out [16, D] += weights [16, N] · tile [N, D], for M sets of rows.
template <int M, int D, int N>
__device__ inline void add_product(float (&out)[M][D / 8][4], const float (&weights)[M][N / 8][4], const bf16* tile) {
    const int lane = threadIdx.x % WARP;
    const bf16* corner = tile + (lane / 8 % 2 * 8 + lane % 8) * TILE_STRIDE<bf16, D> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const float(&pair)[4] = weights[m][2 * k + part / 2];
                a[m][part] = pack_bf16(pair[part % 2 * 2], pair[part % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, corner + 16 * k * TILE_STRIDE<bf16, D> + 8 * j);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16(out[m][j], a[m], b[0], b[1]);
                mma_bf16(out[m][j + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Column `column` (known when compiled) of rows g and g + 8, from the lane that has it.
__device__ inline float2 column_of(const float (&parts)[4], int column) {
    const int lane = threadIdx.x % WARP / 4 * 4 + column / 2;
    return {__shfl_sync(0xffffffffu, parts[column % 2], lane), __shfl_sync(0xffffffffu, parts[2 + column % 2], lane)};
}

template <int M, int D, int N>
__device__ inline void add_product_transposed(float (&out)[M][N / 8][4], const Rows<float, D> (&rows)[M],
                                              const float* tile) {
    const float* corner = tile + lane_column() * TILE_STRIDE<float, D>;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int k = 0; k < D; k++) {
            const float2 a = column_of(rows[m].parts[k / 8], k % 8);
            const float* b = corner + k;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float b0 = b[8 * j * TILE_STRIDE<float, D>], b1 = b[(8 * j + 1) * TILE_STRIDE<float, D>];
                out[m][j][0] += a.x * b0;
                out[m][j][1] += a.x * b1;
                out[m][j][2] += a.y * b0;
                out[m][j][3] += a.y * b1;
            }
        }
    }
}

template <int M, int D, int N>
__device__ inline void add_product(float (&out)[M][D / 8][4], const float (&weights)[M][N / 8][4], const float* tile) {
    const float* corner = tile + lane_column();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float2 a = column_of(weights[m][k / 8], k % 8);
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                const float b0 = corner[k * TILE_STRIDE<float, D> + 8 * j];
                const float b1 = corner[k * TILE_STRIDE<float, D> + 8 * j + 1];
                out[m][j][0] += a.x * b0;
                out[m][j][1] += a.x * b1;
                out[m][j][2] += a.y * b0;
                out[m][j][3] += a.y * b1;
            }
        }
    }
}

// Writes factor·values [16, D] to rows `first` to `first + 15`, where the matrix has them; factor.x is row g's.
template <class T, int D>
__device__ inline void store_rows(T* matrix, int stride, int first, int rows, const float (&values)[D / 8][4],
                                  float2 factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first + lane_row() + 8 * half;
        const float by = half ? factor.y : factor.x;
        if (row >= rows) continue;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const float pair[2] = {values[j][2 * half] * by, values[j][2 * half + 1] * by};
            store(matrix + size_t(row) * stride + 8 * j + lane_column(), pair);
        }
    }
}
