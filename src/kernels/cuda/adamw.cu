// The norm of all gradients, and AdamW (torch.optim.AdamW) on all parameters, in a launch each: a block has a piece of one
// parameter, a table says where it lies.
#include "block.cuh"

struct Values {
    const float* values;
    long count;
};

// squares[piece] = Σ values².
extern "C" __global__ void sums_of_squares(const Values* pieces, float* squares) {
    const Values piece = pieces[blockIdx.x];
    float sum = 0;
    for (long i = threadIdx.x; i < piece.count; i += blockDim.x) sum += piece.values[i] * piece.values[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// A piece with its gradient and moments. `rate` is the learning rate over the first moment's bias correction, `spread` the
// root of the second's; `keep` is what weight decay leaves.
struct Update {
    float* values;
    const float* grads;
    float *first, *second;
    int count;
    float rate, spread, keep;
};

extern "C" __global__ void adamw(const Update* pieces, float beta1, float beta2, float eps) {
    const Update of = pieces[blockIdx.x];
    for (int i = threadIdx.x; i < of.count; i += blockDim.x) {
        const float grad = of.grads[i];
        const float m = of.first[i] * beta1 + grad * (1 - beta1), v = of.second[i] * beta2 + grad * grad * (1 - beta2);
        of.first[i] = m, of.second[i] = v;
        of.values[i] = of.values[i] * of.keep - m / (sqrtf(v) / of.spread + eps) * of.rate;
    }
}
