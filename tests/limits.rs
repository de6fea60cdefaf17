//! Small files that would be large in memory, absurd sizes, and input that makes decoders panic: one clear error within
//! 2 GB of address space.
mod folder_copy;
mod limited;

use flate2::{Compression, write::ZlibEncoder};
use limited::{run, seg4diff};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder with the smoke run's model and data, and a config for one step of it.
struct World(tempfile::TempDir);

const TRAIN: &str = "train --config c.toml";
const FID: &str = "evaluate fid --real real --generated real --features features";
const SEGMENTATION: &str = "evaluate segmentation --model model --layer 1 --size 64 --images images --labels labels \
                            --classes classes.json";
const LABELS: &str = "prepare labels --mat mat --out out";
const GENERATE: &str = "generate --model model --prompt cat --size 64 --steps 1 --out out";

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().expect("folder"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        folder_copy::copy(&root.join("checkpoints/smoke-base"), &world.path("model"));
        folder_copy::copy(&root.join("checkpoints/demo-features"), &world.path("features"));
        folder_copy::copy(&root.join("data/smoke"), &world.path("data"));
        world.write(
            "c.toml",
            "output = \"run\"\ndevice = \"cpu\"\n[model]\npath = \"model\"\nexpert_layer = 1\n[train]\nsteps = 1\n\
             batch = 1\naccumulate = 1\n[data]\nresolution = 64\nsource = [\"data/sa_000000.tar\"]\n\
             captions = \"data/captions.json\"\nmax_broken = 0.0\nworkers = 1\n",
        );
        for folder in ["real", "images", "labels", "mat"] {
            fs::create_dir(world.path(folder)).expect("folder");
        }
        world.write("classes.json", "[\"nothing\", \"cat\"]");
        world.write("images/a.png", png(32, 32, 0, 8, &[]));
        world.write("labels/a.png", png(32, 32, 0, 8, &[]));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("write");
    }

    /// A file of these bytes, then zeros up to `length`, stored sparsely.
    fn sparse(&self, name: &str, content: &[u8], length: u64) {
        self.write(name, content);
        File::options().write(true).open(self.path(name)).and_then(|file| file.set_len(length)).expect("sparse");
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).expect("read");
        assert!(text.contains(from), "{from} in {file}");
        self.write(file, text.replace(from, to));
    }

    /// Runs a command that must fail with a status of 1 or 2 and one error that holds each of `parts`.
    fn refused(&self, args: &str, parts: &[&str]) {
        let ended = run(seg4diff(self.0.path()).args(args.split_whitespace()), 60);
        let said = &ended.said;
        assert!(matches!(ended.status, Some(1 | 2)), "{:?}: {said}", ended.status);
        assert!(!said.contains("panicked") && said.matches("error: ").count() == 1, "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{part:?} is not said: {said}"));
    }
}

/// A PNG of zeros: colour type and depth as in the format, `more` chunks before the pixels.
fn png(width: u32, height: u32, color: u8, depth: u8, more: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let channels = [1, 0, 3, 1, 2, 0, 4][usize::from(color)];
    let row = 1 + (u64::from(width) * channels * u64::from(depth)).div_ceil(8);
    png_of(width, height, color, depth, more, &zeros(row * u64::from(height)))
}

/// A PNG header without pixels, for sizes that are refused before pixels are read.
fn large_png(width: u32, height: u32, color: u8, depth: u8) -> Vec<u8> {
    png_of(width, height, color, depth, &[], &zeros(1 << 20))
}

fn png_of(width: u32, height: u32, color: u8, depth: u8, more: &[(&[u8; 4], Vec<u8>)], pixels: &[u8]) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([depth, color, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        let typed = [kind, data].concat();
        bytes.extend(&typed);
        let mut sum = flate2::Crc::new();
        sum.update(&typed);
        bytes.extend(sum.sum().to_be_bytes());
    };
    chunk(b"IHDR", &header);
    more.iter().for_each(|(kind, data)| chunk(kind, data));
    chunk(b"IDAT", pixels);
    chunk(b"IEND", &[]);
    bytes
}

/// `count` zeros, compressed with zlib.
fn zeros(count: u64) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), count), &mut encoder).expect("compress");
    encoder.finish().expect("compress")
}

