//! Copies of a model's folder, for a test to change.
#[path = "../folder_copy/mod.rs"]
mod folder_copy;
#[path = "../tensor_edit/mod.rs"]
mod tensor_edit;

pub use folder_copy::copy;
pub use tensor_edit::edit_tensors;
