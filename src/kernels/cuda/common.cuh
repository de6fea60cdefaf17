// f32 and bf16 values, both f32 in registers, and sums over a warp.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

constexpr int WARP = 32;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(bf16 value) { return __bfloat162float(value); }

template <class T> __device__ T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline bf16 from_float<bf16>(float value) { return __float2bfloat16(value); }

// N neighbouring values, N·sizeof(T) at most 16 bytes and aligned to that: one access to memory.
template <int N, class T> struct alignas(N * sizeof(T)) Pack {
    T values[N];
};

template <int N, class T> __device__ inline void load(float (&out)[N], const T* from) {
    const Pack<N, T> pack = *reinterpret_cast<const Pack<N, T>*>(from);
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = to_float(pack.values[i]);
}

template <int N, class T> __device__ inline void store(T* to, const float (&values)[N]) {
    Pack<N, T> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.values[i] = from_float<T>(values[i]);
    *reinterpret_cast<Pack<N, T>*>(to) = pack;
}

// The first of this thread's V values of `count`; -1 beyond the last.
template <int V> __device__ inline long first_of_thread(long count) {
    const long first = (long(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    return first < count ? first : -1;
}

// The sum over a warp, in every lane, in an order that does not change from run to run.
__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}
