//! What a person looks at: pictures.
pub mod heatmap;
