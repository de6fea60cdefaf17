//! Tar shards: whatever the order of their members, compressed or not, and what belongs to no sample.
use crate::world::{config, outcome, pack, write};
use seg4diff::config::{Allowed, DataConfig, DataFormat};
use seg4diff::data::{Cursor, Loader};
use std::path::Path;

/// Packs `files` into `name` below a folder, which is the source.
fn packed(name: &str, files: &str) -> (tempfile::TempDir, DataConfig) {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("data");
    write(&folder.path().join("members"), files);
    pack(&folder.path().join("members"), files, &root.join(name), name.to_lowercase().ends_with("gz"));
    let mut config = config(&root);
    config.max_broken = 0.5;
    (folder, config)
}

/// The samples of a tar file of format folder.
fn samples(name: &str, files: &str) -> Result<String, String> {
    let (_folder, config) = packed(name, files);
    outcome(&config).map(|(_, samples)| samples)
}

#[test]
fn webdataset_shards_pair_by_name_in_any_order() {
    for name in ["s.tar", "s.TAR", "s.tar.gz", "s.Tgz"] {
        for (files, right) in [
            ("a.jpg a.txt b.webp b.txt", "a[a]0 b[b]0"),
            ("a.txt b.txt a.jpg b.jpg b.png a.png", "a[a]2 b[b]2"),
            ("a_mask.png a.jpg a.txt b.1.png b.0.png b.jpg b.txt", "a[a]2 b[b]2"),
            ("masks/x.png images/x.jpg images/x.txt", "images/x[x]2"),
            ("a.png a.caption=one b.PNG b.txt", "a[one]0 b[b]0"),
            ("./x/a.JPG x/./a.txt y/a.jpg y/a.txt=other", "x/a[a]0 y/a[other]0"),
        ] {
            assert_eq!(samples(name, files).as_deref(), Ok(right), "{name} of {files}");
        }
    }
}

#[test]
fn what_belongs_to_no_sample_counts_as_broken_unless_it_is_accepted() {
    let many = "a.jpg a.txt b.jpg b.txt c.jpg c.txt";
    for (more, allowed, reason) in [
        ("d.txt", Allowed::PicturesMissing, "1 caption without its photograph: d;"),
        ("d.jpg", Allowed::CaptionsMissing, "there is no caption"),
        ("d.heic", Allowed::FilesUnread, "d.heic is in a format that is not read"),
        ("d_mask.png", Allowed::PicturesMissing, "there is no image of this mask"),
        ("masks/d.png", Allowed::PicturesMissing, "there is no image of this mask"),
    ] {
        let (_folder, mut config) = packed("s.tar", &format!("{many} {more}"));
        config.max_broken = 0.0;
        let error = outcome(&config).expect_err(more);
        assert!(error.contains(reason) && error.contains("s.tar"), "{error}");
        config.max_broken = 0.4;
        assert_eq!(outcome(&config).expect(more).1, "a[a]0 b[b]0 c[c]0");
        (config.max_broken, config.allow) = (0.0, vec![allowed]);
        assert_eq!(outcome(&config).expect(more).1, "a[a]0 b[b]0 c[c]0");
    }
}

#[test]
fn folders_with_shards_hold_no_other_samples() {
    for (other, is_right) in [("b.jpg", false), ("b.json", false), ("README.md", true), ("b.heic", false)] {
        let (folder, config) = packed("s.tar", "a.jpg a.txt");
        write(&folder.path().join("data"), other);
        let found = outcome(&config);
        match is_right {
            true => assert_eq!(found.expect("samples").1, "a[a]0"),
            false => {
                let error = found.expect_err("beside a shard");
                assert!(error.contains(&format!("1 file of a sample beside tar shards: {other}")), "{error}");
            }
        }
    }
    let (folder, mut config) = packed("nested/s.tar", "a.jpg a.txt");
    assert_eq!(outcome(&config).expect("nested").1, "a[a]0");
    config.format = DataFormat::Coco;
    write(&folder.path().join("data"), "x.jpg classes.json={\"5\":\"cat\"} lab/x.png");
    config.classes = Some(folder.path().join("data/classes.json"));
    config.labels = Some(folder.path().join("data/lab"));
    let error = outcome(&config).expect_err("coco reads no shards");
    assert!(error.contains("1 archive that is not read: nested/s.tar"), "{error}");
}

#[test]
fn compressed_shards_are_told_by_their_bytes() {
    let (folder, config) = packed("s.tar.gz", "a.jpg a.txt b.jpg b.txt");
    let root = folder.path().join("data");
    std::fs::rename(root.join("s.tar.gz"), root.join("s.tar")).expect("rename");
    assert_eq!(outcome(&config).expect("samples").1, "a[a]0 b[b]0");
    let (folder, config) = packed("s.tar", "a.jpg a.txt");
    let root = folder.path().join("data");
    std::fs::rename(root.join("s.tar"), root.join("s.tar.gz")).expect("rename");
    let error = outcome(&config).expect_err("no gzip");
    assert!(error.contains("s.tar.gz") && error.contains("gzip: "), "{error}");
}

