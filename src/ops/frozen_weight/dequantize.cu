// Quantised weights written out as f32 or bf16: ggml's blocks, 8 values a thread, and 8-bit numbers with a scale a row. The
// blocks are those of candle's k_quants.rs, the values what its to_float makes of them.
#include "common.cuh"

constexpr int VALUES = 8;

// An f16 that is neither infinite nor NaN, from its bits.
__device__ inline float from_half(const uint8_t* bytes) {
    const uint32_t bits = bytes[0] | uint32_t(bytes[1]) << 8;
    return __uint_as_float((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112
}

// Blocks of 32: f16 d, then 32 values of 8 bits.
struct Q8_0 {
    static constexpr int COUNT = 32, BYTES = 34;

    static __device__ inline void values(float (&out)[VALUES], const uint8_t* block, int first) {
        const float d = from_half(block);
        for (int i = 0; i < VALUES; i++) out[i] = float(int8_t(block[2 + first + i])) * d;
    }
};

// Blocks of 256 values of 6 bits: the lower 4 bits, the upper 2 bits, scales of 16 values each, f16 d.
struct Q6K {
    static constexpr int COUNT = 256, BYTES = 210;

    static __device__ inline void values(float (&out)[VALUES], const uint8_t* block, int first) {
        const uint8_t *lower = block, *upper = block + 128, *scales = block + 192;
        const int half = first / 128, quarter = first % 128 / 32, place = first % 32;
        const float d = from_half(block + 208) * float(int8_t(scales[8 * half + 2 * quarter + place / 16]));
        for (int i = 0; i < VALUES; i++) {
            const int low = lower[64 * half + 32 * (quarter & 1) + place + i] >> (quarter < 2 ? 0 : 4) & 15;
            const int high = upper[32 * half + place + i] >> 2 * quarter & 3;
            out[i] = d * float((low | high << 4) - 32);
        }
    }
};

// Blocks of 256 values of 4 bits: f16 d and dmin, scales and minima of 32 values each in 6 bits, the values.
struct Q4K {
    static constexpr int COUNT = 256, BYTES = 144;

    static __device__ inline void values(float (&out)[VALUES], const uint8_t* block, int first) {
        const uint8_t *scales = block + 4, *values = block + 16;
        const int group = first / 32, place = first % 32;
        int scale, minimum;
        if (group < 4) {
            scale = scales[group] & 63, minimum = scales[group + 4] & 63;
        } else {
            scale = (scales[group + 4] & 15) | scales[group - 4] >> 6 << 4;
            minimum = scales[group + 4] >> 4 | scales[group] >> 6 << 4;
        }
        const float d = from_half(block) * float(scale), m = from_half(block + 2) * float(minimum);
        for (int i = 0; i < VALUES; i++) {
            out[i] = d * float(values[32 * (group / 2) + place + i] >> 4 * (group & 1) & 15) - m;
        }
    }
};

template <class Block, class T> __device__ inline void dequantize(T* out, const uint8_t* blocks, long count) {
    const long first = first_of_thread<VALUES>(count);
    if (first < 0) return;
    float values[VALUES];
    Block::values(values, blocks + first / Block::COUNT * Block::BYTES, int(first % Block::COUNT));
    // f32 in two accesses: one is of 16 bytes.
    constexpr int ONE = 16 / sizeof(T);
    for (int i = 0; i < VALUES; i += ONE) {
        float part[ONE];
        for (int j = 0; j < ONE; j++) part[j] = values[i + j];
        store(out + first + i, part);
    }
}

template <class T>
__device__ inline void dequantize_f8(T* out, const uint8_t* values, const float* scales, long count, int inner) {
    const long i = first_of_thread<1>(count);
    if (i < 0) return;
    const uint32_t bits = values[i];
    const float moved = __uint_as_float((bits & 0x80) << 24 | (bits & 0x7f) << 20);
    out[i] = from_float<T>(moved * 1.329227995784916e36f * scales[i / inner]);  // 2^120
}

#define KERNELS(NAME, T)                                                                                               \
    extern "C" __global__ void dequantize_q8_0_##NAME(T* out, const uint8_t* blocks, long count) {                     \
        dequantize<Q8_0, T>(out, blocks, count);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void dequantize_q6k_##NAME(T* out, const uint8_t* blocks, long count) {                      \
        dequantize<Q6K, T>(out, blocks, count);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void dequantize_q4_k_##NAME(T* out, const uint8_t* blocks, long count) {                     \
        dequantize<Q4K, T>(out, blocks, count);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void dequantize_f8_##NAME(T* out, const uint8_t* values, const float* scales, long count,    \
                                                    int inner) {                                                       \
        dequantize_f8<T>(out, values, scales, count, inner);                                                           \
    }

KERNELS(bf16, bf16)
KERNELS(f32, float)
