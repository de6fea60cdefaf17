// Small maps enlarged bilinearly (half-pixel centres), a pixel at a time, and which pixels a value of theirs has a part in.
#pragma once
#include "common.cuh"

// The two places of the smaller side that `place` of the larger lies between, and the weight of the higher one.
struct Between {
    int low, high;
    float weight;
};

__device__ inline Between between(int place, int from, int to) {
    const float source = fmaxf((place + 0.5f) * (float(from) / to) - 0.5f, 0.f);
    const int low = min(int(source), from - 1);
    return {low, min(low + 1, from - 1), source - low};
}

__device__ inline float enlarged(const float* map, Between y, Between x, int w) {
    const float* low = map + y.low * w;
    const float* high = map + y.high * w;
    const float left = low[x.low] * (1 - y.weight) + high[x.low] * y.weight;
    const float right = low[x.high] * (1 - y.weight) + high[x.high] * y.weight;
    return left * (1 - x.weight) + right * x.weight;
}

// The first place of the larger side that may lie next to `small`, and the one after the last. One more at either end
// costs a weight of 0 and forgives rounding.
__device__ inline int2 neighbours(int small, int from, int to) {
    const float scale = float(to) / from;
    const int first = int(floorf((small - 0.5f) * scale - 0.5f)) - 1, end = int(ceilf((small + 1.5f) * scale - 0.5f)) + 2;
    return {max(first, 0), min(end, to)};
}

__device__ inline float weight_of(int small, Between b) {
    return (b.low == small ? 1 - b.weight : 0.f) + (b.high == small ? b.weight : 0.f);
}

// The sum over the pixels that value (i, j) of a map [h, w] has a part in, of that part times `slope(y, x, by, bx)`: what
// the value's gradient is where `slope` is the pixel's. A warp a value.
template <class Slope>
__device__ inline float gather_pixels(int i, int j, int h, int w, int height, int width, Slope slope) {
    const int2 rows = neighbours(i, h, height), columns = neighbours(j, w, width);
    const int across = columns.y - columns.x;
    float sum = 0;
    for (int n = threadIdx.x % WARP; n < (rows.y - rows.x) * across; n += WARP) {
        const int y = rows.x + n / across, x = columns.x + n % across;
        const Between by = between(y, h, height), bx = between(x, w, width);
        const float weight = weight_of(i, by) * weight_of(j, bx);
        if (weight != 0) sum += weight * slope(y, x, by, bx);
    }
    return warp_sum(sum);
}