#[test]
fn links_in_shards_are_no_samples_and_said() {
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::GNUSparse] {
        let (folder, mut config) = packed("s.tar", "a.jpg a.txt");
        let file = folder.path().join("data/s.tar");
        let mut bytes = std::fs::read(&file).expect("read");
        // Behind the members, before the mark of the end.
        bytes.truncate(bytes.len() - 1024);
        let mut archive = tar::Builder::new(bytes);
        for (link, to) in [("b.jpg", "a.jpg"), ("b.txt", "a.txt")] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            archive.append_link(&mut header, link, to).expect("link");
        }
        std::fs::write(&file, archive.into_inner().expect("tar")).expect("write");
        config.max_broken = 0.0;
        let error = outcome(&config).expect_err("links");
        assert!(error.contains("2 links or sparse files in tar files: b.jpg, b.txt; only plain files"), "{error}");
        config.allow = vec![Allowed::FilesUnread];
        assert_eq!(outcome(&config).expect("accepted").1, "a[a]0");
    }
}

#[test]
fn what_is_no_shard_is_named() {
    for (content, kind) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"[..], "git lfs pull"),
        (b"<html><body>404", "a web page"),
        (b"PK\x03\x04more", "a zip archive"),
        (b"no archive at all", "cut short within a header"),
    ] {
        let (folder, mut config) = packed("s.tar", "a.jpg a.txt");
        std::fs::write(folder.path().join("data/s.tar"), content).expect("write");
        config.max_broken = 0.0;
        let error = outcome(&config).expect_err("no shard");
        assert!(error.contains("s.tar") && error.contains(kind), "{error}");
    }
}

#[test]
fn captions_of_a_file_may_lack_samples_of_shards_where_that_is_accepted() {
    let (folder, mut config) = packed("s.tar", "a.jpg b.jpg x/c.jpg");
    let file = folder.path().join("captions.json");
    std::fs::write(&file, r#"{"a": "one", "x/c": "three"}"#).expect("write");
    (config.captions, config.max_broken) = (Some(file), 0.0);
    let error = outcome(&config).expect_err("one lacks");
    assert!(error.contains("s.tar/b: the captions file has no caption of this key"), "{error}");
    config.allow = vec![Allowed::CaptionsMissing];
    assert_eq!(outcome(&config).expect("accepted").1, "a[one]0 x/c[three]0");
}

#[test]
fn a_damaged_compressed_shard_is_named_and_its_beginning_used() {
    let files = (0..40).map(|number| format!("{number:02}.jpg {number:02}.txt")).collect::<Vec<_>>().join(" ");
    let (folder, mut config) = packed("s.tar.gz", &files);
    let tar = folder.path().join("data/s.tar.gz");
    let bytes = std::fs::read(&tar).expect("read");
    std::fs::write(&tar, &bytes[..bytes.len() / 2]).expect("cut");
    config.max_broken = 0.0;
    let error = outcome(&config).expect_err("damage");
    assert!(error.contains("s.tar.gz"), "{error}");
    config.max_broken = 1.0;
    assert!(outcome(&config).expect("the beginning").1.starts_with("00[00]0 01[01]0"));
    std::fs::write(&tar, b"no gzip").expect("write");
    assert!(outcome(&config).expect_err("no gzip").contains("gzip: "));
}

/// Keys of `count` samples from `start` on, and the position behind each.
fn stream(config: &DataConfig, start: Option<&Cursor>, count: usize) -> Vec<(String, Cursor)> {
    let mut loader = Loader::new(config, 3, start, false).expect("loader");
    let next = |_| {
        let batch = loader.next_batch(1).expect("sample");
        (batch.samples[0].key.clone(), batch.cursor)
    };
    (0..count).map(next).collect()
}

#[test]
fn compressed_shards_resume_at_every_sample() {
    let files = (0..12).map(|number| format!("{number}.jpg {number}.txt")).collect::<Vec<_>>().join(" ");
    let (_folder, mut config) = packed("s.tar.gz", &files);
    config.shuffle_buffer = 5;
    let all = stream(&config, None, 30);
    for (at, (_, cursor)) in all.iter().enumerate().take(25) {
        assert_eq!(stream(&config, Some(cursor), 4), all[at + 1..][..4], "after {at}");
    }
}

#[test]
fn brace_patterns_name_shards_one_by_one() {
    let folder = tempfile::tempdir().expect("folder");
    for number in 0..3 {
        let members = folder.path().join("members");
        let files = format!("{number}.jpg {number}.txt");
        write(&members, &files);
        pack(&members, &files, &folder.path().join(format!("data/s_00{number}.tar")), false);
    }
    let of = |pattern: &str| {
        let mut config = config(Path::new("x"));
        config.source = vec![folder.path().join(pattern).to_str().expect("path").to_owned()];
        outcome(&config).map(|(_, samples)| samples)
    };
    assert_eq!(of("data/s_{000..002}.tar").as_deref(), Ok("0[0]0 1[1]0 2[2]0"));
    assert_eq!(of("data/s_00{2,0}.tar").as_deref(), Ok("2[2]0 0[0]0"));
    let error = of("data/s_{000..003}.tar").expect_err("a shard is missing");
    assert!(error.contains("nothing matches") && error.contains("s_003.tar"), "{error}");
}
