//! The data front door: whatever a folder holds, it gives the right samples or one error, and nothing is silently unused.
#[path = "../data_config/mod.rs"]
mod data_config;
mod folders;
mod shards;
mod sources;
mod world;
