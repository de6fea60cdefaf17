// Focal and dice loss of small maps against large masks. A map is enlarged bilinearly (half-pixel centres) pixel by
// pixel where it is needed; neither the enlarged map nor its gradient reaches memory.
//
// maps [pairs, h, w]; targets [pairs, height, ceil(width / 32)], a bit a pixel.
#include "block.cuh"
#include "enlarge.cuh"
#include "focal.cuh"

// Rows of the enlarged map that a block of `sums` takes.
constexpr int ROWS = 8;

struct Sizes {
    int h, w, height, width;
};

__device__ inline float target_at(const uint32_t* targets, int pair, int y, int x, Sizes s) {
    const int words = (s.width + 31) / 32;
    return targets[(size_t(pair) * s.height + y) * words + x / 32] >> x % 32 & 1;
}

// Cross-entropy of a logit with its target, and focal's 1 - p_t and α.
struct Focal {
    float cross_entropy, wrong, alpha, probability;
};

__device__ inline Focal focal_of(float logit, float target, bool raw_logit) {
    const float probability = sigmoid(logit), p = raw_logit ? logit : probability;
    return {fmaxf(logit, 0.f) - logit * target + soft(logit), 1 - (p * target + (1 - p) * (1 - target)),
            ALPHA * target + (1 - ALPHA) * (1 - target), probability};
}

// Sums over ROWS rows of a pair: parts [pairs, blocks, 4] of focal, overlap, probability, target.
extern "C" __global__ void mask_loss_sums(const float* maps, const uint32_t* targets, float* parts, int h, int w,
                                          int height, int width, int raw_logit) {
    const Sizes s = {h, w, height, width};
    const int pair = blockIdx.y, first = blockIdx.x * ROWS, rows = min(ROWS, height - first);
    const float* map = maps + size_t(pair) * h * w;
    float sums[4] = {};
    for (int i = threadIdx.x; i < rows * width; i += blockDim.x) {
        const int y = first + i / width, x = i % width;
        const float target = target_at(targets, pair, y, x, s);
        const Focal f = focal_of(enlarged(map, between(y, h, height), between(x, w, width), w), target, raw_logit);
        sums[0] += f.alpha * f.wrong * f.wrong * f.cross_entropy;
        sums[1] += f.probability * target;
        sums[2] += f.probability;
        sums[3] += target;
    }
    for (int i = 0; i < 4; i++) {
        const float sum = block_sum(sums[i]);
        if (threadIdx.x == 0) parts[(size_t(pair) * gridDim.x + blockIdx.x) * 4 + i] = sum;
    }
}

// sums [pairs, 4] and losses [2, pairs] (focal, dice) from the parts: a warp a pair.
extern "C" __global__ void mask_loss_finish(const float* parts, float* sums, float* losses, int blocks, float pixels) {
    const int pair = blockIdx.x, pairs = gridDim.x;
    float totals[4];
    for (int i = 0; i < 4; i++) {
        float sum = 0;
        for (int block = threadIdx.x; block < blocks; block += WARP) sum += parts[(size_t(pair) * blocks + block) * 4 + i];
        totals[i] = warp_sum(sum);
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < 4; i++) sums[pair * 4 + i] = totals[i];
        losses[pair] = totals[0] / pixels;
        losses[pairs + pair] = 1 - (2 * totals[1] + 1) / (totals[2] + totals[3] + 1);
    }
}

// The gradient of the maps from that of the losses, d_losses [2, pairs]: a warp a value, which gathers from all pixels
// that the value had a part in.
extern "C" __global__ void mask_loss_backward(const float* maps, const uint32_t* targets, const float* sums,
                                              const float* d_losses, float* d_maps, int pairs, int h, int w,
                                              int height, int width, int raw_logit) {
    const Sizes s = {h, w, height, width};
    const long value = long(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (value >= long(pairs) * h * w) return;
    const int pair = value / (h * w), i = value % (h * w) / w, j = value % w;
    const float* map = maps + size_t(pair) * h * w;
    const float overlap = sums[pair * 4 + 1], below = sums[pair * 4 + 2] + sums[pair * 4 + 3] + 1;
    const float d_focal = d_losses[pair] / (float(height) * width), d_dice = d_losses[pairs + pair];
    // d dice / dp = -2t/below + above/below²
    const float inside = -2 / below * d_dice, everywhere = (2 * overlap + 1) / (below * below) * d_dice;
    const float sum = gather_pixels(i, j, h, w, height, width, [&](int y, int x, Between by, Between bx) {
        const float target = target_at(targets, pair, y, x, s);
        const Focal f = focal_of(enlarged(map, by, bx, w), target, raw_logit);
        const float slope = f.probability * (1 - f.probability);
        const float d_right = (2 * target - 1) * (raw_logit ? 1.f : slope);
        const float d_loss = f.wrong * (f.wrong * (f.probability - target) - 2 * d_right * f.cross_entropy);
        return d_focal * f.alpha * d_loss + slope * (inside * target + everywhere);
    });
    if (threadIdx.x % WARP == 0) d_maps[value] = sum;
}
