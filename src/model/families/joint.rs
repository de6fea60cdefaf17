//! What passes between the blocks of a denoiser, and into their joint attention.
use crate::ops;
use candle_core::{Result as TensorResult, Tensor};

/// The network's inputs after embedding.
pub struct Embedded {
    pub streams: Streams,
    /// `silu` of the time and pooled text embedding, `[batch, width]`: what every modulation is made from.
    pub conditioning: Tensor,
    /// Rows and columns of image tokens.
    pub grid: (usize, usize),
}

/// The two token streams between blocks.
#[derive(Clone)]
pub struct Streams {
    /// `[batch, image tokens, width]`
    pub image: Tensor,
    /// `[batch, text tokens, width]`
    pub text: Tensor,
    /// The last text token stands for so many equal ones: the zeros in T5's place stay equal through all blocks.
    pub last_text_count: usize,
}

/// What a block's joint attention is computed from, after any q/k norm.
pub struct Probe {
    /// Image queries `[batch, image tokens, width]`.
    pub queries: Tensor,
    /// Keys of the joint sequence, image first: `[batch, image tokens + text tokens, width]`.
    pub keys: Tensor,
    /// The last key stands for so many equal ones.
    pub last_key_count: usize,
    /// So many text tokens, the first, are those that words are found by.
    pub words: usize,
}

/// What goes into a block's joint attention, image tokens first, after any q/k norm.
pub struct JointInputs {
    /// `[batch, image tokens, width]`
    pub image_queries: Tensor,
    /// `[batch, text tokens, width]`; the last block has no use for them.
    pub text_queries: Option<Tensor>,
    /// `[batch, image tokens + text tokens, width]`
    pub keys: Tensor,
    /// As the keys.
    pub values: Tensor,
    pub heads: usize,
    /// The last key stands for so many equal ones.
    pub last_key_count: usize,
    /// As in [`Probe`].
    pub words: usize,
}

impl JointInputs {
    /// Of these, what image tokens look with and at.
    pub fn probe(&self) -> Probe {
        let Self { image_queries, keys, last_key_count, words, .. } = self;
        Probe { queries: image_queries.clone(), keys: keys.clone(), last_key_count: *last_key_count, words: *words }
    }

    /// What every token takes from the others: `[batch, image tokens + text tokens, width]`, in the last block
    /// `[batch, image tokens, width]`.
    pub fn attend(&self) -> TensorResult<Tensor> {
        let queries = match &self.text_queries {
            Some(text) => Tensor::cat(&[&self.image_queries, text], 1)?,
            None => self.image_queries.clone(),
        };
        ops::attention(&queries, &self.keys, &self.values, self.heads, self.last_key_count)
    }
}
