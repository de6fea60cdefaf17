// Sums over a block.
#pragma once
#include "common.cuh"

// The sum over a block of at most 1024 threads, in every thread, in a fixed order. All threads must call it.
__device__ inline float block_sum(float value) {
    __shared__ float of_warps[WARP];
    value = warp_sum(value);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    __syncthreads();  // what an earlier call left may still be read
    if (lane == 0) of_warps[warp] = value;
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? of_warps[lane] : 0.f);
}
