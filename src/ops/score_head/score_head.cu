// The score head: convolutions 3×3, 1→64→64→1 with ReLU between, on every map alone, added to the map.
//
// The second layer is nearly all of the work, and runs on tensor cores: for each of the nine taps a product of pixels
// [32, 64 channels] with weights [64, 64]. One bf16 is not exact enough for f32 maps, so each factor is split into two,
// value = high + low, and of the four products the three that matter are summed: an error of about 2⁻¹⁷. Where the maps
// come from bf16 one product of the high halves is as good. The first layer's channels of a tile live in shared memory; the second's never leave registers, as the last layer is linear:
// each pixel gives its nine taps' share of its neighbours, and `score_head_gather` sums them.
#include "rows.cuh"

constexpr int CHANNELS = 64;
constexpr int TAPS = 9;
constexpr int STRIDE = TILE_STRIDE<bf16, CHANNELS>;
// Pixels of a block: a row of 32 for each of eight warps, and a border of one around them.
constexpr int ROWS = 8, COLUMNS = 32, SETS = COLUMNS / 16;
constexpr int BORDERED_ROWS = ROWS + 2, BORDERED_COLUMNS = COLUMNS + 2;
constexpr int BORDERED = BORDERED_ROWS * BORDERED_COLUMNS;
constexpr int THREADS = ROWS * WARP;
// Where parameters begin in the flat vector, in the order of torch's Sequential.
constexpr int BIAS_1 = 9 * CHANNELS, WEIGHT_2 = BIAS_1 + CHANNELS, BIAS_2 = WEIGHT_2 + 9 * CHANNELS * CHANNELS,
              WEIGHT_3 = BIAS_2 + CHANNELS, BIAS_3 = WEIGHT_3 + 9 * CHANNELS;

struct Split {
    bf16 high, low;
};

__device__ inline Split split(float value) {
    const bf16 high = from_float<bf16>(value);
    return {high, from_float<bf16>(value - to_float(high))};
}

// The second layer's weights [out, in, 3, 3] as [9 taps, 2 (high, low), out, in].
extern "C" __global__ void score_head_prepare(const float* parameters, bf16* weights) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= TAPS * CHANNELS * CHANNELS) return;
    const int tap = i / (CHANNELS * CHANNELS), pair = i % (CHANNELS * CHANNELS);
    const Split value = split(parameters[WEIGHT_2 + pair * TAPS + tap]);
    weights[(2 * tap) * CHANNELS * CHANNELS + pair] = value.high;
    weights[(2 * tap + 1) * CHANNELS * CHANNELS + pair] = value.low;
}

// Sixteen pixels and all their channels, as a left factor.
__device__ inline void load_pixels(Rows<bf16, CHANNELS>& out, const bf16* pixels) {
    const int lane = threadIdx.x % WARP;
    const bf16* corner = pixels + (lane % 8 + lane / 8 % 2 * 8) * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < CHANNELS / 16; k++) load_matrices(out.parts[k], corner + 16 * k);
}

// HALVES: of each factor both, or the high one alone.
template <int HALVES> struct Shared {
    bf16 hidden[HALVES][BORDERED * STRIDE];       // the first layer's channels of every pixel: high, low
    bf16 weights[2][HALVES][CHANNELS * STRIDE];   // two taps' weights: high, low
    float last[TAPS * CHANNELS];                  // the last layer's, [tap, channel]
    float map[(BORDERED_ROWS + 2) * (BORDERED_COLUMNS + 2)];
};

// The tile of the map with a border of two, zeros outside; then the first layer with a border of one, zeros outside.
template <int HALVES>
__device__ inline void first_layer(Shared<HALVES>& shared, const float* map, const float* parameters, int top, int left,
                                   int h, int w) {
    constexpr int WIDE = BORDERED_COLUMNS + 2;
    for (int i = threadIdx.x; i < (BORDERED_ROWS + 2) * WIDE; i += THREADS) {
        const int y = top - 2 + i / WIDE, x = left - 2 + i % WIDE;
        shared.map[i] = y >= 0 && y < h && x >= 0 && x < w ? map[y * w + x] : 0.f;
    }
    __syncthreads();
    const int channel = threadIdx.x % CHANNELS;
    float weight[TAPS];
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) weight[tap] = parameters[channel * TAPS + tap];
    const float bias = parameters[BIAS_1 + channel];
    for (int pixel = threadIdx.x / CHANNELS; pixel < BORDERED; pixel += THREADS / CHANNELS) {
        const int row = pixel / BORDERED_COLUMNS, column = pixel % BORDERED_COLUMNS;
        const int y = top - 1 + row, x = left - 1 + column;
        float sum = bias;
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) sum += weight[tap] * shared.map[(row + tap / 3) * WIDE + column + tap % 3];
        const bool outside = y < 0 || y >= h || x < 0 || x >= w;
        const Split value = split(outside ? 0.f : fmaxf(sum, 0.f));
        shared.hidden[0][pixel * STRIDE + channel] = value.high;
        if (HALVES == 2) shared.hidden[HALVES - 1][pixel * STRIDE + channel] = value.low;
    }
}

