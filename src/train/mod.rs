//! The training job: its loop, gradients, optimizer and schedule; its folder and checkpoints.
mod accumulated;
mod check_files;
pub mod checkpoint;
mod effect;
mod evaluation;
pub mod gradients;
mod initial;
pub mod inputs;
pub mod memory;
pub mod optimizer;
mod outcome;
pub mod parameters;
mod run;
pub mod run_folder;
mod run_log;
pub mod schedule;
mod source;
pub mod trained;
mod validation;

pub use run::run;
