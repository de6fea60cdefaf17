//! Shards in object storage, from a server on the loopback address: the bytes of a local run whatever the connection does,
//! one clear error where it does not get better, and no secrets in any output.
#![cfg(feature = "object-store")]
#[path = "../data_config/mod.rs"]
mod data_config;
mod loader;
mod server;
#[path = "../smoke_run/mod.rs"]
mod smoke_run;

use server::{Answer, Server};
use smoke_run::{Run, read, run, succeed};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Keys that no output may hold.
const SECRETS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIAFAKEFAKEFAKE"),
    ("AWS_SECRET_ACCESS_KEY", "fakesecretfakesecret"),
    ("AWS_SESSION_TOKEN", "faketokenfaketoken"),
];

/// The smoke run's shards, below `folder`.
fn smoke_shards(folder: &str) -> Vec<(String, Vec<u8>)> {
    let name = |number: usize| format!("sa_{number:06}.tar");
    let read = |number| read(format!("{}/data/smoke/{}", env!("CARGO_MANIFEST_DIR"), name(number)));
    (0..2).map(|number| (format!("{folder}/{}", name(number)), read(number))).collect()
}

fn serve(folder: &str, script: impl Fn(&server::Request) -> Answer + Send + Sync + 'static) -> Server {
    let shards = smoke_shards(folder);
    let files: Vec<(&str, &[u8])> = shards.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    Server::new(&files, script)
}

fn source(url: &str) -> String {
    format!("data.source=[{url:?}]")
}

/// The settings of S3 on the server.
fn with_s3(command: &mut Command, server: &Server) {
    command.envs(SECRETS).env("AWS_ENDPOINT_URL", server.url("")).env("AWS_ALLOW_HTTP", "true");
}