/// A tar header with a valid checksum.
fn tar_header(kind: u8, name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("name");
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn pictures() {
    let world = World::new();
    world.write("real/grey.png", png(23_000, 23_000, 0, 8, &[]));
    world.refused(FID, &["real/grey.png", "23000×23000 pixels, more than the 178956970"]);
    fs::remove_file(world.path("real/grey.png")).expect("remove");
    world.write("real/deep.png", large_png(13_000, 13_000, 6, 16));
    world.refused(FID, &["real/deep.png", "13000×13000 pixels: would take 1.9 GB in memory, more than the 1.1 GB"]);
    fs::remove_file(world.path("real/deep.png")).expect("remove");

    // A profile and a text that inflate to gigabytes are skipped, or refused.
    let profile = [b"p\0\0".to_vec(), zeros(1 << 27)].concat();
    let text = [b"t\0\0".to_vec(), zeros(1 << 27)].concat();
    // Other formats, with another size in their headers.
    let fixture = |name: &str| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures");
        fs::read(fixtures.join(name)).expect("fixture")
    };
    let patched = |name: &str, patches: &[(usize, &[u8])]| {
        let mut bytes = fixture(name);
        patches.iter().for_each(|(at, patch)| bytes[*at..*at + patch.len()].copy_from_slice(patch));
        bytes
    };
    // The value of a tag in the little-endian directory of a TIFF.
    let tag = |name: &str, tag: u8| {
        let bytes = fixture(name);
        8 + bytes.windows(4).position(|window| window == [tag, 1, 3, 0] || window == [tag, 1, 4, 0]).expect("a tag")
    };
    let [width, height, rows] = [0, 1, 0x16].map(|number| tag("rgb-raw.tiff", number));
    let side = 60_000u16.to_le_bytes();
    for (name, content, problem) in [
        ("a.bmp", patched("rgb.bmp", &[(18, &60_000u32.to_le_bytes()), (22, &60_000u32.to_le_bytes())]), "60000×60000"),
        ("a.gif", patched("palette.gif", &[(6, &side), (8, &side)]), "60000×60000"),
        ("b.gif", patched("palette.gif", &[(6, &13_000u16.to_le_bytes()), (8, &13_000u16.to_le_bytes())]), "1.2 GB"),
        ("a.tiff", patched("rgb-raw.tiff", &[(width, &side), (height, &side), (rows, &side)]), "60000×60000"),
        ("a.ppm", b"P6 60000 60000 255\n".to_vec(), "60000×60000"),
        ("a.webp", patched("lossless.webp", &[(21, &[0xaf, 0xf6, 0xab, 0x0d])]), "14000×14000"),
    ] {
        world.write(&format!("real/{name}"), &content);
        world.refused(FID, &[&format!("real/{name}"), problem]);
        fs::remove_file(world.path(&format!("real/{name}"))).expect("remove");
    }
    let hexadecimal: Vec<u8> = [&b"Raw profile type exif\0\0"[..], &zeros(1 << 30)].concat();
    let bomb = png(64, 64, 2, 8, &[(b"iCCP", profile), (b"zTXt", text), (b"zTXt", hexadecimal)]);
    for name in ["a", "b"] {
        world.write(&format!("real/{name}.png"), &bomb);
    }
    let ended = run(seg4diff(world.0.path()).args(FID.split_whitespace()), 60);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
    fs::write(world.path("images/a.png"), png(64, 64, 2, 8, &[])).expect("write");
    world.write("labels/a.png", large_png(60_000, 60_000, 0, 1));
    world.refused(SEGMENTATION, &["labels/a.png", "60000×60000 pixels, more than"]);
}

