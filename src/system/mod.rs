//! The machine and its operating system: devices, memory, files that are whole or not there, limits, errors, the terminal.
pub mod allocator;
pub mod device;
pub mod error;
pub mod guard;
pub mod json;
pub mod limits;
pub mod output_folder;
pub mod paths;
pub mod patience;
pub mod plain_name;
pub mod process;
pub mod tensor_file;
pub mod terminal;
pub(crate) mod vectors;
pub mod whole_file;
