//! Matching costs against torch, assignments against scipy, learning rates against torch's schedulers.
//! Fixture: tests/fixtures/matching/gen.py.
use candle_core::{Device, Tensor};
use seg4diff::config::RunConfig;
use seg4diff::loss::{Matching, assign};
use seg4diff::ops::match_cost;
use seg4diff::train::schedule::warmup_cosine;
use serde_json::Value;
use std::path::Path;

fn fixture(name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/matching/matching.json");
    let mut all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    serde_json::from_value(all[name].take()).unwrap()
}

fn rows(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn pairs(value: &Value) -> Vec<(usize, usize)> {
    serde_json::from_value(value.clone()).unwrap()
}

fn config(settings: &[String]) -> RunConfig {
    let needed = ["output=\"-\"", "model.path=\"-\"", "data.source=[\"-\"]", "data.captions=\"-\""];
    let all: Vec<String> = needed.iter().map(|s| s.to_string()).chain(settings.iter().cloned()).collect();
    RunConfig::parse("", Path::new("test"), &all).unwrap()
}

#[test]
fn costs_are_those_of_torch_and_pairs_those_of_scipy() {
    for case in fixture("cases") {
        let (maps, masks, wanted) = (rows(&case["maps"]), rows(&case["masks"]), rows(&case["costs"]));
        let raw = case["raw_logit"].as_bool().unwrap();
        let tensor = |rows: &[Vec<f32>]| Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu);
        let (maps, mask_tensor) = (tensor(&maps).unwrap(), tensor(&masks).unwrap());
        let costs = match_cost(&maps, &mask_tensor, (0.02, 1.0), raw).unwrap().wait().unwrap();
        let largest = wanted.iter().flatten().fold(0f32, |m, c| m.max(c.abs()));
        assert_eq!(costs.len(), wanted.len());
        for (costs, wanted) in costs.iter().zip(&wanted) {
            assert_eq!(costs.len(), wanted.len());
            for (cost, wanted) in costs.iter().zip(wanted) {
                assert!((cost - wanted).abs() <= 1e-5 * largest, "{cost}, torch {wanted}");
            }
        }
        let config = config(&[format!("loss.focal_probability=\"{}\"", if raw { "logit" } else { "sigmoid" })]);
        let masks: Vec<&[f32]> = masks.iter().map(Vec::as_slice).collect();
        assert_eq!(Matching::begin(&maps, None, &masks, &config.loss).unwrap().pairs().unwrap(), pairs(&case["pairs"]));
    }
}

#[test]
fn assignments_are_those_of_scipy() {
    for case in fixture("plain") {
        assert_eq!(assign(&rows(&case["costs"])), pairs(&case["pairs"]));
    }
    // Costs that are not finite are the worst, and without costs there are no pairs.
    assert_eq!(assign(&[vec![f32::NAN, 1.0], vec![2.0, f32::INFINITY]]), [(1, 0), (0, 1)]);
    assert!(assign::<f32>(&[]).is_empty());
}

#[test]
fn learning_rates_are_those_of_torch() {
    for case in fixture("schedules") {
        let set = |key: &str, name: &str| format!("{name}={}", case[key]);
        let settings = [
            set("lr", "optim.lr"),
            set("warmup_factor", "optim.warmup_factor"),
            set("warmup_steps", "optim.warmup_steps"),
            set("steps", "train.steps"),
        ];
        let config = config(&settings);
        let rates: Vec<f64> = serde_json::from_value(case["rates"].clone()).unwrap();
        for (step, wanted) in rates.iter().enumerate() {
            let rate = warmup_cosine(&config.optim, step as u64, config.train.steps);
            assert!((rate - wanted).abs() <= 1e-9 * config.optim.lr, "step {step}: {rate}, torch {wanted}");
        }
    }
}
