//! Features of images and their distances equal those of pytorch-fid, torch, NumPy and SciPy.
//!
//! Weights, images and features are computed by a formula shared with `fixtures/generation/gen.py`.
#[path = "fixtures/generation/mod.rs"]
mod fixture;

use candle_core::{DType, Device, Tensor};
use fixture::{
    expected, inception_tensors, numbers, parameter, path, pictures, uniform, write_classifier, write_inception,
};
use seg4diff::eval::generation::demo_features::DemoFeatures;
use seg4diff::eval::generation::frechet::frechet_distance;
use seg4diff::eval::generation::inception::Inception;
use seg4diff::eval::generation::kernel::{VectorSample, kernel_distance};
use seg4diff::eval::generation::moments::{Gaussian, Moments};
use seg4diff::eval::generation::{FeatureNetwork, npz};
use seg4diff::model::weights;
use std::collections::BTreeMap;

/// Features of all pictures, as one batch if `together`.
fn features(network: &dyn FeatureNetwork, together: bool) -> Tensor {
    let inputs: Vec<Vec<f32>> = pictures().iter().map(|picture| network.prepare(picture)).collect();
    if together {
        return network.features(inputs.concat(), inputs.len()).unwrap();
    }
    let features: Vec<Tensor> = inputs.into_iter().map(|input| network.features(input, 1).unwrap()).collect();
    Tensor::cat(&features, 0).unwrap()
}

/// Largest difference, relative to the largest expected value.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = |tensor: &Tensor| {
        let tensor = tensor.to_dtype(DType::F64).unwrap().abs().unwrap();
        tensor.max_all().unwrap().to_scalar::<f64>().unwrap()
    };
    assert_eq!(found.shape(), expected.shape());
    largest(&(found - expected).unwrap()) / largest(expected)
}

#[test]
fn inception_features_are_those_of_pytorch_fid() {
    let folder = tempfile::tempdir().unwrap();
    let network = Inception::load(&write_inception(folder.path(), &inception_tensors()), &Device::Cpu).unwrap();
    for together in [true, false] {
        let off = relative(&features(&network, together), &expected("inception"));
        assert!(off < 2e-6, "{off}");
    }
}

#[test]
fn weights_of_another_network_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let whole = inception_tensors();
    let problem = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        let file = write_inception(folder.path(), &tensors);
        let text = Inception::load(&file, &Device::Cpu).err().unwrap().to_string();
        assert!(text.contains("inception.safetensors"), "{text}");
        text
    };
    let missing = problem(&|tensors| drop(tensors.remove("Mixed_6c.branch7x7_2.bn.running_var")));
    assert!(missing.contains("tensor Mixed_6c.branch7x7_2.bn.running_var is missing"), "{missing}");
    let shape = problem(&|tensors| {
        tensors.insert("Mixed_5b.branch_pool.conv.weight".into(), parameter("x", &[64, 192, 1, 1]));
    });
    assert!(shape.contains("tensor Mixed_5b.branch_pool.conv.weight has shape [64, 192, 1, 1]"), "{shape}");
    // torchvision's own network has 1000 classes, and an auxiliary classifier for training.
    let classes = problem(&|tensors| drop(tensors.insert("fc.weight".into(), parameter("x", &[1000, 2048]))));
    assert!(classes.contains("fc.weight has shape [1000, 2048], expected [1008, 2048]"), "{classes}");
    let extra = problem(&|tensors| drop(tensors.insert("AuxLogits.fc.bias".into(), parameter("x", &[1000]))));
    assert!(extra.contains("AuxLogits.fc.bias"), "{extra}");
}

#[test]
fn classifier_features_are_those_of_torch() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = write_classifier(folder.path());
    let network = DemoFeatures::load(folder.path(), &Device::Cpu).unwrap();
    for together in [true, false] {
        let off = relative(&features(&network, together), &expected("classifier"));
        assert!(off < 2e-6, "{off}");
    }
    tensors.remove("convolutions.1.bias");
    weights::write(&folder.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let text = DemoFeatures::load(folder.path(), &Device::Cpu).err().unwrap().to_string();
    assert!(text.contains("model.safetensors") && text.contains("convolutions.1.bias is missing"), "{text}");
}

