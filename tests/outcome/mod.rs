//! The results of a run of the smoke config, for comparison.
use crate::smoke_run::{Run, read};
use serde_json::Value;

/// The results of a run that must not depend on interruptions or on caching.
#[derive(PartialEq)]
pub struct Outcome {
    lora: Vec<u8>,
    adapter: Vec<u8>,
    optimizer: Vec<u8>,
    pub state: Value,
    pub metrics: Vec<Value>,
}

impl Outcome {
    /// Results of a run of `steps` steps.
    pub fn of(run: &Run, steps: u64) -> Self {
        let json = |text: &[u8]| serde_json::from_slice::<Value>(text).expect("JSON");
        let mut metrics: Vec<Value> =
            read(run.path("metrics.jsonl")).split_inclusive(|byte| *byte == b'\n').map(json).collect();
        for line in &mut metrics {
            let line = line.as_object_mut().expect("an object");
            line.remove("processes");
            for speed in ["images_per_s", "seconds", "data_wait_s"] {
                assert!(line.remove(speed).is_some_and(|value| value.is_number()), "{speed}");
            }
        }
        assert_eq!(metrics.len() as u64, steps);
        Self {
            lora: read(run.path("lora.safetensors")),
            adapter: read(run.checkpoint(steps, "adapter.safetensors")),
            optimizer: read(run.checkpoint(steps, "optimizer.safetensors")),
            state: json(&read(run.checkpoint(steps, "state.json")))["state"].take(),
            metrics,
        }
    }

    pub fn check(&self, other: &Self, what: &str) {
        assert_eq!(self.metrics, other.metrics, "{what}");
        assert_eq!(self.state, other.state, "{what}");
        assert!(self == other, "{what}: other bytes");
    }
}
