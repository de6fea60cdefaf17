//! Differentiable operations for CPU and CUDA; nothing above knows which device it is on.
