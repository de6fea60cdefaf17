//! What passes between the blocks of a denoiser, and into their joint attention.
use crate::autograd::Variable;
use crate::ops::{self, RotaryTable};
use candle_core::{Result as TensorResult, Tensor};
use std::ops::Range;

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
    /// The most of the leading text tokens that can be word tokens.
    pub words: usize,
}

impl Conditioning {
    /// `vector` alone.
    pub fn of(vector: Tensor) -> Self {
        Self { vector, rotary: None, shared: vec![], words: usize::MAX }
    }

    /// Word tokens among the text tokens of `streams`.
    fn words_of(&self, streams: &Streams) -> TensorResult<usize> {
        Ok(streams.text.dims3()?.1.min(self.words))
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
        Self { image: self.image.detach(), text: self.text.detach(), ..*self }
    }

    /// Where image and text tokens are in the joint sequence.
    pub(super) fn tokens(&self) -> TensorResult<[Range<usize>; 2]> {
        let ((_, image, _), (_, text, _)) = (self.image.dims3()?, self.text.dims3()?);
        Ok([0..image, image..image + text])
    }

    /// Image and text tokens, one after the other.
    pub(super) fn joined(&self) -> TensorResult<Variable> {
        ops::cat(&[self.image.clone(), self.text.clone()], 1)
    }

    /// The streams of `joint`, their [`Self::joined`] tokens, plus an update times its gate. An update of the image tokens
    /// alone leaves the text.
    pub(super) fn updated(&self, joint: &Variable, update: &Variable, gate: &Variable) -> TensorResult<Self> {
        let [of_image, of_text] = self.tokens()?;
        let (image, text) = if update.dims3()?.1 == of_image.end {
            (ops::gated_residual(&self.image, update, gate)?, self.text.clone())
        } else {
            let joint = ops::gated_residual(joint, update, gate)?;
            (joint.window(1, of_image)?, joint.window(1, of_text)?)
        };
        Ok(Self { image, text, last_text_count: self.last_text_count })
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

impl Probe {
    /// Of image queries and joint keys of `streams`, not yet turned by where their tokens are.
    pub(super) fn of(
        streams: &Streams,
        conditioning: &Conditioning,
        [queries, keys]: [Variable; 2],
    ) -> TensorResult<Self> {
        Ok(Self {
            queries: conditioning.turned(&queries)?,
            keys: conditioning.turned(&keys)?,
            last_key_count: streams.last_text_count,
            words: conditioning.words_of(streams)?,
        })
    }
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
    /// Of queries, keys and values of `streams`, queries and keys not yet turned by where their tokens are.
    pub(super) fn of(
        streams: &Streams,
        conditioning: &Conditioning,
        heads: usize,
        [queries, keys, values]: [Variable; 3],
    ) -> TensorResult<Self> {
        Ok(Self {
            queries: conditioning.turned(&queries)?,
            keys: conditioning.turned(&keys)?,
            values,
            image_tokens: streams.image.dims3()?.1,
            heads,
            last_key_count: streams.last_text_count,
            words: conditioning.words_of(streams)?,
        })
    }

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
