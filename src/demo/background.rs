//! Textured backgrounds: a vertical gradient, value-noise clouds, and specks.
use rand::Rng;

type Rgb = [f32; 3];

/// The look of a background. Colours are from 0 to 255, lengths are fractions of the picture's side.
pub struct Background {
    pub name: &'static str,
    /// The caption's phrase for the background.
    pub phrase: &'static str,
    top: Rgb,
    bottom: Rgb,
    /// Clouds: colour, size of the noise lattice's cells, and the noise value from which on they show.
    cloud: Rgb,
    cloud_size: (f32, f32),
    cloud_from: f32,
    /// Specks: colour, and fraction of the pixels.
    specks: (Rgb, f32),
}

pub const BACKGROUNDS: [Background; 6] = [
    Background {
        name: "grass",
        phrase: "on the grass",
        top: [104.0, 176.0, 66.0],
        bottom: [72.0, 146.0, 48.0],
        cloud: [48.0, 118.0, 36.0],
        cloud_size: (0.05, 0.16),
        cloud_from: 0.3,
        specks: ([150.0, 206.0, 90.0], 0.0),
    },
    Background {
        name: "sea",
        phrase: "in the sea",
        top: [44.0, 130.0, 178.0],
        bottom: [16.0, 78.0, 138.0],
        cloud: [92.0, 178.0, 208.0],
        cloud_size: (0.34, 0.05),
        cloud_from: 0.45,
        specks: ([150.0, 210.0, 226.0], 0.0),
    },
    Background {
        name: "sky",
        phrase: "in the sky",
        top: [116.0, 180.0, 240.0],
        bottom: [186.0, 220.0, 250.0],
        cloud: [252.0, 253.0, 255.0],
        cloud_size: (0.4, 0.2),
        cloud_from: 0.5,
        specks: ([255.0, 255.0, 255.0], 0.0),
    },
    Background {
        name: "sand",
        phrase: "on the sand",
        top: [236.0, 210.0, 156.0],
        bottom: [218.0, 186.0, 126.0],
        cloud: [200.0, 164.0, 104.0],
        cloud_size: (0.5, 0.1),
        cloud_from: 0.4,
        specks: ([176.0, 140.0, 88.0], 0.02),
    },
    Background {
        name: "snow",
        phrase: "in the snow",
        top: [226.0, 234.0, 242.0],
        bottom: [246.0, 249.0, 252.0],
        cloud: [200.0, 214.0, 230.0],
        cloud_size: (0.6, 0.24),
        cloud_from: 0.45,
        specks: ([255.0, 255.0, 255.0], 0.0),
    },
    Background {
        name: "night",
        phrase: "at night",
        top: [12.0, 14.0, 44.0],
        bottom: [38.0, 34.0, 78.0],
        cloud: [58.0, 50.0, 104.0],
        cloud_size: (0.5, 0.3),
        cloud_from: 0.5,
        specks: ([250.0, 244.0, 200.0], 0.01),
    },
];

impl Background {
    /// Paints a picture of `size` by `size` pixels: `[size, size, 3]`, from 0 to 255.
    pub fn paint(&self, size: usize, random: &mut impl Rng) -> Vec<f32> {
        let tint: Rgb = std::array::from_fn(|_| random.random_range(-10.0..10.0));
        let (speck, share) = self.specks;
        let noise = Noise::new(self.cloud_size, random);
        let mut pixels = Vec::with_capacity(size * size * 3);
        for y in 0..size {
            let down = y as f32 / size as f32;
            for x in 0..size {
                let height = noise.at(x as f32 / size as f32, down);
                let cloud = ((height - self.cloud_from) / (1.0 - self.cloud_from) * 1.6).clamp(0.0, 1.0);
                let opacity = if random.random::<f32>() < share { 0.8 } else { 0.0 };
                let gradient = mix(self.top, self.bottom, down);
                let base = std::array::from_fn(|channel| gradient[channel] + tint[channel]);
                pixels.extend(mix(mix(base, self.cloud, cloud), speck, opacity));
            }
        }
        pixels
    }
}

/// Value noise from 0 to 1: random values at lattice points, smoothly interpolated.
struct Noise {
    columns: usize,
    cell: (f32, f32),
    heights: Vec<f32>,
}

impl Noise {
    /// `cell`: width and height of a lattice cell.
    fn new(cell: (f32, f32), random: &mut impl Rng) -> Self {
        let corners = |length: f32| (1.0 / length).ceil() as usize + 2;
        let (columns, rows) = (corners(cell.0), corners(cell.1));
        Self { columns, cell, heights: (0..columns * rows).map(|_| random.random()).collect() }
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let (column, right) = smooth(x / self.cell.0);
        let (row, down) = smooth(y / self.cell.1);
        let height = |column: usize, row: usize| self.heights[row * self.columns + column];
        let row_at = |row| between(height(column, row), height(column + 1, row), right);
        between(row_at(row), row_at(row + 1), down)
    }
}

/// Splits into whole and fractional part; the fraction is smoothed (smoothstep).
fn smooth(place: f32) -> (usize, f32) {
    let whole = place as usize;
    let rest = place - whole as f32;
    (whole, rest * rest * (3.0 - 2.0 * rest))
}

fn between(a: f32, b: f32, share: f32) -> f32 {
    a + (b - a) * share
}

fn mix(a: Rgb, b: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|channel| between(a[channel], b[channel], share))
}
