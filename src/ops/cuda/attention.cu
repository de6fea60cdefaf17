// The kernels of attention, for each type and size of heads.
#include "attention.cuh"

#define SIZES int queries, int keys, int heads, float scale, float last_key_bias
// For registers that leave room for so many BLOCKS on a multiprocessor.
#define KERNELS(NAME, T, D, BLOCKS)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                      \
        forward_##NAME(const T* q, const T* k, const T* v, T* out, float* lse, SIZES) {                                \
        forward<T, D>(q, k, v, out, lse, {queries, keys, heads, scale, last_key_bias});                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                      \
        backward_queries_##NAME(const T* q, const T* k, const T* v, const T* d_out, const float* lse,                  \
                                const float* along, T* dq, SIZES) {                                                    \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_queries<T, D, false>(q, k, v, d_out, lse, along, dq, sizes);                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                      \
        backward_keys_##NAME(const T* q, const T* k, const T* v, const T* d_out, const float* lse, const float* along, \
                             T* dk, T* dv, SIZES) {                                                                    \
        const Sizes sizes = {queries, keys, heads, scale, last_key_bias};                                              \
        backward_keys<T, D, false>(q, k, v, d_out, lse, along, dk, dv, sizes);                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        gradient_along_##NAME(const T* out, const T* d_out, float* along, SIZES) {                                     \
        gradient_along<T, D>(out, d_out, along, {queries, keys, heads, scale, last_key_bias});                         \
    }

KERNELS(bf16_32, bf16, 32, 1)
KERNELS(bf16_64, bf16, 64, 1)
KERNELS(bf16_128, bf16, 128, 1)
KERNELS(f32_32, float, 32, 1)
KERNELS(f32_64, float, 64, 1)
KERNELS(f32_128, float, 128, 1)
// To be measured beside bf16_64, which leaves room for two blocks.
KERNELS(bf16_64_bounds3, bf16, 64, 3)
