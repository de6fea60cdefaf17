//! Broken training data, and settings that do not suit the model.
use super::world::{Case, World, cut, nothing, try_all};

const TRAIN: &[&str] = &["train", "--config", "c.toml"];
const RESUME: &[&str] = &["train", "--config", "c.toml", "--resume"];
const SHARD: &str = "data/sa_000000.tar";

/// A shard with these files.
fn shard(world: &World, files: &[(&str, &str)]) {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_bytes()).expect("append");
    }
    world.write(SHARD, builder.into_inner().expect("shard"));
}

const DATA: &[Case] = &[
    ("empty shard", |w| w.write(SHARD, ""), TRAIN, 1, &["epoch 0 had no usable sample in data/sa_000000.tar"]),
    ("shard of nothing but zeros", |w| w.write(SHARD, [0; 10240]), TRAIN, 1, &["epoch 0 had no usable sample"]),
    ("shard that is no tar", |w| w.write(SHARD, "tar? ".repeat(400)), TRAIN, 1, &[SHARD, "member 0 on: no header"]),
    (
        "shard cut within its first file",
        |w| {
            let content = std::fs::read(w.path(SHARD)).expect("read");
            w.write(SHARD, &content[..2000])
        },
        TRAIN,
        1,
        &[SHARD],
    ),
    (
        "shard of broken samples alone",
        |w| shard(w, &[("sa_1.jpg", "no picture"), ("sa_1.json", "{}"), ("sa_2.jpg", "nor this"), ("sa_2.json", "[")]),
        TRAIN,
        1,
        &["2 of 2 samples are broken", "data.max_broken", "for example data/sa_000000.tar/sa_1"],
    ),
    (
        "shard without pictures",
        |w| shard(w, &[("sa_1.json", "{}"), ("notes.md", "x")]),
        TRAIN,
        1,
        &["1 of 1 samples are broken", "sa_1"],
    ),
    (
        "captions of other pictures",
        |w| w.write("data/captions.json", "{\"sa_9999\": \"a dog\"}"),
        TRAIN,
        1,
        &["data.max_broken", "no caption of this key"],
    ),
    (
        "captions that are no JSON",
        |w| w.write("data/captions.json", "{\"sa_1\": "),
        TRAIN,
        1,
        &["data/captions.json", "line 1"],
    ),
    (
        "captions that are numbers",
        |w| w.write("data/captions.json", "{\"sa_1\": 4}"),
        TRAIN,
        1,
        &["data/captions.json", "4"],
    ),
    ("captions file that is empty", |w| w.write("data/captions.json", ""), TRAIN, 1, &["data/captions.json"]),
    (
        "no caption in the file",
        |w| w.write("data/captions.json", "{}"),
        TRAIN,
        1,
        &["data/captions.json", "no caption"],
    ),
    (
        "records without the key column",
        |w| w.write("data/captions.json", "[{\"image\": \"sa_1\", \"caption\": \"a\"}]"),
        TRAIN,
        1,
        &["data/captions.json", "`key`", "image"],
    ),
    (
        "Parquet that is none",
        |w| {
            w.write("data/c.parquet", "PAR1");
            w.replace("c.toml", "captions.json", "c.parquet")
        },
        TRAIN,
        1,
        &["data/c.parquet", "Parquet"],
    ),
    (
        "captions nowhere",
        |w| w.replace("c.toml", "captions = \"data/captions.json\"\n", ""),
        TRAIN,
        2,
        &["data.captions", SHARD],
    ),
    (
        "masks too small to count",
        |w| {
            w.add("min_mask_area = 0.99\n");
            w.replace("c.toml", "steps = 2", "steps = 30")
        },
        TRAIN,
        1,
        &["usable mask", "data.min_mask_area"],
    ),
    (
        "shard that cannot be read",
        |w| {
            w.remove(SHARD);
            std::fs::create_dir(w.path(SHARD)).expect("folder")
        },
        TRAIN,
        2,
        &["data/sa_000000.tar holds no files"],
    ),
    (
        "resolution beyond the model's positions",
        |w| w.replace("c.toml", "resolution = 64", "resolution = 512"),
        TRAIN,
        2,
        &["512", "at most 256"],
    ),
    (
        "resolution of half a token",
        |w| w.replace("c.toml", "resolution = 64", "resolution = 72"),
        TRAIN,
        2,
        &["data.resolution", "72", "16"],
    ),
    (
        "expert that is not there",
        |w| w.replace("c.toml", "expert_layer = 1", "expert_layer = 3"),
        TRAIN,
        2,
        &["model.expert_layer", "block 3"],
    ),
    (
        "LoRA on a block that is not there",
        |w| w.add("[lora]\nlayers = [0, 5]\n"),
        TRAIN,
        2,
        &["lora.layers", "block 5"],
    ),
    (
        "LoRA on a layer that is not there",
        |w| w.add("[lora]\ntargets = [\"attn2.to_q\"]\n"),
        TRAIN,
        2,
        &["lora.targets", "attn2.to_q"],
    ),
    #[cfg(unix)]
    (
        "output that cannot be made",
        nothing,
        &["train", "--config", "c.toml", "--set", "output=/proc/self/run"],
        1,
        &["/proc/self/run", "cannot make the folder"],
    ),
    ("checkpoints that are a file", |w| w.write("run/checkpoints", ""), RESUME, 1, &["run/checkpoints"]),
    (
        "metrics of something else",
        |w| w.write("run/metrics.jsonl", "hello\nworld\n"),
        RESUME,
        1,
        &["run/metrics.jsonl", "line 1"],
    ),
    ("metrics that are a folder", |w| w.write("run/metrics.jsonl/x", ""), RESUME, 1, &["run/metrics.jsonl"]),
    (
        "classes file of the coco format",
        |w| {
            w.write("data/labels/x.png", "");
            w.write("data/classes.json", "7");
            w.write("data/pictures/x.jpg", "");
            w.replace("c.toml", "data/sa_000000.tar", "data/pictures");
            w.add("format = \"coco\"\nlabels = \"data/labels\"\nclasses = \"data/classes.json\"\n")
        },
        TRAIN,
        1,
        &["data/classes.json"],
    ),
    (
        "folder format without pictures",
        |w| {
            w.write("data/folder/readme.txt", "x");
            w.replace("c.toml", "data/sa_000000.tar", "data/folder");
            w.add("format = \"folder\"\n")
        },
        TRAIN,
        1,
        &["no usable sample"],
    ),
];

#[test]
fn training_data() {
    try_all(World::whole, DATA);
}

/// The unspoilt world works, with a broken sample among the others too.
#[test]
fn sound_data_trains() {
    let world = World::whole();
    let output = world.command(TRAIN).output().expect("seg4diff");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(world.path("run/lora.safetensors").is_file());

    // A run that failed before its first step can be restarted as is.
    let world = World::whole();
    let captions = std::fs::read(world.path("data/captions.json")).expect("read");
    world.write("data/captions.json", "{\"sa_9999\": \"a dog\"}");
    assert!(!world.command(TRAIN).output().expect("seg4diff").status.success());
    world.write("data/captions.json", captions);
    let output = world.command(TRAIN).output().expect("seg4diff");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let world = World::whole();
    cut(&world, SHARD);
    world.add("max_broken = 0.2\n");
    world.replace("c.toml", "steps = 2", "steps = 8");
    let output = world.command(TRAIN).output().expect("seg4diff");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("skipped ") && said.contains(SHARD), "{said}");
}
