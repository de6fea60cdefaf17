//! A hub that is unreachable, refuses, or does not answer.
use super::world::{Case, World, nothing, try_all};
use std::net::TcpListener;
use std::time::{Duration, Instant};

const OFFLINE: &[Case] = &[
    (
        "hub name while offline",
        nothing,
        &[
            "env:HF_HUB_OFFLINE=1",
            "env:HF_HOME=hub",
            "generate",
            "--model",
            "hf:org/gone",
            "--prompt",
            "a",
            "--out",
            "o",
        ],
        1,
        &["hf:org/gone", "model_index.json", "HF_HUB_OFFLINE"],
    ),
    (
        "hub name while offline, in training",
        |w| w.replace("c.toml", "path = \"model\"", "path = \"hf:org/gone\""),
        &["env:HF_HUB_OFFLINE=1", "env:HF_HOME=hub", "train", "--config", "c.toml"],
        1,
        &["hf:org/gone", "model_index.json", "HF_HUB_OFFLINE"],
    ),
    (
        "hub that refuses connections",
        nothing,
        &[
            "env:HF_ENDPOINT=http://127.0.0.1:9",
            "env:HF_HOME=hub",
            "env:NO_PROXY=127.0.0.1",
            "generate",
            "--model",
            "hf:org/gone",
            "--prompt",
            "a",
            "--out",
            "o",
        ],
        1,
        &["hf:org/gone", "model_index.json", "onnect"],
    ),
    (
        "one file of a hub that refuses connections",
        nothing,
        &[
            "env:HF_ENDPOINT=http://127.0.0.1:9",
            "env:HF_HOME=hub",
            "env:NO_PROXY=127.0.0.1",
            "generate",
            "--model",
            "hf:org/gone/one.safetensors",
            "--prompt",
            "a",
            "--out",
            "o",
        ],
        1,
        &["hf:org/gone/one.safetensors", "onnect"],
    ),
    (
        "hub name without an organisation",
        nothing,
        &["generate", "--model", "hf:gone", "--prompt", "a", "--out", "o"],
        2,
        &["hf:gone", "hf:org/name"],
    ),
];

#[test]
fn hub_names() {
    try_all(World::whole, OFFLINE);
}

/// A server that accepts the connection and sends nothing.
#[test]
fn a_hub_that_does_not_answer() {
    let server = TcpListener::bind("127.0.0.1:0").expect("server");
    let endpoint = format!("env:HF_ENDPOINT=http://{}", server.local_addr().expect("address"));
    let world = World::whole();
    let args = [&endpoint, "env:HF_HUB_ETAG_TIMEOUT=1", "env:HF_HOME=hub", "env:NO_PROXY=127.0.0.1", "generate"];
    let started = Instant::now();
    let mut command = world.command(&args);
    let output = command.args(["--model", "hf:org/slow", "--prompt", "a", "--out", "o"]).output().expect("seg4diff");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert!(said.contains("hf:org/slow") && said.contains("no answer within 1 s"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}
