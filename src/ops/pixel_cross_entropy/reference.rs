//! The cross-entropy in candle's operations.
use super::{NO_CLASS, PixelCrossEntropy};
use crate::ops::backend::Reference;
use crate::ops::enlarge::enlarge;
use candle_core::{D, Result, Tensor};

impl Reference for PixelCrossEntropy {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (height, width) = self.size;
        let classes = self.weights.len();
        let values = enlarge(&inputs[0], height, width)?.reshape((classes, height * width))?;
        let values = values.broadcast_sub(&values.detach().max_keepdim(0)?)?;
        let log_probability = values.broadcast_sub(&values.exp()?.sum_keepdim(0)?.log()?)?;
        let mut wanted = vec![0f32; classes * height * width];
        for (pixel, label) in self.labels.iter().enumerate().filter(|(_, label)| **label != NO_CLASS) {
            let class = usize::from(*label);
            wanted[class * height * width + pixel] = (f64::from(self.weights[class]) / self.total) as f32;
        }
        let wanted = Tensor::from_vec(wanted, (classes, height * width), inputs[0].device())?;
        (log_probability * wanted)?.sum(D::Minus1)?.sum_keepdim(0)?.neg()
    }
}