#[test]
fn matlab_files_are_inflated_as_far_as_they_say() {
    let world = World::new();
    let element = |kind: u32, data: &[u8]| {
        let mut bytes = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    // The matrix holds as many numbers as it claims.
    let file = |height: u32, width: u32, count: u32, there: u64| {
        let sides = [height.to_le_bytes(), width.to_le_bytes()].concat();
        let head = [element(6, &[4, 0, 0, 0, 0, 0, 0, 0]), element(5, &sides), element(1, b"LabelMap")].concat();
        let length = head.len() as u32 + 8 + count;
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        let tags = [[14, length].map(u32::to_le_bytes).concat(), head, [2, count].map(u32::to_le_bytes).concat()];
        encoder.write_all(&tags.concat()).expect("compress");
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), there), &mut encoder).expect("compress");
        let data = encoder.finish().expect("compress");
        let mut bytes = vec![b' '; 124];
        bytes.extend([0, 1, b'I', b'M']);
        bytes.extend([15, data.len() as u32].map(u32::to_le_bytes).concat());
        [bytes, data].concat()
    };
    world.write("mat/a.mat", file(20_000, 25_000, 500_000_000, 500_000_000));
    world.refused(LABELS, &["mat/a.mat", "LabelMap: 25000×20000 pixels, more than"]);
    world.write("mat/a.mat", file(12_000, 13_000, 156_000_000, 1000));
    world.refused(LABELS, &["mat/a.mat", "would take 624.0 MB in memory, more than the 536.9 MB that a label map"]);
    world.write("mat/a.mat", file(100, 100, 500_000_000, 1000));
    world.refused(LABELS, &["mat/a.mat", "has 500000000 numbers, but is 100 by 100"]);
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/faults/mat-inflates-to-gigabytes.mat");
    match fs::read(shared) {
        Ok(bytes) => {
            world.write("mat/a.mat", bytes);
            world.refused(LABELS, &["mat/a.mat"]);
        }
        Err(_) => println!("without ../shared: its example was skipped"),
    }
}

#[test]
fn statistics_are_those_of_the_network_or_not_inflated() {
    let world = World::new();
    let mut archive = zip::ZipWriter::new(File::create(world.path("stats.npz")).expect("file"));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, shape, values) in [("mu", "(9000,)", 9_000), ("sigma", "(9000, 9000)", 9_000 * 9_000)] {
        archive.start_file(format!("{name}.npy"), options).expect("member");
        let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n");
        let head = [b"\x93NUMPY\x01\x00".to_vec(), (text.len() as u16).to_le_bytes().to_vec(), text.into_bytes()];
        archive.write_all(&head.concat()).expect("write");
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 8 * values), &mut archive).expect("write");
    }
    archive.finish().expect("finish");
    let error = seg4diff::eval::generation::npz::read(&world.path("stats.npz"), 2048).unwrap_err().to_string();
    assert!(error.contains("stats.npz: features of length 9000, expected 2048"), "{error}");
    // A file whose claimed shape differs from its data is read as far as the shape says.
    let peak = seg4diff::system::memory::peak_bytes().map(|bytes| bytes / 1024);
    assert!(peak.is_some() || cfg!(not(target_os = "linux")));
    assert!(peak.is_none_or(|kilobytes| kilobytes < 1_000_000), "{peak:?} kB");
}

#[test]
fn headers_of_tensor_files() {
    let world = World::new();
    world.sparse("lora.safetensors", &5_300_000_000u64.to_le_bytes(), 5_400_000_000);
    let args = format!("{SEGMENTATION} --lora lora.safetensors");
    world
        .refused(&args, &["lora.safetensors", "would take 5.3 GB in memory, more than the 67.1 MB that a safetensors"]);
    let file = "model/transformer/diffusion_pytorch_model.safetensors";
    world.sparse(file, &3_000_000_000u64.to_le_bytes(), 3_100_000_000);
    world.refused(TRAIN, &["diffusion_pytorch_model.safetensors", "3.0 GB in memory"]);
    // A tensor as large as its file claims, larger than the machine's memory.
    if cfg!(not(target_os = "linux")) {
        return;
    }
    let header = r#"{"a":{"dtype":"F32","shape":[1500000000],"data_offsets":[0,6000000000]}}"#;
    let head = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    world.sparse("lora.safetensors", &head, 6_000_000_000 + head.len() as u64);
    world.refused(&args, &["lora.safetensors", "needs 6.0 GB of memory at once"]);
}

