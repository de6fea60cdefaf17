// The kernels of attention, for each type and size of heads.
#include "attention.cuh"

#define SIZES int queries, int keys, int heads, float scale, float last_key_bias
#define KERNELS(NAME, T, D, KEYS_BOUNDS)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        forward_##NAME(const T* q, const T* k, const T* v, T* out, float* lse, SIZES) {                                \
        forward<T, D>(q, k, v, out, lse, {queries, keys, heads, scale, last_key_bias});                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        backward_queries_##NAME(const T* q, const T* k, const T* v, const T* d_out, const float* lse,                  \
                                const float* delta, T* dq, SIZES) {                                                    \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_queries<T, D, false>(q, k, v, d_out, lse, delta, dq, sizes);                                          \
    }                                                                                                                  \
    extern "C" __global__ void KEYS_BOUNDS                                                                             \
        backward_keys_##NAME(const T* q, const T* k, const T* v, const T* d_out, const float* lse, const float* delta, \
                             T* dk, T* dv, SIZES) {                                                                    \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_keys<T, D, false>(q, k, v, d_out, lse, delta, dk, dv, sizes);                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        delta_##NAME(const T* out, const T* d_out, float* delta, SIZES) {                                              \
        row_dots<T, D>(out, d_out, delta, {queries, keys, heads, scale, last_key_bias});                               \
    }

// As many registers as the compiler wants.
#define PLAIN __launch_bounds__(THREADS)

KERNELS(bf16_32, bf16, 32, PLAIN)
// Few enough registers for a third block on a multiprocessor: on an H200 at 4x24x4250 tokens the gradients of keys and values
// took 2.91 ms so, and 3.05 ms as two blocks; forward and the gradient of the queries are slower with three.
KERNELS(bf16_64, bf16, 64, __launch_bounds__(THREADS, 3))
KERNELS(bf16_128, bf16, 128, PLAIN)
KERNELS(f32_32, float, 32, PLAIN)
KERNELS(f32_64, float, 64, PLAIN)
KERNELS(f32_128, float, 128, PLAIN)
