// The kernels of attention, for each type and size of heads.
#include "attention.cuh"

#define SIZES int queries, int keys, int heads, float scale, float last_key_bias
#define KERNELS(NAME, T, D, BOUNDS)                                                                                    \
    extern "C" __global__ void BOUNDS                                                                                  \
        forward_##NAME(const T* q, const T* k, const T* v, T* out, float* lse, SIZES) {                                \
        forward<T, D>(q, k, v, out, lse, {queries, keys, heads, scale, last_key_bias});                                \
    }                                                                                                                  \
    extern "C" __global__ void BOUNDS                                                                                  \
        backward_queries_##NAME(const T* q, const T* k, const T* v, const T* d_out, const float* lse,                  \
                                const float* along, T* dq, SIZES) {                                                    \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_queries<T, D, false>(q, k, v, d_out, lse, along, dq, sizes);                                          \
    }                                                                                                                  \
    extern "C" __global__ void BOUNDS                                                                                  \
        backward_keys_##NAME(const T* q, const T* k, const T* v, const T* d_out, const float* lse, const float* along, \
                             T* dk, T* dv, SIZES) {                                                                    \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_keys<T, D, false>(q, k, v, d_out, lse, along, dk, dv, sizes);                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        gradient_along_##NAME(const T* out, const T* d_out, float* along, SIZES) {                                     \
        gradient_along<T, D>(out, d_out, along, {queries, keys, heads, scale, last_key_bias});                         \
    }

// As many registers as the compiler wants.
#define PLAIN __launch_bounds__(THREADS)

KERNELS(bf16_32, bf16, 32, PLAIN)
KERNELS(bf16_64, bf16, 64, PLAIN)
KERNELS(bf16_128, bf16, 128, PLAIN)
KERNELS(f32_32, float, 32, PLAIN)
KERNELS(f32_64, float, 64, PLAIN)
KERNELS(f32_128, float, 128, PLAIN)
// Few enough for a third block on a multiprocessor, where those of bf16_64 leave room for two; to be measured beside them.
KERNELS(bf16_64_bounds3, bf16, 64, __launch_bounds__(THREADS, 3))
