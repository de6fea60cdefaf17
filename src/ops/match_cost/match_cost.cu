// Focal and dice cost of every map with every mask: a block a map and 32 masks.
#include "block.cuh"
#include "focal.cuh"

constexpr int MASKS = 32;  // bits of a word

// maps [maps, positions]; bit m of word (c, position) of masks [chunks, positions] says whether mask 32c + m holds the
// position; areas [masks]; costs [maps, masks].
extern "C" __global__ void match_cost(const float* maps, const uint32_t* masks, const float* areas, float* costs,
                                      int positions, int count, int raw_logit, float focal_weight, float dice_weight) {
    const float* map = maps + size_t(blockIdx.x) * positions;
    const uint32_t* words = masks + size_t(blockIdx.y) * positions;
    // Focal splits into a sum over the mask and one over everything: outside + (inside - outside)·t.
    float focal[MASKS] = {}, overlap[MASKS] = {}, outsides = 0, total = 0;
    for (int position = threadIdx.x; position < positions; position += blockDim.x) {
        const float logit = map[position], rest = soft(logit), probability = sigmoid(logit);
        const float p = raw_logit ? logit : probability;
        const float inside = ALPHA * (1 - p) * (1 - p) * (fmaxf(-logit, 0.f) + rest);
        const float outside = (1 - ALPHA) * p * p * (fmaxf(logit, 0.f) + rest);
        const uint32_t word = words[position];
        outsides += outside, total += probability;
#pragma unroll
        for (int m = 0; m < MASKS; m++) {
            const float held = word >> m & 1 ? 1.f : 0.f;
            focal[m] += held * (inside - outside);
            overlap[m] += held * probability;
        }
    }
    outsides = block_sum(outsides), total = block_sum(total);
#pragma unroll
    for (int m = 0; m < MASKS; m++) {
        const int mask = blockIdx.y * MASKS + m;
        if (mask >= count) break;
        const float focal_sum = block_sum(focal[m]), overlap_sum = block_sum(overlap[m]);
        if (threadIdx.x == 0) {
            const float dice = 1 - (2 * overlap_sum + 1) / (total + areas[mask] + 1);
            costs[size_t(blockIdx.x) * count + mask] =
                focal_weight * (focal_sum + outsides) / positions + dice_weight * dice;
        }
    }
}
