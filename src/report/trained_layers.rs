//! The table of trained layers in the report.

/// Trained layers of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedLayers {
    /// The kind of adapter, and the name of the layer within its block.
    pub kind: String,
    /// Number of blocks with such layers, of all blocks; `None` for layers outside blocks.
    pub blocks: Option<(usize, usize)>,
    /// Rank of the adapters; absent where no adapter is trained.
    pub rank: Option<usize>,
    /// Number of trained parameters.
    pub parameters: usize,
}
