// Rotary positions, a pair of features a thread. Several pairs a thread were not tried: it reads and writes everything once.
#include "common.cuh"

// y [batch, tokens, width] from x: pairs of the first `turned` tokens turned by their angles, or back; cosines
// and sines are [turned, pairs]; x and y may be the same memory.
template <class T>
__device__ void rotary(const T* x, const float* cosines, const float* sines, T* y, long count, int width, int tokens,
                       int turned, int pairs, int forward) {
    const long pair = first_of_thread<1>(count);
    if (pair < 0) return;
    const int token = 2 * pair / width % tokens;
    float even = to_float(x[2 * pair]), odd = to_float(x[2 * pair + 1]);
    if (token < turned) {
        const long place = long(token) * pairs + pair % (width / 2) % pairs;
        const float cosine = cosines[place], sine = (forward ? 1 : -1) * sines[place], before = even;
        even = before * cosine - odd * sine;
        odd = odd * cosine + before * sine;
    }
    y[2 * pair] = from_float<T>(even), y[2 * pair + 1] = from_float<T>(odd);
}

#define KERNELS(NAME, T)                                                                                               \
    extern "C" __global__ void rotary_##NAME(const T* x, const float* cosines, const float* sines, T* y, long count,   \
                                             int width, int tokens, int turned, int pairs, int forward) {            \
        rotary<T>(x, cosines, sines, y, count, width, tokens, turned, pairs, forward);                               \
    }

KERNELS(bf16, bf16)
KERNELS(f32, float)
