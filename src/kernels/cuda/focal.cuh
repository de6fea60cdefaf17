// What the matching cost and the mask loss share: focal loss of a logit (RetinaNet's α = 0.25, γ = 2).
#pragma once

constexpr float ALPHA = 0.25f;

__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// ln(1 + e^-|x|), the part of the cross-entropy that is not linear.
__device__ inline float soft(float x) { return log1pf(expf(-fabsf(x))); }