#[test]
fn names_and_members_of_tar_files() {
    let world = World::new();
    let shard = "data/sa_000000.tar";
    let whole = fs::read(world.path(shard)).expect("read");
    for kind in [b'L', b'K', b'x', b'g'] {
        world.sparse(shard, &tar_header(kind, "././@LongLink", 7_000_000_000), 7_100_000_000);
        world.refused(TRAIN, &[shard, "a name or extension header of 7000000000 bytes, more than 65536"]);
        // A header of unknown length loses what follows; a sound file does not.
        let short = [tar_header(b'g', "pax_global_header", 20), vec![b'\n'; 512], whole.clone()].concat();
        world.write(shard, short);
        let ended = run(seg4diff(world.0.path()).args(TRAIN.split_whitespace()), 60);
        assert_eq!(ended.status, Some(0), "{}", ended.said);
        fs::remove_dir_all(world.path("run")).expect("remove");
    }
    for (name, what) in [("sa_1.jpg", "an image file"), ("sa_1.json", "an image's annotations")] {
        let other = if name == "sa_1.jpg" { "sa_1.json" } else { "sa_1.jpg" };
        let image = if other == "sa_1.jpg" { png(64, 64, 2, 8, &[]) } else { b"{\"annotations\": []}".to_vec() };
        let mut head = tar_header(b'0', other, image.len() as u64);
        head.extend(&image);
        head.resize(head.len().next_multiple_of(512), 0);
        head.extend(tar_header(b'0', name, 3_000_000_000));
        let end = head.len() as u64 + 3_000_000_000;
        world.sparse(shard, &head, end.next_multiple_of(512));
        world.write("data/captions.json", "{\"sa_1\": \"A cat.\"}");
        world.refused(TRAIN, &[shard, "3.0 GB in memory", what]);
        folder_copy::copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/smoke"), &world.path("data"));
    }
}

#[test]
fn long_texts() {
    const LONG: u64 = 3_000_000_000;
    let phrases = "evaluate referring --model model --layer 1 --size 64 --images images --phrases phrases.jsonl";
    for (file, args) in [
        ("c.toml", TRAIN),
        ("classes.json", SEGMENTATION),
        ("model/transformer/config.json", TRAIN),
        ("model/model_index.json", GENERATE),
        ("model/vae/config.json", TRAIN),
        ("model/scheduler/scheduler_config.json", TRAIN),
        ("model/tokenizer/vocab.json", TRAIN),
        ("model/tokenizer/merges.txt", TRAIN),
        ("model/tokenizer/tokenizer_config.json", TRAIN),
        ("phrases.jsonl", phrases),
        ("set.toml", "evaluate segmentation --model model --layer 1 --size 64 --data-set set.toml --root ."),
        ("features/config.json", "evaluate fid --real images --generated images --features features"),
    ] {
        let world = World::new();
        world.sparse(file, b"", LONG);
        world.refused(args, &[file.rsplit('/').next().expect("name"), "in memory, more than the"]);
    }
}

/// `parquet` recurses into nested columns until its stack overflows, and allocates whatever a page claims.
#[test]
fn columns_and_pages_of_parquet_files() {
    let world = World::new();
    let captions = format!("{TRAIN} --set data.captions=captions.parquet");
    let file = |footer: &[u8]| {
        let length = (footer.len() as u32).to_le_bytes();
        [b"PAR1", footer, &length, b"PAR1"].concat()
    };
    // A list of a million elements, each the only child of its predecessor: Thrift's compact protocol.
    let group = [0x35, 0, 0x18, 1, b'a', 0x15, 2, 0];
    let head = [0x15, 2, 0x19, 0xfc, 0xc1, 0x84, 0x3d];
    let leaf = [0x15, 12, 0x25, 0, 0x18, 1, b'b', 0];
    let nested = [&head[..], &group.repeat(1_000_000), &leaf, &[0x16, 0, 0x19, 0x0c, 0]].concat();
    world.write("captions.parquet", file(&nested));
    world.refused(&captions, &["captions.parquet", "columns are nested 1000001 deep, more than 64"]);
    world.sparse("captions.parquet", b"PAR1", 5_000_000_000);
    let mut opened = File::options().append(true).open(world.path("captions.parquet")).expect("open");
    opened.write_all(&[&3_000_000_000u32.to_le_bytes()[..], b"PAR1"].concat()).expect("write");
    world.refused(&captions, &["captions.parquet", "3.0 GB in memory, more than the 16.8 MB that a Parquet footer"]);
    // The first page of a sound file, claiming two gigabytes.
    let sound = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/captions.parquet");
    let mut bytes = fs::read(sound).expect("read");
    let page = bytes.windows(3).position(|run| run[0] == 0x15 && run[2] == 0x15).expect("a page's header");
    bytes.splice(page + 3..page + 4 + usize::from(bytes[page + 3] & 0x80 != 0), [0xfe, 0xff, 0xff, 0xff, 0x0f]);
    world.write("captions.parquet", bytes);
    let ended = run(seg4diff(world.0.path()).args(captions.split_whitespace()), 60);
    assert!(ended.status == Some(1) && ended.said.contains("captions.parquet"), "{}", ended.said);
    assert!(!ended.said.contains("panicked"), "{}", ended.said);
}

