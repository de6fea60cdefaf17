//! The corpus of the fuzz targets: every file goes through its reader, which may refuse it and must not panic.
//!
//! `WRITE_FUZZ_CORPUS=1 cargo test --test fuzz_corpus` writes it: files as the tests have them, sound and bad, and a few
//! mutations of each sound one. What a fuzzer found is kept beside them as `found-…`.
#[path = "mutations/mutate.rs"]
#[allow(dead_code)]
mod mutate;
#[path = "../fuzz/readers.rs"]
mod readers;

use mutate::Checksums;
use readers::READERS;
use seg4diff::data::codec::labels::encode_labels;
use std::path::{Path, PathBuf};

/// Mutations of each sound file.
const MUTATIONS: u64 = 3;

/// What a target's corpus is made of.
struct Seeds {
    target: &'static str,
    /// What the reader takes.
    sound: Vec<Vec<u8>>,
    /// What it refuses.
    bad: Vec<Vec<u8>>,
    is_text: bool,
    checksums: Checksums,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, names: &[&str]) -> Vec<Vec<u8>> {
    let read = |name: &&str| std::fs::read(root().join(folder).join(name)).unwrap();
    names.iter().map(read).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn cut(bytes: &[u8], left: usize) -> Vec<u8> {
    bytes[..bytes.len() - left].to_vec()
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let long = format!("{}.json", "long".repeat(30));
    for (name, content) in [("a.jpg", "picture"), ("a.json", "{}"), (long.as_str(), "[]")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    archive.append_pax_extensions([("path", &b"b.jpg"[..]), ("size", b"3")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    archive.append_data(&mut header, "other", &b"abc"[..]).unwrap();
    archive.into_inner().unwrap()
}

/// A numpy array of version 2 with this header, alone in a `.npz` file.
fn npz(header: &str) -> Vec<u8> {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().last_modified_time(zip::DateTime::default());
    archive.start_file("mu.npy", options).unwrap();
    archive.write_all(b"\x93NUMPY\x02\0").unwrap();
    archive.write_all(&(header.len() as u32).to_le_bytes()).unwrap();
    archive.write_all(header.as_bytes()).unwrap();
    archive.finish().unwrap().into_inner()
}

fn seeds() -> Vec<Seeds> {
    let plain = |target, sound, bad| Seeds { target, sound, bad, is_text: false, checksums: Checksums::None };
    let text = |target, sound, bad| Seeds { is_text: true, ..plain(target, sound, bad) };
    let tensor = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let jpegs = files(
        "tests/fixtures/jpeg",
        &["420-4x2.jpg", "422-progressive.jpg", "440.jpg", "grey.jpg", "restart.jpg", "rgb.jpg"],
    );
    let picture = files("tests/fixtures/jpeg", &["444-1x1.png"]);
    let pictures = files(
        "tests/fixtures/pictures",
        &[
            "lossless-alpha.webp",
            "lossy-40.webp",
            "animated.webp",
            "palette.bmp",
            "rgba.bmp",
            "plain.ppm",
            "bits.pbm",
            "transparent.gif",
            "rgb-lzw.tiff",
            "bits-group4.tiff",
            "cmyk.tiff",
            "palette-transparent.png",
            "raw-profile.png",
            "cmyk-420.jpg",
            "xmp.jpg",
        ],
    );
    let map = encode_labels(6, 4, &(0..24).collect::<Vec<_>>()).unwrap();
    let wide = encode_labels(6, 4, &(0..24).map(|label| label * 40).collect::<Vec<_>>()).unwrap();
    let matrices = files("tests/fixtures/matlab", &["u16.mat", "u8.mat", "f64.mat"]);
    let statistics = files("tests/fixtures/generation", &["deflated.npz", "stored.npz"]);
    let whole = archive();
    vec![
        plain(
            "safetensors_header",
            vec![safetensors("{}", 0), safetensors(tensor, 16)],
            vec![
                vec![],
                safetensors(tensor, 15),
                safetensors(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#, 16),
                safetensors(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, 16),
                safetensors(&"[".repeat(2000), 0),
                u64::MAX.to_le_bytes().to_vec(),
            ],
        ),
        text(
            "run_lengths",
            texts(&[
                r#"{"size": [3, 5], "counts": [2, 3, 10]}"#,
                r#"{"size": [1, 1], "counts": "01"}"#,
                r#"{"size": [16, 16], "counts": [6, 250]}"#,
            ]),
            texts(&[
                r#"{"size": [16, 20], "counts": [3, 4]}"#,
                r#"{"size": [16, 20], "counts": "~~"}"#,
                r#"{"size": [4, 5], "counts": "ooooooo0"}"#,
                r#"{"size": [4, 5], "counts": "O"}"#,
                r#"{"size": [18446744073709551615, 2], "counts": [1]}"#,
                r#"{"size": [1048576, 1048576], "counts": [1099511627776]}"#,
                r#"{"size": [0, 5], "counts": []}"#,
            ]),
        ),
        plain(
            "jpeg",
            [jpegs.clone(), picture].concat(),
            vec![vec![], cut(&jpegs[0], 2), cut(&jpegs[1], 400), b"\xff\xd8\xff\xd9".to_vec()],
        ),
        plain(
            "picture",
            pictures.clone(),
            vec![
                cut(&pictures[0], 40),
                cut(&pictures[3], 40),
                cut(&pictures[7], 100),
                cut(&pictures[8], 400),
                b"P5 70000 70000 255\n".to_vec(),
                b"\0\0\0\x1cftypheic\0\0\0\0mif1heic".to_vec(),
            ],
        ),
        Seeds {
            checksums: Checksums::Png,
            ..plain(
                "label_map",
                vec![map.clone(), wide],
                vec![cut(&map, 20), cut(&map, map.len() - 33), jpegs[3].clone()],
            )
        },
        plain(
            "npz",
            statistics.clone(),
            vec![
                b"not a zip".to_vec(),
                cut(&statistics[0], 30),
                npz("{'descr': '<f8', 'fortran_order': False, 'shape': (7,), }"),
                npz(
                    "{'descr': '<f8', 'fortran_order': False, 'shape': (18446744073709551615, 18446744073709551615), }",
                ),
                npz("{'descr': '<f8', 'fortran_order': False, 'shape': (é"),
                npz(&("(".repeat(10_000) + "1" + &",)".repeat(10_000))),
            ],
        ),
        Seeds {
            checksums: Checksums::Matlab,
            ..plain(
                "matlab",
                matrices.clone(),
                matrices.iter().map(|matrix| cut(matrix, 60)).chain([matrices[0][..130].to_vec()]).collect(),
            )
        },
        Seeds {
            checksums: Checksums::Tar,
            ..plain(
                "tar",
                vec![whole.clone()],
                vec![whole[..300].to_vec(), whole[..515].to_vec(), [&vec![1; 512][..], &whole].concat()],
            )
        },
        text(
            "config",
            files("configs", &["smoke.toml", "coco.toml", "demo.toml"]),
            texts(&[
                "seed = ",
                "seed = -1\noutput = 3\n[lora]\nrnak = 4\n",
                "[data]\nsource = [{}]\n[data]\n",
                "a.b.c.d = 1\na.b = 1979-05-27T07:32:00Z\n",
                &("x = ".to_string() + &"[".repeat(5000)),
            ]),
        ),
    ]
}

fn corpus(target: &str) -> PathBuf {
    root().join("fuzz/corpus").join(target)
}

fn write(seeds: &Seeds) {
    let folder = corpus(seeds.target);
    std::fs::create_dir_all(&folder).unwrap();
    let store = |name: String, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    for (index, sound) in seeds.sound.iter().enumerate() {
        store(format!("sound-{index}"), sound);
        for number in 0..MUTATIONS {
            let mut random = mutate::random(1, seeds.target, index as u64 * MUTATIONS + number);
            let mutated = mutate::mutate(sound, seeds.is_text, seeds.checksums, &mut random);
            store(format!("mutated-{index}-{number}"), &mutated);
        }
    }
    seeds.bad.iter().enumerate().for_each(|(index, bad)| store(format!("bad-{index}"), bad));
}

#[test]
fn every_reader_takes_what_is_sound_and_refuses_the_rest_without_a_panic() {
    let seeds = seeds();
    assert_eq!(seeds.iter().map(|seeds| seeds.target).collect::<Vec<_>>(), READERS.map(|(target, _)| target));
    for (seeds, (target, reader)) in seeds.iter().zip(READERS) {
        if std::env::var_os("WRITE_FUZZ_CORPUS").is_some() {
            write(seeds);
        }
        for (index, sound) in seeds.sound.iter().enumerate() {
            assert!(reader(sound), "{target}: sound file {index} is refused");
        }
        for (index, bad) in seeds.bad.iter().enumerate() {
            assert!(!reader(bad), "{target}: bad file {index} is taken");
        }
        let mut count = 0;
        for entry in std::fs::read_dir(corpus(target)).unwrap() {
            reader(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= seeds.sound.len() + seeds.bad.len(), "{target}: {count} files");
    }
}
