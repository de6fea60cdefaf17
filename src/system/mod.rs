//! The machine and its operating system: memory, files that are whole or not there, limits, errors, the terminal, log and progress.
pub mod allocator;
pub mod error;
pub(crate) mod file_kind;
pub(crate) mod guard;
pub(crate) mod interrupt;
pub mod json;
pub mod launch;
pub(crate) mod limits;
pub(crate) mod log;
pub mod memory;
pub mod output_folder;
pub(crate) mod paths;
pub mod patience;
pub(crate) mod plain_name;
pub(crate) mod platform;
pub mod printable;
pub mod process;
pub(crate) mod progress;
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(crate) mod siblings;
pub mod tensor_file;
pub mod terminal;
pub(crate) mod units;
pub(crate) mod utf8;
pub(crate) mod vectors;
pub mod whole_file;