/// `png` 0.18.1 panics on a palette whose length is not a multiple of three.
#[test]
fn what_a_decoder_panics_over_is_an_error() {
    let palette = |length: usize| png(8, 8, 3, 8, &[(b"PLTE", vec![1; length])]);
    for picture in [palette(4), palette(5), palette(1)] {
        let world = World::new();
        for folder in ["real", "images"] {
            world.write(&format!("{folder}/a.png"), &picture);
        }
        world.refused(FID, &["real/a.png"]);
        world.refused(SEGMENTATION, &["images/a.png"]);
        let mut shard = Vec::new();
        for (name, content) in [("sa_1.png", picture), ("sa_1.json", b"{\"annotations\": []}".to_vec())] {
            shard.extend(tar_header(b'0', name, content.len() as u64));
            shard.extend(&content);
            shard.resize(shard.len().next_multiple_of(512), 0);
        }
        world.write("data/sa_000000.tar", shard);
        world.write("data/captions.json", "{\"sa_1\": \"A cat.\"}");
        world.replace("c.toml", "[data]\n", "[data]\nallow = [\"masks_unused\"]\n");
        world.refused(TRAIN, &["data/sa_000000.tar/sa_1"]);
        // A cache is filled with the sound samples.
        let cache = run(seg4diff(world.0.path()).args("prepare cache --config c.toml --out cache".split(' ')), 60);
        assert!(cache.status == Some(0) && cache.said.contains("passed over"), "{}", cache.said);
        assert!(!cache.said.contains("panicked"), "{}", cache.said);
    }
}

/// Sizes that no model has: refused with the file that names them, or with weights of other sizes.
#[test]
fn absurd_sizes_in_the_configuration_of_a_model() {
    let sizes = ["0", "1000000000", "4611686018427387904", "18446744073709551615"];
    for (file, keys) in [
        (
            "model/transformer/config.json",
            &[
                "patch_size",
                "in_channels",
                "out_channels",
                "num_layers",
                "attention_head_dim",
                "num_attention_heads",
                "joint_attention_dim",
                "caption_projection_dim",
                "pooled_projection_dim",
                "pos_embed_max_size",
            ][..],
        ),
        (
            "model/vae/config.json",
            &["in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups"],
        ),
        (
            "model/text_encoder/config.json",
            &[
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "max_position_embeddings",
                "projection_dim",
            ],
        ),
    ] {
        for key in keys {
            let world = World::new();
            let sound = fs::read_to_string(world.path(file)).expect("read");
            let mut config: serde_json::Value = serde_json::from_str(&sound).expect("JSON");
            for size in sizes {
                config[*key] = serde_json::from_str(size).expect("number");
                world.write(file, config.to_string());
                for args in [TRAIN, GENERATE, "prepare cache --config c.toml --out cache"] {
                    let ended = run(seg4diff(world.0.path()).args(args.split_whitespace()), 60);
                    let said = format!("{file} {key} {size} {args}: {:?} {}", ended.status, ended.said);
                    // The text cache needs only the transformer's widths, the latents cache nothing of it.
                    let may_pass = args.starts_with("prepare");
                    assert!(matches!(ended.status, Some(1 | 2)) || may_pass && ended.status == Some(0), "{said}");
                    assert!(!said.contains("panicked"), "{said}");
                }
            }
        }
    }
    let world = World::new();
    for (size, said) in [("1e400", "number out of range"), ("[1, 2]", "invalid type"), ("-1", "invalid value")] {
        world.write("model/vae/config.json", fs::read(world.path("model/vae/config.json")).expect("read"));
        let sound = fs::read_to_string(world.path("model/transformer/config.json")).expect("read");
        world.replace("model/transformer/config.json", "\"patch_size\": 2", &format!("\"patch_size\": {size}"));
        world.refused(GENERATE, &["model/transformer/config.json", said]);
        world.write("model/transformer/config.json", sound);
    }
}
