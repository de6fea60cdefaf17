// Elementwise operations, V values a thread: GELU, SwiGLU, the gated residual, and rows that begin as a bias.
#include "common.cuh"

constexpr float SQRT_2_OVER_PI = 0.797884561f;
constexpr float CUBIC = 0.044715f;

// values [V] of x + bias, from `first` on; x [rows, width], bias [width] or none.
template <class T, int V>
__device__ inline void load_biased(float (&values)[V], const T* x, const T* bias, long first, int width) {
    load(values, x + first);
    if (!bias) return;
    float by[V];
    load(by, bias + first % width);
    for (int i = 0; i < V; i++) values[i] += by[i];
}

template <class T, int V> __device__ void gelu_forward(const T* x, const T* bias, T* y, long count, int width) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    float values[V];
    load_biased(values, x, bias, first, width);
    for (float& v : values) v = 0.5f * v * (1 + tanhf(SQRT_2_OVER_PI * (v + CUBIC * v * v * v)));
    store(y + first, values);
}

// d, the gradient of GELU's output, becomes that of its input.
template <class T, int V> __device__ void gelu_backward(const T* x, const T* bias, T* d, long count, int width) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    float values[V], grads[V];
    load_biased(values, x, bias, first, width), load(grads, d + first);
    for (int i = 0; i < V; i++) {
        const float v = values[i], t = tanhf(SQRT_2_OVER_PI * (v + CUBIC * v * v * v));
        const float inner = SQRT_2_OVER_PI * (1 + 3 * CUBIC * v * v);
        grads[i] *= 0.5f * (1 + t) + 0.5f * v * (1 - t * t) * inner;
    }
    store(d + first, grads);
}

// The place in x [rows, 2·width] of the first half's value for value `place` of [rows, width].
__device__ inline long first_half(long place, int width) { return place + place / width * width; }

// y [rows, width] = silu(a)·b, a and b being the halves of every row of x.
template <class T, int V> __device__ void swiglu_forward(const T* x, T* y, long count, int width) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    const T* half = x + first_half(first, width);
    float a[V], b[V];
    load(a, half), load(b, half + width);
    for (int i = 0; i < V; i++) a[i] *= b[i] / (1 + expf(-a[i]));
    store(y + first, a);
}

// The gradient dx of x, from that of y, d.
template <class T, int V> __device__ void swiglu_backward(const T* x, const T* d, T* dx, long count, int width) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    const long half = first_half(first, width);
    float a[V], b[V], grads[V];
    load(a, x + half), load(b, x + half + width), load(grads, d + first);
    for (int i = 0; i < V; i++) {
        const float share = 1 / (1 + expf(-a[i])), of_a = b[i] * share * (1 + a[i] * (1 - share));
        b[i] = grads[i] * a[i] * share;
        a[i] = grads[i] * of_a;
    }
    store(dx + half, a), store(dx + half + width, b);
}

// The value of `gate` [batch, width] for value `place` of [batch, tokens, width].
__device__ inline long gate_place(long place, int tokens, int width) {
    return place / (long(tokens) * width) * width + place % width;
}

// out = x + gate·(y + bias); without x and bias, gate·y: the gradient of y.
template <class T, int V>
__device__ void gated(const T* x, const T* y, const T* bias, const T* gate, T* out, long count, int tokens, int width) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    float sum[V] = {}, values[V], by[V];
    if (x) load(sum, x + first);
    load_biased(values, y, bias, first, width), load(by, gate + gate_place(first, tokens, width));
    for (int i = 0; i < V; i++) sum[i] += by[i] * values[i];
    store(out + first, sum);
}

// Rows `start` to `start + tokens - 1` of every batch entry of y [batch, all, width] become bias [width].
template <class T, int V>
__device__ void fill_rows(T* y, const T* bias, long count, int width, int tokens, int start, int all) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    float values[V];
    load(values, bias + first % width);
    const long row = first / width;
    store(y + (row / tokens * all + start + row % tokens) * width + first % width, values);
}

#define KERNELS(NAME, T, V)                                                                                            \
    extern "C" __global__ void gelu_forward_##NAME##_##V(const T* x, const T* bias, T* y, long count, int width) {     \
        gelu_forward<T, V>(x, bias, y, count, width);                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void gelu_backward_##NAME##_##V(const T* x, const T* bias, T* d, long count, int width) {    \
        gelu_backward<T, V>(x, bias, d, count, width);                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void swiglu_forward_##NAME##_##V(const T* x, T* y, long count, int width) {                  \
        swiglu_forward<T, V>(x, y, count, width);                                                                      \
    }                                                                                                                  \
    extern "C" __global__ void swiglu_backward_##NAME##_##V(const T* x, const T* d, T* dx, long count, int width) {    \
        swiglu_backward<T, V>(x, d, dx, count, width);                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void gated_##NAME##_##V(const T* x, const T* y, const T* bias, const T* gate, T* out,        \
                                                  long count, int tokens, int width) {                                 \
        gated<T, V>(x, y, bias, gate, out, count, tokens, width);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void fill_rows_##NAME##_##V(T* y, const T* bias, long count, int width, int tokens,          \
                                                      int start, int all) {                                            \
        fill_rows<T, V>(y, bias, count, width, tokens, start, all);                                                    \
    }

KERNELS(bf16, bf16, 8)
KERNELS(bf16, bf16, 1)
KERNELS(f32, float, 4)
KERNELS(f32, float, 1)
