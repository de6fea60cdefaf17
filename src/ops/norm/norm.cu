// Layer norm with AdaLN modulation, and RMS norm: a warp a row, V values a lane at a time. A row is read once from
// memory; the later passes over it find it in cache.
#include "common.cuh"

constexpr int WARPS = 8;
constexpr float EPSILON = 1e-6f;  // diffusers' norms of SD3

// Calls work(column) for this lane's share of a row: `column` and the V - 1 after it.
template <int V, class Work> __device__ inline void for_each_column(int width, Work work) {
    for (int column = threadIdx.x % WARP * V; column < width; column += WARP * V) work(column);
}

// This warp's row; -1 beyond the last.
__device__ inline int warp_row(int rows) {
    const int row = blockIdx.x * WARPS + threadIdx.x / WARP;
    return row < rows ? row : -1;
}

template <class T, int V> __device__ inline float2 mean_and_inverse_deviation(const T* x, int width) {
    float sum = 0, squares = 0, values[V];
    for_each_column<V>(width, [&](int column) {
        load(values, x + column);
        for (int i = 0; i < V; i++) sum += values[i];
    });
    const float mean = warp_sum(sum) / width;
    for_each_column<V>(width, [&](int column) {
        load(values, x + column);
        for (int i = 0; i < V; i++) squares += (values[i] - mean) * (values[i] - mean);
    });
    return {mean, rsqrtf(warp_sum(squares) / width + EPSILON)};
}

// y = norm(x)·(1 + scale) + shift; x [batch, tokens, width], shift and scale [batch, width].
template <class T, int V>
__device__ void layer_norm_forward(const T* x, const T* shift, const T* scale, T* y, int rows, int tokens, int width) {
    const int row = warp_row(rows);
    if (row < 0) return;
    x += size_t(row) * width, y += size_t(row) * width;
    shift += size_t(row / tokens) * width, scale += size_t(row / tokens) * width;
    const float2 moments = mean_and_inverse_deviation<T, V>(x, width);
    for_each_column<V>(width, [&](int column) {
        float values[V], by[V], plus[V];
        load(values, x + column), load(by, scale + column), load(plus, shift + column);
        for (int i = 0; i < V; i++) values[i] = (values[i] - moments.x) * moments.y * (1 + by[i]) + plus[i];
        store(y + column, values);
    });
}

// The gradient of x: with g = dy·(1 + scale), (g - mean(g) - norm·mean(g·norm)) / deviation; and `more`, if there is any, which may be dx.
template <class T, int V>
__device__ void layer_norm_backward(const T* x, const T* scale, const T* dy, const T* more, T* dx, int rows, int tokens,
                                    int width) {
    const int row = warp_row(rows);
    if (row < 0) return;
    x += size_t(row) * width, dy += size_t(row) * width, dx += size_t(row) * width;
    if (more) more += size_t(row) * width;
    scale += size_t(row / tokens) * width;
    const float2 moments = mean_and_inverse_deviation<T, V>(x, width);
    float values[V], by[V], grads[V], sum = 0, dot = 0;
    for_each_column<V>(width, [&](int column) {
        load(values, x + column), load(by, scale + column), load(grads, dy + column);
        for (int i = 0; i < V; i++) {
            const float g = grads[i] * (1 + by[i]);
            sum += g;
            dot += g * (values[i] - moments.x) * moments.y;
        }
    });
    sum = warp_sum(sum) / width, dot = warp_sum(dot) / width;
    for_each_column<V>(width, [&](int column) {
        load(values, x + column), load(by, scale + column), load(grads, dy + column);
        for (int i = 0; i < V; i++) {
            const float norm = (values[i] - moments.x) * moments.y;
            grads[i] = moments.y * (grads[i] * (1 + by[i]) - sum - norm * dot);
        }
        if (more) {
            load(values, more + column);
            for (int i = 0; i < V; i++) grads[i] += values[i];
        }
        store(dx + column, grads);
    });
}