template <int HALVES>
__device__ inline void score_head_shares(const float* maps, const float* parameters, const bf16* weights, float* shares,
                                         int h, int w) {
    extern __shared__ uint4 memory[];
    Shared<HALVES>& shared = *reinterpret_cast<Shared<HALVES>*>(memory);
    const int top = blockIdx.z * ROWS, left = blockIdx.y * COLUMNS;
    const auto copy = [&](int stage, int tap) {
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            const bf16* from = weights + (2 * tap + half) * CHANNELS * CHANNELS;
            copy_tile<bf16, CHANNELS, CHANNELS, THREADS>(shared.weights[stage][half], from, CHANNELS, 0, CHANNELS);
        }
    };
    copy(0, 0);
    commit_copies();
    for (int i = threadIdx.x; i < TAPS * CHANNELS; i += THREADS) {
        shared.last[i] = parameters[WEIGHT_3 + i % CHANNELS * TAPS + i / CHANNELS];
    }
    first_layer(shared, maps + size_t(blockIdx.x) * h * w, parameters, top, left, h, w);

    const int warp = threadIdx.x / WARP;
    float sums[SETS][CHANNELS / 8][4] = {};
    // Unrolled it would keep addresses of all taps in registers.
#pragma unroll 1
    for (int tap = 0, stage = 0; tap < TAPS; tap++, stage ^= 1) {
        if (tap + 1 < TAPS) copy(stage ^ 1, tap + 1);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            Rows<bf16, CHANNELS> pixels[SETS];
#pragma unroll
            for (int m = 0; m < SETS; m++) {
                const int pixel = (warp + tap / 3) * BORDERED_COLUMNS + 16 * m + tap % 3;
                load_pixels(pixels[m], shared.hidden[half] + pixel * STRIDE);
            }
            // high · high, high · low, low · high
#pragma unroll
            for (int other = 0; other < HALVES - half; other++) {
                add_product_transposed<SETS, CHANNELS, CHANNELS>(sums, pixels, shared.weights[stage][other]);
            }
        }
        __syncthreads();
    }

    const float* bias = parameters + BIAS_2;
    const int y = top + warp;
#pragma unroll
    for (int m = 0; m < SETS; m++) {
#pragma unroll
        for (int j = 0; j < CHANNELS / 8; j++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                sums[m][j][part] = fmaxf(sums[m][j][part] + bias[8 * j + lane_column() + part % 2], 0.f);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int x = left + 16 * m + 8 * half + lane_row();
            // Unrolled, this took twice the registers.
#pragma unroll 1
            for (int tap = 0; tap < TAPS; tap++) {
                float share = 0;
#pragma unroll
                for (int j = 0; j < CHANNELS / 8; j++) {
                    const float* last = shared.last + tap * CHANNELS + 8 * j + lane_column();
                    share += sums[m][j][2 * half] * last[0] + sums[m][j][2 * half + 1] * last[1];
                }
                share += __shfl_xor_sync(0xffffffffu, share, 1);
                share += __shfl_xor_sync(0xffffffffu, share, 2);
                if (lane_column() == 0 && y < h && x < w) {
                    shares[((size_t(blockIdx.x) * TAPS + tap) * h + y) * w + x] = share;
                }
            }
        }
    }
}

// shares [maps, 9, h, w]: what each pixel of the second layer gives the output through each tap of the last.
extern "C" __global__ void __launch_bounds__(THREADS)
    score_head_shares_f32(const float* maps, const float* parameters, const bf16* weights, float* shares, int h, int w) {
    score_head_shares<2>(maps, parameters, weights, shares, h, w);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    score_head_shares_bf16(const float* maps, const float* parameters, const bf16* weights, float* shares, int h, int w) {
    score_head_shares<1>(maps, parameters, weights, shares, h, w);
}

// out [maps, h, w] = maps + bias + the shares of each pixel's neighbours.
extern "C" __global__ void score_head_gather(const float* maps, const float* shares, const float* parameters,
                                             float* out, long count, int h, int w) {
    const long i = long(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int y = i % (h * w) / w, x = i % w;
    const float* of_map = shares + i / (h * w) * TAPS * h * w;
    float sum = maps[i] + parameters[BIAS_3];
    for (int tap = 0; tap < TAPS; tap++) {
        const int from_y = y + tap / 3 - 1, from_x = x + tap % 3 - 1;
        if (from_y >= 0 && from_y < h && from_x >= 0 && from_x < w) {
            sum += of_map[(size_t(tap) * h + from_y) * w + from_x];
        }
    }
    out[i] = sum;
}
