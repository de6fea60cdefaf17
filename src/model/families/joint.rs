//! What passes between the blocks of a denoiser, and into their joint attention.
use crate::autograd::Variable;
use crate::ops::{self, RotaryTable};
use candle_core::{Result as TensorResult, Tensor};

/// The network's inputs after embedding.
pub struct Embedded {
    /// Image and text tokens, the input of the first block.
    pub streams: Streams,
    /// What every block is told besides its streams.
    pub conditioning: Conditioning,
    /// Rows and columns of image tokens.
    pub grid: (usize, usize),
}

/// What every block is told besides its streams.
#[derive(Clone)]
pub struct Conditioning {
    /// `silu` of the time and pooled text embedding, `[batch, width]`: what every modulation is made from.
    pub vector: Tensor,
    /// Where the image tokens are, or all, by which their queries and keys are turned; none where positions are added to
    /// the tokens themselves.
    pub rotary: Option<RotaryTable>,
    /// Modulations that blocks share, made once: for each kind its parts, `[batch, width]`. None where every block makes its
    /// own.
    pub shared: Vec<Vec<Tensor>>,
}

impl Conditioning {
    /// `vector` alone.
    pub fn of(vector: Tensor) -> Self {
        Self { vector, rotary: None, shared: vec![] }
    }

    /// Queries or keys whose first tokens are the image's, `[batch, tokens, width]`, turned by where they are.
    pub fn turned(&self, x: &Variable) -> TensorResult<Variable> {
        let Some(table) = &self.rotary else { return Ok(x.clone()) };
        ops::rotary(x, &table.first(x.dims3()?.1)?)
    }
}

/// The two token streams between blocks.
#[derive(Clone)]
pub struct Streams {
    /// `[batch, image tokens, width]`
    pub image: Variable,
    /// `[batch, text tokens, width]`
    pub text: Variable,
    /// The multiplicity of the last text token: the zeros in T5's place stay equal through all blocks.
    pub last_text_count: usize,
}

impl Streams {
    /// The same values without gradient.
    pub fn detach(&self) -> Self {
        let Self { image, text, last_text_count } = self;
        Self { image: image.detach(), text: text.detach(), last_text_count: *last_text_count }
    }
}

/// What a block's attention from image to text is computed from, after any q/k norm.
#[derive(Clone)]
pub struct Probe {
    /// Image queries `[batch, image tokens, width]`.
    pub queries: Variable,
    /// Keys of the joint sequence, image first: `[batch, image tokens + text tokens, width]`.
    pub keys: Variable,
    /// The multiplicity of the last key.
    pub last_key_count: usize,
    /// The first so many text tokens are word tokens: those by which the words of a prompt are found.
    pub words: usize,
}

/// What goes into a block's joint attention, image tokens first, after any q/k norm.
pub struct JointInputs {
    /// `[batch, image tokens + text tokens, width]`; in a block that has no use for text queries, `[batch, image
    /// tokens, width]`.
    pub queries: Variable,
    /// `[batch, image tokens + text tokens, width]`
    pub keys: Variable,
    /// As the keys.
    pub values: Variable,
    /// How many of the tokens are image; they come first.
    pub image_tokens: usize,
    /// Attention heads.
    pub heads: usize,
    /// The multiplicity of the last key.
    pub last_key_count: usize,
    /// Word tokens, as in [`Probe`].
    pub words: usize,
}

impl JointInputs {
    /// What image tokens look with and at.
    pub fn probe(&self) -> TensorResult<Probe> {
        let queries = match self.queries.tensor().dim(1)? == self.image_tokens {
            true => self.queries.clone(),
            false => self.queries.window(1, 0..self.image_tokens)?,
        };
        Ok(Probe { queries, keys: self.keys.clone(), last_key_count: self.last_key_count, words: self.words })
    }

    /// What every token takes from the others, as the queries.
    pub fn attend(&self) -> TensorResult<Variable> {
        ops::attention(&self.queries, &self.keys, &self.values, self.heads, self.last_key_count)
    }
}