fn assert_no_secrets(texts: &[&str]) {
    for text in texts {
        for (_, secret) in SECRETS {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
}

/// `--check` on this source, with S3 and Google on the server: the status, and what was said.
fn check(server: &Server, url: &str, more: &[&str]) -> (Option<i32>, String) {
    let run_of = Run::new(&[&source(url), "data.retry_seconds=1"]);
    let mut command = run_of.train(&[&["--check"], more].concat());
    with_s3(&mut command, server);
    let google = format!(
        "{{\"gcs_base_url\": {:?}, \"disable_oauth\": true, \"client_email\": \"\", \"private_key\": \"\", \"private_key_id\": \"\"}}",
        server.url("")
    );
    command.env("GOOGLE_SERVICE_ACCOUNT_KEY", google);
    let (output, said) = run(&mut command);
    assert_no_secrets(&[&said, &String::from_utf8_lossy(&output.stdout)]);
    (output.status.code(), said)
}

#[test]
fn training_over_an_unsteady_connection_gives_the_bytes_of_a_local_run() {
    const STEPS: &[&str] = &["train.steps=12", "checkpoint.every=6"];
    let local = Run::new(STEPS);
    local.finish(&[]);
    // Every shard is scanned twice, and of six requests one is well answered.
    let server = serve("", |request| match request.number % 6 {
        0 => Answer::Status("503 Service Unavailable", "Retry-After: 0\r\n", ""),
        1 => Answer::Cut(7 + 1000 * request.number),
        2 => Answer::Status("429 Too Many Requests", "", ""),
        3 => Answer::Dropped,
        4 => Answer::Status("500 Internal Server Error", "", "secret"),
        _ => Answer::Good,
    });
    let remote = Run::new(&[STEPS, &[&source(&server.url("/sa_{000000..000001}.tar?signature=secret"))]].concat());
    let said = remote.finish(&[]);
    assert!(read(local.path("lora.safetensors")) == read(remote.path("lora.safetensors")));
    assert!(
        server.requests().len() > 12 && server.requests().iter().all(|request| request.query == "signature=secret")
    );
    assert_no_secrets(&[&said, &String::from_utf8_lossy(&read(remote.path("report.html")))]);
}

#[test]
fn a_server_that_stays_away_ends_the_run_and_its_checkpoints_stay() {
    let saved: Arc<OnceLock<PathBuf>> = Arc::default();
    let is_saved = saved.clone();
    let server = serve("", move |_| match is_saved.get().is_some_and(|checkpoint| checkpoint.is_file()) {
        false => Answer::Good,
        true => Answer::Status("503 Service Unavailable", "Retry-After: 1\r\n", "secret"),
    });
    let url = server.url("/sa_{000000,000001}.tar");
    let remote = Run::new(&[&source(&url), "data.retry_seconds=2", "checkpoint.every=2", "checkpoint.keep=100"]);
    let checkpoint = remote.checkpoint(2, "state.json");
    saved.set(checkpoint).expect("the first");
    let started = Instant::now();
    let (output, said) = run(&mut remote.train(&[]));
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
    assert_eq!(output.status.code(), Some(1), "{said}");
    let error: Vec<&str> = said.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(error.len(), 1, "{said}");
    for part in [&server.url("/sa_00000"), "503 Service Unavailable", "data.retry_seconds"] {
        assert!(error[0].contains(part), "{said}");
    }
    let kept = std::fs::read_dir(remote.path("checkpoints")).expect("checkpoints").count();
    assert!(kept > 0, "{said}");
    assert_no_secrets(&[&said]);
}

#[test]
fn what_does_not_pass_is_one_error_at_once() {
    use Answer::*;
    let cases: [(&str, Answer, &str); 7] = [
        ("/none.tar", Good, "the server answers 404 Not Found (NoSuchKey)"),
        (
            "/sa_000000.tar",
            Status("403 Forbidden", "", "<Code>AccessDenied</Code>secret"),
            "403 Forbidden (AccessDenied)",
        ),
        ("/sa_000000.tar", Status("401 Unauthorized", "", "secret"), "401 Unauthorized; credentials"),
        ("/sa_000000.tar", Status("400 Bad Request", "", "<Code>secret stuff</Code>"), "400 Bad Request"),
        ("/sa_000000.tar", Whole, "read by ranges"),
        (
            "/sa_000000.tar",
            Status("503 Service Unavailable", "Retry-After: 3600\r\n", ""),
            "503 Service Unavailable (1 tries in 0 s; see data.retry_seconds)",
        ),
        ("/sa_000000.tar", Status("301 Moved Permanently", "", ""), "AWS_REGION"),
    ];
    for (path, answer, expected) in cases {
        let server = serve("", move |_| answer.clone());
        let started = Instant::now();
        let (status, said) = check(&server, &server.url(path), &[]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(&server.url(path)) && said.contains(expected), "{expected}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    // Nobody listens there.
    let server = serve("", |_| Good);
    let (status, said) = check(&server, "http://127.0.0.1:1/sa.tar?secret", &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("http://127.0.0.1:1/sa.tar: Connection refused"), "{said}");
}

#[test]
fn urls_that_cannot_be_read_are_refused_before_any_request() {
    let server = serve("", |_| Answer::Good);
    for (url, more, expected) in [
        ("http://example.org/a.tar?secret", vec![], "data.plain_http"),
        ("ftp://example.org/a.tar", vec![], "expected s3://, gs:// or https://"),
        ("https://example.org/sa_*.tar", vec![], "web servers list no files"),
        ("https://user:secret@example.org/a.tar", vec![], "not sent"),
        ("s3://", vec![], "name of a bucket"),
        ("s3://key:secret@bucket/a.tar", vec![], "credentials are taken from the environment"),
        ("s3://bucket/a//a.tar", vec![], "empty path segment"),
        ("s3://bucket/[", vec![], "pattern"),
        ("https://", vec![], "empty host"),
        ("s3://bucket/sa_{0..9999999}.tar", vec![], "more than 100000 paths"),
        ("s3://bucket/a.tar", vec!["--set", "data.format=folder"], "expected data.format = \"sa1b\""),
    ] {
        let (status, said) = check(&server, url, &more);
        assert_eq!(status, Some(2), "{url}: {said}");
        assert!(said.contains(expected) && said.lines().count() == 1, "{url}: {said}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn buckets_are_read_by_name_pattern_and_folder() {
    let server = serve("/bucket/smoke/a", |request| match request.number % 3 {
        1 => Answer::Status("503 Slow Down", "", "<Code>SlowDown</Code>"),
        _ => Answer::Good,
    });
    for scheme in ["s3", "gs"] {
        for key in ["smoke/a/sa_{000000..000001}.tar", "smoke/*/sa_*.tar", "smoke/", "smoke/a/sa_00000[01].tar"] {
            let (status, said) = check(&server, &format!("{scheme}://bucket/{key}"), &[]);
            assert_eq!(status, Some(0), "{scheme} {key}: {said}");
        }
        for key in ["smoke/*.tar", "smoke/a/sa_?.tar", "none/"] {
            let (status, said) = check(&server, &format!("{scheme}://bucket/{key}"), &[]);
            assert_eq!(status, Some(2), "{said}");
            assert!(said.contains(&format!("data.source: {scheme}://bucket/{key}: matches no object")), "{said}");
        }
    }
    let signed = server.requests().iter().filter(|request| request.head.contains(SECRETS[0].1)).count();
    assert!(signed > 8, "requests to S3 are signed");

    const STEPS: &[&str] = &["train.steps=3"];
    let (local, remote) = (Run::new(STEPS), Run::new(&[STEPS, &[&source("s3://bucket/smoke/a/*.tar")]].concat()));
    local.finish(&[]);
    let mut command = remote.train(&[]);
    with_s3(&mut command, &server);
    let said = succeed(command.env("RUST_LOG", "trace"));
    assert!(read(local.path("lora.safetensors")) == read(remote.path("lora.safetensors")));
    let pages =
        ["report.html", "config.toml"].map(|file| String::from_utf8_lossy(&read(remote.path(file))).into_owned());
    for text in [&said, &pages[0], &pages[1]] {
        for (_, secret) in SECRETS {
            assert!(!text.contains(secret), "{secret}");
        }
    }
}
