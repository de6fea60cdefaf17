//! The training loop: gradients, optimizer, schedule, checkpoints.
pub mod gradients;
pub mod optimizer;
pub mod parameters;
pub mod schedule;