/// The sets of feature vectors of gen.py, f32, of length 48.
fn clouds() -> Vec<(&'static str, Vec<f32>)> {
    const LENGTH: usize = 48;
    let cloud = |name: &str, count: usize, value: &dyn Fn(f64) -> f64| -> Vec<f32> {
        uniform(name, count * LENGTH).into_iter().map(|u| value(u) as f32).collect()
    };
    let direction = uniform("direction", LENGTH);
    let along = |t: f64| direction.iter().map(move |d| (t * d + 100.0) as f32);
    vec![
        ("many", cloud("many", 200, &|u| u + 100.0)),
        ("other", cloud("other", 150, &|u| u * u + 100.2)),
        ("few", cloud("few", 20, &|u| u + 100.1)),
        ("fewer", cloud("fewer", 9, &|u| 2.0 * u + 99.0)),
        ("line", uniform("line", 30).into_iter().flat_map(along).collect()),
    ]
}

#[test]
fn moments_are_those_of_numpy_in_any_batches() {
    for (name, cloud) in clouds() {
        for batch in [1, 7, 64, 1000] {
            let mut moments = Moments::new(48);
            cloud.chunks(batch * 48).for_each(|batch| moments.add(batch));
            assert_eq!(moments.count(), cloud.len() / 48);
            let gaussian = moments.gaussian().unwrap();
            let off = |found: &[f64], expected: Vec<f64>| {
                found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
            };
            let off = off(&gaussian.mean, numbers(&format!("mean.{name}")))
                .max(off(&gaussian.covariance, numbers(&format!("covariance.{name}"))));
            assert!(off < 1e-12, "{name} in batches of {batch}: {off}");
        }
    }
    let mut one = Moments::new(2);
    one.add(&[1.0, 2.0]);
    assert!(one.gaussian().is_err_and(|e| e.to_string().contains("2 images at least, there are 1")));
}

#[test]
fn frechet_distances_are_those_of_pytorch_fid_at_any_rank() {
    let gaussian = |name: &str| Gaussian {
        mean: numbers(&format!("mean.{name}")),
        covariance: numbers(&format!("covariance.{name}")),
    };
    for (a, _) in clouds() {
        for (b, _) in clouds() {
            let found = frechet_distance(&gaussian(a), &gaussian(b)).unwrap();
            let expected = numbers(&format!("frechet.{a}.{b}"))[0];
            // SciPy's square root of a singular product is off by about 1e-7.
            assert!((found - expected).abs() < 1e-6, "{a} and {b}: {found}, expected {expected}");
            assert!(a != b || (0.0..1e-11).contains(&found), "{a} and itself: {found}");
        }
    }
    // A closed form: commuting covariances, diag(1, 4, 0) and diag(9, 0, 0).
    let a = Gaussian { mean: vec![0.0, 0.0, 1.0], covariance: vec![1.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0] };
    let b = Gaussian { mean: vec![0.0, 2.0, 1.0], covariance: vec![9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] };
    assert!((frechet_distance(&a, &b).unwrap() - (4.0 + 4.0 + 4.0)).abs() < 1e-12);
    let longer = Gaussian { mean: vec![0.0; 4], covariance: vec![0.0; 16] };
    assert!(frechet_distance(&a, &longer).is_err());
    let broken = Gaussian { mean: vec![f64::NAN, 0.0, 0.0], ..a.clone() };
    assert!(frechet_distance(&a, &broken).is_err());
}

