//! Focal and dice loss in candle's operations.
use super::{ALPHA, MaskLoss};
use crate::ops::backend::Reference;
use crate::ops::enlarge::enlarge;
use candle_core::{Result, Tensor};

impl Reference for MaskLoss {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (height, width) = self.size;
        let pairs = self.targets.len();
        let logits = enlarge(&inputs[0], height, width)?.reshape((pairs, height * width))?;
        let mut wanted = vec![0f32; pairs * height * width];
        for (r, row) in wanted.chunks_exact_mut(width).enumerate() {
            self.targets[r / height].row(r % height, row);
        }
        let t = Tensor::from_vec(wanted, (pairs, height * width), logits.device())?;
        let cross_entropy = ((logits.relu()? - (&logits * &t)?)? + ((logits.abs()?.neg()?.exp()? + 1.0)?.log()?))?;
        let sigmoid = ((logits.neg()?.exp()? + 1.0)?).recip()?;
        let p = if self.raw_logit { &logits } else { &sigmoid };
        let outside = (1.0 - &t)?;
        let wrong = (1.0 - ((p * &t)? + ((1.0 - p)? * &outside)?)?)?;
        let alpha = ((&t * f64::from(ALPHA))? + (&outside * f64::from(1.0 - ALPHA))?)?;
        let focal = (alpha * wrong.sqr()? * cross_entropy)?.mean(1)?;
        let above = (((&sigmoid * &t)?.sum(1)? * 2.0)? + 1.0)?;
        let below = ((sigmoid.sum(1)? + t.sum(1)?)? + 1.0)?;
        Tensor::stack(&[focal, (1.0 - (above / below)?)?], 0)
    }
}
