// AdamW (torch.optim.AdamW) on one parameter, in one pass over its values and moments.
#include "common.cuh"

// The gradient is first scaled by `clip`; `rate` is the learning rate over the first moment's bias correction,
// `spread` the root of the second's; `keep` is what weight decay leaves.
extern "C" __global__ void adamw(float* values, const float* grads, float* first, float* second, long count, float clip,
                                 float beta1, float beta2, float rate, float spread, float eps, float keep) {
    const long i = long(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float grad = grads[i] * clip;
    const float m = first[i] * beta1 + grad * (1 - beta1), v = second[i] * beta2 + grad * grad * (1 - beta2);
    first[i] = m, second[i] = v;
    values[i] = values[i] * keep - m / (sqrtf(v) / spread + eps) * rate;
}
