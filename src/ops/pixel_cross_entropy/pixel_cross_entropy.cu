// Cross-entropy over classes at every pixel of a label map: the enlarged maps never reach memory.
//
// maps [classes, h, w]; labels [height, width], those of no class being `classes` or more; weights [classes];
// log_totals [height, width], ln Σ e^value over classes, of pixels without a class unused.
#include "block.cuh"
#include "enlarge.cuh"

// Pixels that a thread takes.
constexpr int PIXELS = 4;

// The loss of one block's pixels, weighted: parts [blocks].
extern "C" __global__ void pixel_cross_entropy_parts(const float* maps, const uint8_t* labels, const float* weights,
                                                     float* log_totals, float* parts, int classes, int h, int w,
                                                     int height, int width) {
    const int first = blockIdx.x * blockDim.x * PIXELS + threadIdx.x;
    float sum = 0;
    for (int n = 0; n < PIXELS; n++) {
        const int pixel = first + n * blockDim.x;
        if (pixel >= height * width) break;
        const int label = labels[pixel];
        if (label >= classes) continue;
        const Between y = between(pixel / width, h, height), x = between(pixel % width, w, width);
        float largest = -INFINITY, total = 0, wanted = 0;
        for (int c = 0; c < classes; c++) {
            const float value = enlarged(maps + size_t(c) * h * w, y, x, w);
            if (c == label) wanted = value;
            const float before = largest;
            largest = fmaxf(largest, value);
            total = total * expf(before - largest) + expf(value - largest);
        }
        const float log_total = largest + logf(total);
        log_totals[pixel] = log_total;
        sum += weights[label] * (log_total - wanted);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// loss [1], the parts' sum times `scale`: one warp.
extern "C" __global__ void pixel_cross_entropy_finish(const float* parts, float* loss, int blocks, float scale) {
    float sum = 0;
    for (int block = threadIdx.x; block < blocks; block += WARP) sum += parts[block];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) loss[0] = sum * scale;
}

// The gradient of the maps from that of the loss, d_loss [1]: a warp a value, which gathers from all pixels that the
// value had a part in.
extern "C" __global__ void pixel_cross_entropy_backward(const float* maps, const uint8_t* labels, const float* weights,
                                                        const float* log_totals, const float* d_loss, float* d_maps,
                                                        int classes, int h, int w, int height, int width, float scale) {
    const int value = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (value >= classes * h * w) return;
    const int of_class = value / (h * w), i = value % (h * w) / w, j = value % w;
    const float* map = maps + size_t(of_class) * h * w;
    const float sum = gather_pixels(i, j, h, w, height, width, [&](int y, int x, Between by, Between bx) {
        const int pixel = y * width + x, label = labels[pixel];
        if (label >= classes) return 0.f;
        const float probability = expf(enlarged(map, by, bx, w) - log_totals[pixel]);
        return weights[label] * (probability - (label == of_class ? 1.f : 0.f));
    });
    if (threadIdx.x % WARP == 0) d_maps[value] = sum * d_loss[0] * scale;
}
