//! The loader over HTTP: order, resumption and errors are those of local shards, and a shard is fetched once.
use super::data_config::plain;
use super::server::{Answer, Request, Server};
use flate2::{Compression, write::GzEncoder};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use seg4diff::config::{DataConfig, DataFormat};
use seg4diff::data::{Cursor, Loader};
use std::fs;
use std::io::Write;

const SAMPLES: usize = 60;
/// Bytes of each sample's padding; 60 samples are 24 MB.
const PADDING: usize = 400_000;
/// Bytes that the reader asks for at a time.
const BLOCK: usize = 4 << 20;

fn config(source: &str) -> DataConfig {
    DataConfig { retry_seconds: 5, max_masks: 4, shuffle_buffer: 16, ..plain(DataFormat::Sa1b, &[source]) }
}

/// A shard whose JSON are long, and one member of 20 MB between the samples that belongs to none.
fn shard() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&[90; 16 * 16 * 3], 16, 16, ExtendedColorType::Rgb8).unwrap();
    let json = format!(
        r#"{{"annotations": [{{"segmentation": {{"size": [16, 16], "counts": [6, 250]}}}}]{}}}"#,
        " ".repeat(PADDING)
    );
    let mut add = |name: String, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    };
    for number in 0..SAMPLES {
        if number == SAMPLES / 2 {
            add("other.bin".into(), &vec![7; 20 << 20]);
        }
        let caption = format!("Caption {number}.");
        for (extension, content) in [("jpg", &png[..]), ("json", json.as_bytes()), ("txt", caption.as_bytes())] {
            add(format!("sa_{number}.{extension}"), content);
        }
    }
    archive.into_inner().unwrap()
}

/// The prompts of the first epoch in order, with the positions after them.
fn epoch(config: &DataConfig, start: Option<&Cursor>) -> Result<Vec<(String, Cursor)>, String> {
    let mut loader = Loader::new(config, 1, start, false).map_err(|error| error.to_string())?;
    let mut seen = Vec::new();
    loop {
        let batch = loader.next_batch(1).map_err(|error| error.to_string())?;
        if batch.epoch > 0 {
            return Ok(seen);
        }
        seen.push((batch.samples[0].prompt.clone(), batch.cursor));
    }
}

fn serve(shard: &[u8], script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
    Server::new(&[("/a.tar", shard)], script)
}

#[test]
fn order_and_resumption_are_those_of_a_local_shard_and_nothing_is_fetched_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (file, shard) = (folder.path().join("a.tar"), shard());
    fs::write(&file, &shard).unwrap();
    let local = epoch(&config(file.to_str().unwrap()), None).unwrap();
    assert_eq!(local.len(), SAMPLES);

    let server = serve(&shard, |_| Answer::Good);
    let remote = config(&server.url("/a.tar"));
    let seen = epoch(&remote, None).unwrap();
    assert!(seen == local);
    // Samples are taken from the blocks that the scan has read; nothing is asked for but whole blocks, one after another.
    let starts: Vec<usize> = server.requests().iter().filter_map(|request| Some(request.range?.0)).collect();
    assert!(starts.iter().all(|start| start.is_multiple_of(BLOCK)), "{starts:?}");
    // Twice, for the second epoch is begun, and the first block once more, to see whether there are captions.
    assert!(starts.len() <= 2 * shard.len().div_ceil(BLOCK) + 3, "{starts:?}");

    for place in [0, 7, 16, 31, 58] {
        let rest = epoch(&remote, Some(&local[place].1)).unwrap();
        assert!(rest == local[place + 1..], "after {place}");
    }
}

#[test]
fn cut_answers_are_resumed_where_they_stopped() {
    let shard = shard();
    let local = epoch(&config(serve(&shard, |_| Answer::Good).url("/a.tar").as_str()), None).unwrap();
    let server = serve(&shard, |request| if request.number % 2 == 1 { Answer::Cut(1 << 20) } else { Answer::Good });
    assert!(epoch(&config(&server.url("/a.tar")), None).unwrap() == local);
    let starts: Vec<usize> = server.requests().iter().filter_map(|request| Some(request.range?.0)).collect();
    assert!(starts.iter().any(|start| start % BLOCK == 1 << 20), "{starts:?}");
}

#[test]
fn a_shard_that_changes_ends_the_run() {
    let shard = shard();
    let script = |request: &Request| if request.number < 4 { Answer::Good } else { Answer::Tagged("\"two\"") };
    let server = serve(&shard, script);
    let problem = epoch(&config(&server.url("/a.tar")), None).unwrap_err();
    assert_eq!(
        problem,
        format!("{}: it has changed since the run began; shards must stay as they are", server.url("/a.tar"))
    );
}

#[test]
fn answers_of_half_a_range_and_servers_without_ranges_end_the_run() {
    let shard = shard();
    for (answer, expected) in [(Answer::Half, "Requested"), (Answer::Whole, "read by ranges")] {
        let server = serve(&shard, move |request| if request.number < 3 { Answer::Good } else { answer.clone() });
        let problem = epoch(&config(&server.url("/a.tar")), None).unwrap_err();
        assert!(problem.starts_with(&server.url("/a.tar: ")) && problem.contains(expected), "{problem}");
    }
}

/// A compressed shard, cut and dropped on its way, has the samples of the plain one, in their order and at every resumption.
#[test]
fn compressed_shards_are_unpacked() {
    let shard = shard();
    let local = epoch(&config(serve(&shard, |_| Answer::Good).url("/a.tar").as_str()), None).unwrap();
    // Positions hold the names of the shards.
    let prompts = |seen: &[(String, Cursor)]| seen.iter().map(|(prompt, _)| prompt.clone()).collect::<Vec<_>>();
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    compressed.write_all(&shard).unwrap();
    let compressed = compressed.finish().unwrap();
    let script = |request: &Request| match request.number % 3 {
        1 => Answer::Cut(1000),
        2 => Answer::Dropped,
        _ => Answer::Good,
    };
    for name in ["/a.tar.gz", "/a.tgz", "/A.TAR.GZ"] {
        let server = Server::new(&[(name, &compressed)], script);
        let remote = config(&server.url(name));
        let seen = epoch(&remote, None).unwrap();
        assert_eq!(prompts(&seen), prompts(&local), "{name}");
        assert!(epoch(&remote, Some(&seen[31].1)).unwrap() == seen[32..]);
    }
    // What stands before damage counts, and the damage is a broken sample.
    let cut = &compressed[..compressed.len() / 2];
    let server = Server::new(&[("/a.tar.gz", cut)], |_| Answer::Good);
    let problem = epoch(&config(&server.url("/a.tar.gz")), None).unwrap_err();
    assert!(problem.contains("/a.tar.gz: ") && problem.contains("cut short within other.bin"), "{problem}");
}
