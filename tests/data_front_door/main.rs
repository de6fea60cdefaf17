//! The data front door: whatever a folder holds, it gives the right samples or one error, and nothing is silently unused.
mod annotations;
mod captions;
#[path = "../data_config/mod.rs"]
mod data_config;
mod folders;
mod program;
mod shards;
mod sources;
mod world;