template <class T, int V> __device__ inline float inverse_rms(const T* x, int width) {
    float squares = 0, values[V];
    for_each_column<V>(width, [&](int column) {
        load(values, x + column);
        for (int i = 0; i < V; i++) squares += values[i] * values[i];
    });
    return rsqrtf(warp_sum(squares) / width + EPSILON);
}

// This warp's row of those of some tokens: `part` rows of each batch entry's `all`, from `first` on; -1 beyond the last.
__device__ inline int warp_row(int rows, int part, int first, int all) {
    const int row = warp_row(rows);
    return row < 0 ? row : row / part * all + first + row % part;
}

// y = x / rms(x)·weight, of some tokens.
template <class T, int V> __device__ void rms_norm_forward(const T* x, const T* weight, T* y, int rows, int part, int first, int all, int width) {
    const int row = warp_row(rows, part, first, all);
    if (row < 0) return;
    x += size_t(row) * width, y += size_t(row) * width;
    const float inverse = inverse_rms<T, V>(x, width);
    for_each_column<V>(width, [&](int column) {
        float values[V], by[V];
        load(values, x + column), load(by, weight + column);
        for (int i = 0; i < V; i++) values[i] *= inverse * by[i];
        store(y + column, values);
    });
}

// The gradient of x: with g = dy·weight, (g - x·mean(g·x)/rms²) / rms; and `more`, if there is any, which may be dx.
template <class T, int V>
__device__ void rms_norm_backward(const T* x, const T* weight, const T* dy, const T* more, T* dx, int rows, int part,
                                  int first, int all, int width) {
    const int row = warp_row(rows, part, first, all);
    if (row < 0) return;
    x += size_t(row) * width, dy += size_t(row) * width, dx += size_t(row) * width;
    if (more) more += size_t(row) * width;
    const float inverse = inverse_rms<T, V>(x, width);
    float values[V], by[V], grads[V], dot = 0;
    for_each_column<V>(width, [&](int column) {
        load(values, x + column), load(by, weight + column), load(grads, dy + column);
        for (int i = 0; i < V; i++) dot += grads[i] * by[i] * values[i];
    });
    dot = warp_sum(dot) / width * inverse * inverse;
    for_each_column<V>(width, [&](int column) {
        load(values, x + column), load(by, weight + column), load(grads, dy + column);
        for (int i = 0; i < V; i++) grads[i] = inverse * (grads[i] * by[i] - values[i] * dot);
        if (more) {
            load(values, more + column);
            for (int i = 0; i < V; i++) grads[i] += values[i];
        }
        store(dx + column, grads);
    });
}

#define KERNELS(NAME, T, V)                                                                                            \
    extern "C" __global__ void layer_norm_forward_##NAME##_##V(const T* x, const T* shift, const T* scale, T* y,       \
                                                               int rows, int tokens, int width) {                      \
        layer_norm_forward<T, V>(x, shift, scale, y, rows, tokens, width);                                             \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_backward_##NAME##_##V(const T* x, const T* scale, const T* dy,               \
                                                                const T* more, T* dx, int rows, int tokens,            \
                                                                int width) {                                           \
        layer_norm_backward<T, V>(x, scale, dy, more, dx, rows, tokens, width);                                        \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_forward_##NAME##_##V(const T* x, const T* weight, T* y, int rows, int part,    \
                                                             int first, int all, int width) {                          \
        rms_norm_forward<T, V>(x, weight, y, rows, part, first, all, width);                                           \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_backward_##NAME##_##V(const T* x, const T* weight, const T* dy,                \
                                                              const T* more, T* dx, int rows, int part, int first,     \
                                                              int all, int width) {                                    \
        rms_norm_backward<T, V>(x, weight, dy, more, dx, rows, part, first, all, width);                               \
    }

KERNELS(bf16, bf16, 8)
KERNELS(bf16, bf16, 2)
KERNELS(bf16, bf16, 1)
KERNELS(f32, float, 4)
KERNELS(f32, float, 2)
KERNELS(f32, float, 1)
