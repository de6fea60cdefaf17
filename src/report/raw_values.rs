//! How pictures and tensors are written for another process.

/// A picture for serde: its size, and its bytes.
pub mod picture {
    use image::RgbImage;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(picture: &RgbImage, serializer: S) -> Result<S::Ok, S::Error> {
        (picture.dimensions(), picture.as_raw()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RgbImage, D::Error> {
        let ((width, height), bytes) = Deserialize::deserialize(deserializer)?;
        RgbImage::from_raw(width, height, bytes).ok_or_else(|| D::Error::custom("not one color a pixel"))
    }
}

/// A tensor in f32 on the host for serde: its shape, and its values.
pub mod tensor {
    use candle_core::{Device, Tensor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::Error};

    pub fn serialize<S: Serializer>(tensor: &Tensor, serializer: S) -> Result<S::Ok, S::Error> {
        let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<f32>()).map_err(S::Error::custom)?;
        (tensor.dims(), values).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Tensor, D::Error> {
        let (shape, values): (Vec<usize>, Vec<f32>) = Deserialize::deserialize(deserializer)?;
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(de::Error::custom)
    }
}