#[test]
fn kernel_distances_are_those_of_numpy() {
    let sample = |cloud: &[f32]| {
        let mut sample = VectorSample::new(48);
        // gen.py divides the same f32 numbers in f64.
        let cloud: Vec<f32> = cloud.iter().map(|value| (f64::from(*value) / 100.0) as f32).collect();
        cloud.chunks(5 * 48).for_each(|batch| sample.add(batch));
        sample
    };
    for (a, cloud_a) in clouds() {
        for (b, cloud_b) in clouds() {
            let found = kernel_distance(&sample(&cloud_a), &sample(&cloud_b)).unwrap();
            let expected = numbers(&format!("kernel.{a}.{b}"))[0];
            assert!((found - expected).abs() < 1e-7, "{a} and {b}: {found}, expected {expected}");
        }
    }
    assert!(kernel_distance(&sample(&[1.0; 48]), &sample(&[1.0; 480])).is_err());
}

#[test]
fn kernel_distances_of_many_vectors_are_means_over_subsets() {
    let sample = |name: &str, count: usize, shift: f64| {
        let mut sample = VectorSample::new(4);
        sample.add(&uniform(name, count * 4).into_iter().map(|u| (u + shift) as f32).collect::<Vec<_>>());
        sample
    };
    // Subsets of 1000 use all vectors; with one vector more, they are drawn.
    let whole = kernel_distance(&sample("a", 1000, 0.0), &sample("b", 1000, 0.2)).unwrap();
    let drawn = kernel_distance(&sample("a", 1001, 0.0), &sample("b", 1001, 0.2)).unwrap();
    assert!((drawn / whole - 1.0).abs() < 5e-3, "{drawn}, {whole}");
    // More vectors than are kept, and vectors that repeat.
    let many = kernel_distance(&sample("a", 12_000, 0.0), &sample("b", 1200, 0.2)).unwrap();
    assert!((many / whole - 1.0).abs() < 5e-2, "{many}, {whole}");
    assert_eq!(many, kernel_distance(&sample("a", 12_000, 0.0), &sample("b", 1200, 0.2)).unwrap());
}

#[test]
fn statistics_files_are_those_of_numpy() {
    let take = |name: &str, columns: usize, count: usize| -> Vec<f64> {
        numbers(name).chunks(columns).take(6).flat_map(|row| row[..count].to_vec()).collect()
    };
    let mean = numbers("mean.few")[..6].to_vec();
    let deflated = npz::read(&path("deflated.npz"), 6).unwrap();
    assert_eq!(deflated, Gaussian { mean: mean.clone(), covariance: take("covariance.few", 48, 6) });
    // In a file: the mean as f32, the covariance in Fortran order, and an unrelated array.
    let stored = npz::read(&path("stored.npz"), 6).unwrap();
    assert_eq!(stored.mean, mean.iter().map(|value| f64::from(*value as f32)).collect::<Vec<_>>());
    assert_eq!(stored.covariance, deflated.covariance);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("again.npz");
    npz::write(&file, &deflated).unwrap();
    assert_eq!(npz::read(&file, 6).unwrap(), deflated);
    let bytes = std::fs::read(&file).unwrap();
    npz::write(&file, &deflated).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);

    let problem = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let text = npz::read(&file, 6).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{}: ", file.display())), "{text}");
        text
    };
    assert!(problem(b"not a zip").contains("no .npz file"));
    for cut in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        problem(&bytes[..cut]);
    }
    // Damaged anywhere, a file is refused or read, without a panic.
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x55;
        std::fs::write(&file, &damaged).unwrap();
        let _ = npz::read(&file, 6);
    }
    npz::write(&file, &Gaussian { mean: vec![1.0; 3], covariance: vec![1.0; 9] }).unwrap();
    assert_eq!(npz::read(&file, 3).unwrap().mean.len(), 3);
    assert!(npz::read(&file, 6).unwrap_err().to_string().contains("features of length 3, expected 6"));
}

