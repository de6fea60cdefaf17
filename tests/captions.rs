//! Captions: every form of file with every trap, and which caption goes to which picture.
mod data_config;

use data_config::plain;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use seg4diff::config::{DataConfig, DataFormat};
use seg4diff::data::sources::captions::{Columns, first_by_key};
use seg4diff::data::{Captions, Loader};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content).unwrap();
    file
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const COCO: &str = r#"{"info": {"year": 2017}, "licenses": [{"id": 1}],
    "images": [{"id": 7, "file_name": "a.jpg", "width": 3}, {"id": 8, "file_name": "b.jpg"}, {"id": 9, "file_name": "c.jpg"}],
    "annotations": [{"image_id": 8, "id": 1, "caption": "A bee.\n"}, {"image_id": 7, "id": 2, "caption": "An ay."},
        {"image_id": 7, "id": 3, "caption": "Another ay."}]}"#;

/// The captions of `a` and `b` in every form.
fn forms() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let files =
        archive(&[("x/a.txt", b"An ay.\r\n"), ("./x/b.txt", b"\xef\xbb\xbfA bee."), ("x/._b.txt", b"\x00\x01")]);
    let coco: serde_json::Value = serde_json::from_str(COCO).unwrap();
    let reversed = format!(r#"{{"annotations": {}, "images": {}}}"#, coco["annotations"], coco["images"]);
    vec![
        ("object.json", text(r#"{"a": "An ay.", "b.jpg": " A bee. "}"#)),
        (
            "list.json",
            text(r#"[{"key": "a", "caption": "An ay.", "more": [{}]}, {"key": "b.webp", "caption": "A bee."}]"#),
        ),
        (
            "lines.jsonl",
            text("{\"key\": \"a\", \"caption\": \"An ay.\"}\r\n\r\n{\"key\": \"b\", \"caption\": \"A bee.\"}\r\n"),
        ),
        (
            "metadata.jsonl",
            text("{\"file_name\": \"a.jpg\", \"text\": \"An ay.\"}\n{\"text\": \"A bee.\", \"file_name\": \"b.png\"}"),
        ),
        ("metadata.csv", text("file_name,text\r\na.jpg,An ay.\r\nb.png,\"A bee.\"\r\n")),
        ("table.csv", text("id,caption,key\n1,\"An ay.\r\n\",a\n2,A bee.,b\n")),
        ("table.tsv", text("key\tcaption\na\tAn ay.\nb\tA bee.")),
        ("coco.json", text(COCO)),
        ("reversed.json", text(&reversed)),
        ("files.tar", files.clone()),
        ("files.tar.gz", gzip(&files)),
        ("files.TGZ", gzip(&files)),
    ]
}

fn usual(file: &Path) -> Result<Captions, String> {
    Captions::read(file, Columns::USUAL).map_err(|problem| problem.to_string())
}

#[test]
fn every_form_has_the_same_captions_with_and_without_a_mark() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in forms() {
        let is_text = !name.to_lowercase().contains(".t") || name.ends_with(".tsv");
        let marked = [&b"\xef\xbb\xbf"[..], &content].concat();
        for content in [Some(content), is_text.then_some(marked)].into_iter().flatten() {
            let captions = usual(&write(folder.path(), name, content)).unwrap_or_else(|problem| panic!("{problem}"));
            let get = |key: &str| captions.get(key).unwrap();
            assert_eq!((get("a").as_deref(), get("b").as_deref()), (Some("An ay."), Some("A bee.")), "{name}");
            assert_eq!((captions.count(), get("c")), (2, None), "{name}");
        }
    }
}

#[test]
fn other_encodings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in forms().into_iter().filter(|(name, _)| !name.to_lowercase().starts_with("files")) {
        let text = String::from_utf8(content.clone()).unwrap();
        let wide: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        for wide in [&wide[..], &wide[2..]] {
            let error = usual(&write(folder.path(), name, wide)).err().unwrap();
            assert!(error.contains(name) && error.contains("UTF-16"), "{error}");
        }
        let latin: Vec<u8> = text.replace("bee", "bé").chars().map(|character| character as u8).collect();
        let error = usual(&write(folder.path(), name, latin)).err().unwrap();
        let place = ["record 2", "line 4", "line 1", "line 3", "record 1"];
        assert!(error.contains(name) && place.iter().any(|place| error.contains(place)), "{error}");
    }
    let latin = archive(&[("a.txt", b"An ay."), ("b.txt", b"A b\xe9e.")]);
    assert!(
        usual(&write(folder.path(), "latin.tar", latin))
            .err()
            .unwrap()
            .contains("b.txt: the text is no UTF-8 at byte 3")
    );
}

#[test]
fn two_captions_of_one_key_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let refused = [
        ("a.json", r#"{"a": "one", "b": "x", "a": "two"}"#.to_owned()),
        ("b.json", r#"{"a": "one", "a.jpg": "two"}"#.into()),
        ("c.json", r#"[{"key": "a", "caption": "one"}, {"key": "./a", "caption": "two"}]"#.into()),
        ("d.jsonl", "{\"key\": \"sa_1\", \"caption\": \"one\"}\n{\"key\": \"sa_01\", \"caption\": \"two\"}".into()),
        ("e.csv", "key,caption\nx/a,one\nx\\a,two".into()),
        ("f.json", "{\"caf\u{e9}\": \"one\", \"cafe\u{301}\": \"two\"}".into()),
        ("g.json", r#"[{"key": "a", "caption": "one", "caption": "two"}]"#.into()),
    ];
    for (name, text) in refused {
        let error = usual(&write(folder.path(), name, &text)).err().unwrap_or_else(|| panic!("{name}"));
        assert!(
            error.contains("one") && error.contains("two") && error.contains("twice") || error.contains("one image"),
            "{error}"
        );
        let same = usual(&write(folder.path(), name, text.replace("two", "one")));
        assert!(same.is_ok(), "{name}: {:?}", same.err());
    }
    let file = write(folder.path(), "h.json", r#"{"a": "one", "b": "x", "a": "two"}"#);
    assert!(first_by_key(&file, Columns::USUAL, 2).unwrap_err().to_string().contains("twice"));
}

#[test]
fn what_is_no_file_of_captions_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = |name: &str, content: &[u8]| {
        let error = usual(&write(folder.path(), name, content)).err().unwrap_or_else(|| panic!("{name} is read"));
        assert!(error.contains(name) && !error.contains("panicked"), "{error}");
        error
    };
    assert!(error("a.csv", b"file,text\na,b").contains("no column `key`, only: file, text"));
    assert!(error("b.csv", b"key,caption\na,b,c").contains("record 1: 3 columns, expected the 2"));
    assert!(error("c.csv", b"key,key,caption\na,b,c").contains("two columns `key`"));
    assert!(error("d.csv", b"key,caption\n,x").contains("record 1: a key is empty"));
    assert!(error("e.csv", b"").contains("no column `key`"));
    assert!(error("f.csv", b"key,caption\n").contains("no caption"));
    assert!(error("g.json", COCO.replace("\"caption\"", "\"text\"").as_bytes()).contains("has no `caption`"));
    assert!(
        error("h.json", COCO.replace("\"image_id\": 8", "\"image_id\": 80").as_bytes())
            .contains("image 80, which is not in")
    );
    assert!(error("i.json", br#"{"a": ["x"]}"#).contains("`a` is neither text nor a record with `caption`"));
    assert!(error("j.tar", &[7; 2000]).contains("tar"));
    assert!(error("k.tar.gz", b"no gzip").contains("tar"));
    let whole = gzip(&archive(&[("a.txt", &[b'x'; 5000]), ("b.txt", b"y")]));
    assert!(error("l.tar.gz", &whole[..whole.len() / 2]).contains("tar"));
    assert!(error("m.tar", &archive(&[("a.jpg", b"x")])).contains("no caption"));
    assert!(error("n.tar", &archive(&[("a.txt", b"one"), ("a.txt", b"two")])).contains("`a` is there twice"));
}

/// The decompressed archive is never in memory as a whole: 64 MB of other files are passed over.
#[test]
fn an_archive_is_read_as_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let large = vec![0; 64 << 20];
    let mut files: Vec<(String, Vec<u8>)> =
        (0..2000).map(|number| (format!("SAM/sa_{number}.txt"), format!("Number {number}.").into_bytes())).collect();
    files.insert(1000, ("large.bin".into(), large));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (name.as_str(), text.as_slice())).collect();
    let captions = usual(&write(folder.path(), "a.tar.gz", gzip(&archive(&files)))).unwrap();
    assert_eq!(captions.count(), 2000);
    for number in [0, 999, 1000, 1999] {
        assert_eq!(captions.get(&format!("sa_{number}")).unwrap().unwrap(), format!("Number {number}."));
    }
}

#[test]
fn keys_are_whole_paths_where_both_have_folders() {
    let folder = tempfile::tempdir().unwrap();
    let captions = |text: &str| usual(&write(folder.path(), "a.json", text)).unwrap();
    let one = captions(
        r#"{"dogs/1": "dog", "img/cats/2.JPG": "cat", "3": "three", "C:\\data\\x\\4.png": "four", "caf\u00e9/5": "five"}"#,
    );
    for (key, expected) in [
        ("dogs/1", Some("dog")),
        ("img/dogs/1", Some("dog")),
        ("/data/img/dogs/1", Some("dog")),
        ("cats/1", None),
        ("img/cats/1", None),
        ("1", Some("dog")),
        ("cats/2", Some("cat")),
        ("/x/img/cats/2", Some("cat")),
        ("x/cats/2", None),
        ("any/folder/3", Some("three")),
        ("03", None),
        ("x/4", Some("four")),
        ("y/4", None),
        ("cafe\u{301}/5", Some("five")),
        ("adogs/1", None),
        ("s/1", None),
    ] {
        assert_eq!(one.get(key).unwrap().as_deref(), expected, "{key}");
    }
    // The most of the path decides.
    let nested = captions(r#"{"1": "any", "cats/1": "cat", "b/cats/1": "big cat"}"#);
    for (key, expected) in [("dogs/1", "any"), ("a/cats/1", "cat"), ("b/cats/1", "big cat"), ("x/b/cats/1", "big cat")]
    {
        assert_eq!(nested.get(key).unwrap().as_deref(), Some(expected), "{key}");
    }
}

#[test]
fn many_keys_of_one_name_are_found_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let count = 20_000;
    let all: serde_json::Map<_, _> =
        (0..count).map(|number| (format!("{number:06}/image.jpg"), format!("Number {number}.").into())).collect();
    let captions = usual(&write(folder.path(), "a.json", serde_json::to_string(&all).unwrap())).unwrap();
    for number in 0..count {
        assert_eq!(captions.get(&format!("{number:06}/image")).unwrap().unwrap(), format!("Number {number}."));
    }
}

fn picture(shade: u8) -> Vec<u8> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&[shade; 16 * 16 * 3], 16, 16, ExtendedColorType::Rgb8).unwrap();
    png
}

fn config(sources: &[&Path], captions: Option<PathBuf>) -> DataConfig {
    DataConfig { captions, max_masks: 4, ..plain(DataFormat::Folder, sources) }
}

/// The captions in the order of the pictures, or the error.
fn trained(config: &DataConfig, count: usize) -> Result<Vec<String>, String> {
    let batch = Loader::new(config, 0, None, false).and_then(|mut loader| loader.next_batch(count));
    batch
        .map(|batch| batch.samples.into_iter().map(|sample| sample.prompt).collect())
        .map_err(|error| error.to_string())
}

#[test]
fn a_caption_goes_to_its_own_picture_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["img/cats/1.png", "img/dogs/1.png"] {
        write(folder.path(), name, picture(9));
    }
    let captions = |text: &str| Some(write(folder.path(), "captions.json", text));
    let (img, cats, dogs) = (at("img"), at("img/cats"), at("img/dogs"));
    let both = ["a cat".to_owned(), "a dog".to_owned()];
    for text in [
        r#"{"cats/1": "a cat", "dogs/1": "a dog"}"#,
        r#"{"img/cats/1.png": "a cat", "img/dogs/1.png": "a dog"}"#,
        r#"{"cats\\1.png": "a cat", ".\\dogs\\1.png": "a dog"}"#,
        r#"{"1": "a cat", "dogs/1": "a dog"}"#,
    ] {
        assert_eq!(trained(&config(&[&img], captions(text)), 2).as_deref(), Ok(&both[..]), "{text}");
        assert_eq!(trained(&config(&[&cats, &dogs], captions(text)), 2).as_deref(), Ok(&both[..]), "{text}");
    }
    let foreign = captions(r#"{"dogs/1": "a dog"}"#);
    for sources in [&[&*img][..], &[&*cats]] {
        let error = trained(&config(sources, foreign.clone()), 1).unwrap_err();
        assert!(error.contains("cats/1.png: the captions file has no caption of this key"), "{error}");
    }
    let shared = captions(r#"{"1": "a cat or a dog"}"#);
    for sources in [&[&*img][..], &[&*cats, &*dogs]] {
        let error = trained(&config(sources, shared.clone()), 2).unwrap_err();
        assert!(error.contains("the caption of `1` fits") && error.contains("write their folders"), "{error}");
    }
    // One picture may have it in every epoch.
    assert_eq!(trained(&config(&[&cats], shared), 3).unwrap(), ["a cat or a dog"; 3]);
}

#[test]
fn texts_beside_pictures_are_utf_8_without_a_mark() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "img/p.png", picture(9));
    let caption = |text: &[u8]| {
        write(folder.path(), "img/p.txt", text);
        trained(&config(&[&folder.path().join("img")], None), 1)
    };
    assert_eq!(caption(b"\xef\xbb\xbfa cat\r\n").unwrap(), ["a cat"]);
    assert!(caption(b"\xff\xfea\0 \0c\0a\0t\0").unwrap_err().contains("p.png: the caption: the text is UTF-16"));
    assert!(caption(b"a \xff").unwrap_err().contains("no UTF-8 at byte 2"));
}
