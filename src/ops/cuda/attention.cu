// The kernels of attention, for each type and size of heads.
#include "attention.cuh"

#define SIZES int queries, int keys, int heads, float scale, float last_key_bias
#define KERNELS(NAME, T, D)                                                                                            \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        forward_##NAME##_##D(const T* q, const T* k, const T* v, T* out, float* lse, SIZES) {                          \
        forward<T, D>(q, k, v, out, lse, {queries, keys, heads, scale, last_key_bias});                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        gradient_along_##NAME##_##D(const T* out, const T* d_out, float* along, SIZES) {                               \
        gradient_along<T, D>(out, d_out, along, {queries, keys, heads, scale, last_key_bias});                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        backward_queries_##NAME##_##D(const T* q, const T* k, const T* v, const T* d_out, const float* lse,            \
                                      const float* along, T* dq, SIZES) {                                              \
        backward_queries<T, D, false>(q, k, v, d_out, lse, along, dq, {queries, keys, heads, scale, last_key_bias});          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
        backward_keys_##NAME##_##D(const T* q, const T* k, const T* v, const T* d_out, const float* lse,               \
                                   const float* along, T* dk, T* dv, SIZES) {                                          \
        backward_keys<T, D, false>(q, k, v, d_out, lse, along, dk, dv, {queries, keys, heads, scale, last_key_bias});         \
    }

KERNELS(bf16, bf16, 32)
KERNELS(bf16, bf16, 64)
KERNELS(bf16, bf16, 128)
KERNELS(f32, float, 32)
KERNELS(f32, float, 64)
KERNELS(f32, float, 128)