/// `L·Lᵀ` of random numbers, plus `shift` on the diagonal, which shifts its eigenvalues.
fn covariance(length: usize, rank: usize, shift: f64) -> Vec<f64> {
    let root: Vec<f64> = uniform("root", length * rank).into_iter().map(|u| u - 0.5).collect();
    let entry = |i: usize, j: usize| -> f64 {
        let product: f64 = (0..rank).map(|k| root[i * rank + k] * root[j * rank + k]).sum();
        product + if i == j { shift } else { 0.0 }
    };
    (0..length * length).map(|at| entry(at / length, at % length)).collect()
}

#[test]
fn what_is_no_covariance_is_refused() {
    const LENGTH: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("statistics.npz");
    let read = |covariance: Vec<f64>, mean: Vec<f64>| {
        let length = mean.len();
        npz::write(&file, &Gaussian { mean, covariance }).unwrap();
        npz::read(&file, length).map_err(|problem| problem.to_string())
    };
    let mean = || vec![0.5; LENGTH];
    // Full-rank, singular, zero, and with f32 rounding.
    let rounded = |matrix: Vec<f64>| -> Vec<f64> { matrix.into_iter().map(|value| f64::from(value as f32)).collect() };
    for sound in [
        covariance(LENGTH, 80, 0.0),
        covariance(LENGTH, 7, 0.0),
        vec![0.0; LENGTH * LENGTH],
        rounded(covariance(LENGTH, 80, 0.0)),
        rounded(covariance(LENGTH, 7, 0.0)),
        rounded(covariance(LENGTH, 7, 0.0)).into_iter().map(|value| value * 1e-9).collect(),
    ] {
        let gaussian = read(sound, mean()).unwrap();
        let distance = frechet_distance(&gaussian, &gaussian).unwrap();
        assert!(distance < 1e-4, "{distance}");
    }

    let mut lopsided = covariance(LENGTH, 80, 0.0);
    lopsided[3 * LENGTH + 8] += 0.01;
    let mut exchange = vec![0.0; LENGTH * LENGTH];
    (exchange[1], exchange[LENGTH]) = (1.0, 1.0);
    let mut correlated = covariance(LENGTH, 80, 0.0);
    (correlated[5], correlated[5 * LENGTH]) = (40.0, 40.0);
    let (mut infinite, mut none) = (covariance(LENGTH, 80, 0.0), covariance(LENGTH, 80, 0.0));
    (infinite[9], none[9]) = (f64::INFINITY, f64::NAN);
    for (what, matrix, mean, problem) in [
        ("not symmetric", lopsided, mean(), "sigma is not symmetric"),
        ("a few eigenvalues below zero", covariance(LENGTH, 7, -0.01), mean(), "sigma has negative eigenvalues"),
        ("all below zero", covariance(LENGTH, 7, -90.0), mean(), "sigma has negative eigenvalues"),
        ("nothing on the diagonal", exchange, mean(), "sigma has negative eigenvalues"),
        ("more in common than there is", correlated, mean(), "sigma has negative eigenvalues"),
        ("an infinite element", infinite, mean(), "not finite"),
        ("no number", none, mean(), "not finite"),
        ("too large to square", vec![1e200; LENGTH * LENGTH], mean(), "too large"),
        ("an infinite mean", covariance(LENGTH, 80, 0.0), vec![f64::NEG_INFINITY; LENGTH], "not finite"),
        ("a longer mean", covariance(LENGTH, 80, 0.0), vec![0.0; LENGTH + 1], "shape [41, 41] needs"),
    ] {
        let text = read(matrix, mean).expect_err(what);
        assert!(text.starts_with(&format!("{}: ", file.display())) && text.contains(problem), "{what}: {text}");
    }
    // Without a file around it, as the distance itself sees it.
    let gaussian = |covariance| Gaussian { mean: mean(), covariance };
    let sound = gaussian(covariance(LENGTH, 80, 0.0));
    let problem = frechet_distance(&gaussian(covariance(LENGTH, 7, -90.0)), &sound).expect_err("negative");
    assert!(problem.to_string().contains("no covariances"), "{problem}");
}
