//! Heat maps are bright where a map is high, and leave the picture recognisable.
use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use seg4diff::report::heatmap::{inferno, overlay, write_word_overlays};
use seg4diff::sample::image::read_rgb8;

fn luminance(color: [f32; 3]) -> f32 {
    0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
}

#[test]
fn colours_grow_brighter_with_the_value() {
    let shades: Vec<f32> = (0..=200).map(|i| luminance(inferno(i as f32 / 200.0))).collect();
    assert!(shades.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(inferno(-1.0), inferno(0.0));
    assert_eq!(inferno(2.0), [252.0, 255.0, 164.0]);
}

#[test]
fn the_brightest_pixels_lie_where_the_map_is_highest() {
    // A map of 2 × 3 with its peak at the bottom right, over a grey picture of 20 × 30.
    let map = Tensor::from_vec(vec![-5f32, 0.0, 1.0, 0.0, 1.0, 7.0], (2, 3), &Device::Cpu).unwrap();
    let grey = RgbImage::from_pixel(30, 20, Rgb([100; 3]));
    let shown = overlay(&grey, &map).unwrap();
    let shade = |x, y| luminance(shown.get_pixel(x, y).0.map(f32::from));
    // Beyond the outermost centres of the map, the values are constant.
    assert_eq!(shown.get_pixel(29, 19), shown.get_pixel(26, 16));
    assert!(shade(29, 19) > shade(15, 10) && shade(15, 10) > shade(0, 0));
    // Scaling a map does not change its picture; a constant map does not divide by zero.
    assert_eq!(overlay(&grey, &((&map * 3.0).unwrap() + 2.0).unwrap()).unwrap(), shown);
    let flat = overlay(&grey, &map.zeros_like().unwrap()).unwrap();
    assert!(flat.pixels().all(|pixel| pixel == flat.get_pixel(0, 0)));
    // The picture shows through.
    assert_ne!(overlay(&RgbImage::new(30, 20), &map).unwrap(), shown);
}

#[test]
fn each_word_with_a_place_gets_a_picture_of_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let picture = RgbImage::from_pixel(8, 8, Rgb([50, 90, 130]));
    let maps = Tensor::arange(0f32, 5.0 * 4.0, &Device::Cpu).unwrap().reshape((5, 2, 2)).unwrap();
    let maps = (maps / 3.0).unwrap().sin().unwrap();
    let words = [("a", Some(1..2)), ("traffic-light!", Some(2..4)), ("cut", None), ("../犬", Some(4..5))];
    let files = write_word_overlays(folder.path(), &picture, &maps, &words).unwrap();
    let names: Vec<_> = files.iter().map(|(file, _)| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["overlay-01-a.png", "overlay-02-trafficlight.png", "overlay-04-犬.png"]);
    let mean = maps.narrow(0, 2, 2).unwrap().mean(0).unwrap();
    assert_eq!(read_rgb8(&files[1].0).unwrap(), overlay(&picture, &mean).unwrap());
    assert_eq!(files[1].1, overlay(&picture, &mean).unwrap());
}
