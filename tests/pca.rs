//! Principal components of features equal numpy.linalg.svd's, and become pictures.
//!
//! The reference values of NumPy are in fixtures/pca, with the script that made them.
use candle_core::Tensor;
use seg4diff::config::{Choice, DeviceChoice};
use seg4diff::distributed::SingleProcess;
use seg4diff::eval::EvaluatedModel;
use seg4diff::eval::pca::{components_of, principal_components};
use seg4diff::eval::segmentation::{LabelledFolder, SegmentationOptions};
use seg4diff::eval::turns::Turns;
use seg4diff::model::pipeline::{Pipeline, PipelineOptions};
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::read_all;
use seg4diff::sample::image::read_rgb8;
use seg4diff::sample::scheduler::Scheduler;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn expected() -> BTreeMap<String, Tensor> {
    read_all(&root("tests/fixtures/pca/expected.safetensors")).unwrap()
}

fn assert_components(found: &[[f32; 3]], wanted: &Tensor, limit: f32, what: &str) {
    let wanted: Vec<Vec<f32>> = wanted.to_vec2().unwrap();
    assert_eq!(found.len(), wanted.len(), "{what}");
    let errors = found.iter().flatten().zip(wanted.iter().flatten()).map(|(f, w)| (f - w).abs());
    let error = errors.fold(0f32, f32::max);
    assert!(error < limit, "{what}: {error:e}");
}

#[test]
fn components_are_those_of_numpy() {
    let tensors = expected();
    for case in 0..9 {
        let features: Vec<Vec<f32>> = tensors[&format!("case_{case}_features")].to_vec2().unwrap();
        let found = principal_components(&features).unwrap();
        assert_components(&found, &tensors[&format!("case_{case}_components")], 1e-5, &format!("case {case}"));
        // Every component with variance ranges from 0 to 1.
        for component in 0..3 {
            let most = found.iter().map(|row| row[component]).fold(0f32, f32::max);
            assert!(most == 1.0 || found.iter().all(|row| row[component] == 0.0), "case {case}, {component}: {most}");
        }
    }
    assert!(principal_components(&[vec![1.0, f32::NAN], vec![0.0, 1.0]]).is_none());
    assert_eq!(principal_components(&[vec![1.0, 2.0]]), Some(vec![[0.0; 3]]));
}

/// Image tokens after every block, after some of the blocks alone, and in any batch.
#[test]
fn features_of_blocks_are_those_of_diffusers() {
    let tensors = expected();
    let files = ModelFiles::open(root("checkpoints/smoke-base").to_str().unwrap()).unwrap();
    let options = PipelineOptions {
        text_encoders: vec![Choice::from_name("clip_l").unwrap(), Choice::from_name("clip_g").unwrap()],
        max_sequence_length: 77,
        dtype: candle_core::DType::F32,
        device: DeviceChoice::Cpu.open().unwrap(),
        depth: None,
    };
    let (pipeline, scheduler) = (Pipeline::load(&files, &options).unwrap(), Scheduler::open(&files).unwrap());
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let at = |name: &str| root("tests/fixtures/segmentation").join(name);
    let data = LabelledFolder::open(&at("images"), &at("labels"), &at("classes.json"), &[255]).unwrap();
    for (layers, batch) in [(&[0, 1, 2][..], 3), (&[1], 1)] {
        let noise = Some(tensors["noise"].clone());
        let options = SegmentationOptions { noise, batch, ..SegmentationOptions::new(0, 64) };
        let mut keys = vec![];
        components_of(model, &data, &options, layers, &mut |image, components, grid| {
            assert_eq!((components.len(), components[0].len(), grid), (layers.len(), 16, (4, 4)));
            keys.push(image.key.clone());
            for (layer, found) in layers.iter().zip(&components).filter(|_| image.key == "zebra") {
                let wanted = &tensors[&format!("block_{layer}_components")];
                assert_components(found, wanted, 1e-4, &format!("block {layer}, batch {batch}"));
            }
            Ok(())
        })
        .unwrap();
        assert_eq!((keys.len(), keys.last().map(String::as_str)), (7, Some("zebra")));
    }
}

/// The command writes a picture for each block and image, and a sheet of all.
#[test]
fn the_command_writes_pictures_of_features() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| root("tests/fixtures/segmentation").join(name);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["analyze", "--size", "64", "--limit", "2", "--device", "cpu", "--pca", "p", "--pca-images", "3"]);
    command.args(["--layer", "2,0"]).arg("--model").arg(root("checkpoints/smoke-base"));
    command.arg("--images").arg(at("images")).arg("--labels").arg(at("labels"));
    let output = command.arg("--classes").arg(at("classes.json")).current_dir(work.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pictures = ["a square", "b/street", "nothing"]
        .iter()
        .flat_map(|key| ["00", "02"].map(|block| work.path().join(format!("p/{key}/block-{block}.png"))))
        .map(|file| read_rgb8(&file).unwrap())
        .collect::<Vec<_>>();
    for picture in &pictures {
        // Four positions a side, each 48 pixels wide.
        assert_eq!(picture.dimensions(), (192, 192));
        assert!((0..48).all(|x| picture.get_pixel(x, 0) == picture.get_pixel(0, 47)));
        let channel = |c: usize| picture.pixels().map(move |pixel| pixel.0[c]);
        assert!((0..3).all(|c| channel(c).min() == Some(0) && channel(c).max() == Some(255)));
    }
    assert_ne!(pictures[0], pictures[1]);
    let sheet = read_rgb8(&work.path().join("p/sheet.png")).unwrap();
    assert_eq!(sheet.dimensions(), (3 * 198 + 6, 3 * 198 + 6));
    // The second column is block 0's, of the first image.
    assert_eq!(sheet.get_pixel(6 + 198 + 10, 6 + 10), pictures[0].get_pixel(10, 10));
    assert!(!work.path().join("p/a square/block-01.png").exists());
}
