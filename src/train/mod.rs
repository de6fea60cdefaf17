//! The training job: its loop, gradients, optimizer and schedule; its folder and checkpoints.
mod accumulated;
mod check_files;
pub mod checkpoint;
pub mod collective;
mod components;
mod effect;
mod evaluation;
mod first_samples;
pub mod gradient_buffer;
pub mod gradients;
mod initial;
pub mod inputs;
pub mod memory;
pub mod optimizers;
mod outcome;
pub mod parameters;
mod run;
pub mod run_folder;
mod run_log;
pub mod schedule;
mod setup;
mod source;
pub mod trained;
mod trainer;
mod validation;

pub use components::Components;
pub use run::{run, run_with};
