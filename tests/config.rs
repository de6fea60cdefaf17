//! A configuration is read completely or refused with every problem named, and written back without loss.
mod fake_model;

use fake_model::fake_model;
use seg4diff::config::*;
use seg4diff::eval::segmentation::SegmentationDataSet;
use seg4diff::{Error, Result};
use std::path::{Path, PathBuf};

const SMALLEST: &str = "output = \"runs/x\"\n[model]\npath = \"m\"\n[data]\nsource = [\"a.tar\"]\n";

fn parse(text: &str, set: &[&str]) -> Result<RunConfig> {
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    RunConfig::parse(text, Path::new("c.toml"), &set)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("text")
}

fn refused(text: &str, set: &[&str]) -> String {
    match parse(text, set) {
        Err(Error::Usage(message)) => message,
        other => panic!("expected a usage error, got {other:?}"),
    }
}

/// Every `*.toml` below a folder, except descriptions of data sets (tests/data_sets.rs).
fn configs_under(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(configs_under(&path));
        } else if path.extension().is_some_and(|e| e == "toml") {
            found.push(path);
        }
    }
    found
}

/// Those of runs; configs/eval describes data sets.
#[test]
fn every_shipped_config_parses_and_survives_being_written() {
    let shipped = configs_under(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs"));
    let (data_sets, runs): (Vec<_>, Vec<_>) =
        shipped.into_iter().partition(|file| file.parent().is_some_and(|folder| folder.ends_with("eval")));
    assert!(runs.len() >= 4 && data_sets.len() >= 12, "{runs:?} {data_sets:?}");
    for file in runs {
        let config = RunConfig::load(&file, &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parse(&config.to_toml(), &[]).unwrap_or_else(|e| panic!("{e}")), config, "{}", file.display());
    }
    for file in data_sets {
        SegmentationDataSet::read(&file, Path::new("root")).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn defaults_are_the_published_recipe() {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/sa1b.toml");
    let full = RunConfig::load(&full, &[]).expect("sa1b.toml");
    let mut small = parse(SMALLEST, &[]).expect("smallest");
    // Only these four have no default.
    small.output = full.output.clone();
    small.model.path = full.model.path.clone();
    small.data.source = full.data.source.clone();
    small.data.captions = full.data.captions.clone();
    assert_eq!(small, full);
    assert_eq!((full.lora.rank, full.lora.alpha, full.model.expert_layers), (16, 16.0, vec![9]));
    assert_eq!((full.optim.lr, full.optim.clip_norm, full.optim.warmup_steps), (1e-4, 0.01, 500));
    assert_eq!((full.train.steps, full.train.batch, full.train.accumulate), (1000, 4, 1));
    assert_eq!((full.optim.lora_lr_scale, full.data.crop), (1.0, Crop::Stretch));
}

/// All keys that are declared.
fn keys() -> Vec<KeyDoc> {
    let keys: Vec<KeyDoc> = sections(&[]).expect("sections").into_iter().flat_map(|section| section.keys).collect();
    assert!(keys.len() > 80, "{keys:?}");
    keys
}

/// Keys that a config has, set or in a comment, each with its value.
fn shown(text: &str) -> std::collections::BTreeMap<String, String> {
    let mut shown = std::collections::BTreeMap::new();
    let mut section = String::new();
    for line in text.lines() {
        let line = line.trim_start_matches("# ");
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ") {
            shown.insert(format!("{section}{key}"), value.split("  # ").next().unwrap_or_default().trim().to_string());
        }
    }
    shown
}

/// `configs/sa1b.toml` and the template say that every key is in them, set or in a comment.
#[test]
fn every_key_stands_in_the_example() {
    for (file, text) in [("configs/sa1b.toml", read("configs/sa1b.toml")), ("the template", template(&[]).expect("ok"))]
    {
        let shown = shown(&text);
        let keys = keys();
        let missing: Vec<&KeyDoc> = keys.iter().filter(|key| !shown.contains_key(&key.name)).collect();
        assert!(missing.is_empty(), "{file} lacks {missing:?}");
        // What stands in a comment is of the right type and range, too.
        for key in keys {
            let set = format!("{}={}", key.name, shown[&key.name]);
            if let Err(problem) = parse(SMALLEST, &[&set]) {
                let problem = problem.to_string();
                assert!(![": expected", ": must"].iter().any(|wrong| problem.contains(wrong)), "{file}: {problem}");
            }
        }
    }
}

#[test]
fn the_template_parses_to_the_defaults() {
    let required: Vec<String> = keys()
        .into_iter()
        .filter(|key| {
            key.default == DefaultKind::Required && !key.name.starts_with("eval") && !key.name.starts_with("scenes")
        })
        .map(|key| format!("{}={}", key.name, key.value))
        .collect();
    assert_eq!(required.len(), 3, "{required:?}");
    for set in [
        &[][..],
        &["optim.lr=1e-3", "model.expert_layers=4", "data.resolution=512"],
        &["eval.images=i", "eval.labels=l", "eval.classes=c", "eval.features=f", "eval.captions=c", "eval.heads=3"],
        &["scenes.folder=s", "data.format=coco", "data.labels=l", "data.classes=c", "lora.layers=[1, 2]", "output=o"],
    ] {
        let set: Vec<String> = set.iter().map(|text| text.to_string()).collect();
        let text = template(&set).expect("template");
        let expected = RunConfig::parse("", Path::new("c.toml"), &[&required[..], &set].concat()).expect("defaults");
        assert_eq!(parse(&text, &[]).unwrap_or_else(|e| panic!("{e}\n{text}")), expected);
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }
    let refused = template(&["eval.labels=l".into(), "lora.rnk=1".into()]).expect_err("unknown").to_string();
    assert!(refused.contains("--set lora.rnk=1: unknown key lora.rnk; the nearest is lora.rank"), "{refused}");
    assert!(refused.contains("eval.images is missing"), "{refused}");
}

/// What the command prints is this, too.
#[test]
fn the_command_prints_template_page_and_keys() {
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.arg("config").args(args).output().expect("run")
    };
    let printed = |args: &[&str]| String::from_utf8(run(args).stdout).expect("text");
    assert_eq!(printed(&[]), template(&[]).expect("template"));
    assert_eq!(printed(&["--set", "seed=3"]), template(&["seed=3".into()]).expect("template"));
    assert_eq!(printed(&["--markdown"]), markdown().expect("page"));
    let rank = printed(&["lora.rank"]);
    for part in ["lora.rank\n", "Values: a whole number, from 1 to 4096\n", "Default: 16\n"] {
        assert!(rank.contains(part), "{part} in {rank}");
    }
    let help = printed(&["--help"]);
    for section in sections(&[]).expect("sections") {
        let text = if section.name.is_empty() { String::new() } else { printed(&[section.name]) };
        for key in &section.keys {
            assert!(section.name.is_empty() || text.contains(&format!("\n{}\n", key.name)), "{} in {text}", key.name);
            assert!(!key.doc.is_empty() && help.contains(key.short_name()), "{}", key.name);
        }
    }
    let wrong = run(&["lora.rnk"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&wrong.stderr), "error: unknown key lora.rnk; the nearest is lora.rank\n");
}

/// Written from the declarations; each names the command that writes it anew.
#[test]
fn generated_files_are_up_to_date() {
    let command = "cargo run --release --bin seg4diff -- config --markdown > docs/config.md";
    assert!(read("docs/config.md") == markdown().expect("page"), "docs/config.md is out of date: {command}");
    let set = ["output=runs/sa1b", "data.captions=data/sa1b/captions.json"];
    let text = template(&set.map(str::to_string)).expect("template");
    // Above the first empty line is what each says of itself.
    let body = |text: &str| text.split_once("\n\n").map(|(_, body)| body.to_string());
    let command = format!("cargo run --release --bin seg4diff -- config --set {}", set.join(" --set "));
    assert!(
        body(&read("configs/sa1b.toml")) == body(&text),
        "configs/sa1b.toml is out of date below its head: {command}"
    );
}

/// A default that is taken from another key is wrong only where that key is right, and stands at that key.
#[test]
fn a_default_that_does_not_suit_is_reported_where_it_comes_from() {
    let text = SMALLEST.replace("source", "resolution = 2048\nsource");
    let expected = "c.toml:5:1: scenes.size: must be from 16 to 1024, is 2048";
    assert_eq!(refused(&format!("{text}[scenes]\nfolder = \"f\"\n"), &[]), expected);
    let expected = "--set data.resolution=5: data.resolution: must be from 16 to 8192, is 5";
    assert_eq!(refused(&format!("{SMALLEST}[scenes]\nfolder = \"f\"\n"), &["data.resolution=5"]), expected);
}

#[test]
fn the_design_example_parses() {
    let text = r#"
        seed = 0
        device = "auto"
        output = "runs/sa1b"
        [model]
        path = "hf:stabilityai/stable-diffusion-3-medium-diffusers@main"
        dtype = "f16"
        text_encoders = ["clip_l", "clip_g", "t5"]
        [lora]
        layers = [0, 9, 3]
        [data]
        source = ["data/sa1b/sa_*.tar"]
        [train]
        gradient_checkpointing = true
    "#;
    let config = parse(text, &["device=cuda:1", "loss.alignment=softmax", "optim.lr=1"]).expect("config");
    assert_eq!(config.device, DeviceChoice::Cuda(1));
    assert_eq!(config.lora.layers, LayerChoice::List(vec![0, 9, 3]));
    assert_eq!(config.train.gradient_checkpointing, GradientCheckpointing::On);
    assert_eq!((config.loss.alignment, config.optim.lr), (Alignment::Softmax, 1.0));
    assert_eq!(parse(&config.to_toml(), &[]).expect("again"), config);
}

/// Every value of every enum, by its name in TOML, survives `to_toml`.
#[test]
fn every_choice_survives_being_written() {
    fn names<T: Choice>() -> Vec<String> {
        T::NAMES.iter().map(|(name, _)| name.to_string()).collect()
    }
    let coco = "\n[data]\nformat = \"coco\"\nsource = [\"a\"]\nlabels = \"l\"\nclasses = \"c\"\npanoptic = \"p\"\n";
    let with_coco = SMALLEST.replace("\n[data]\nsource = [\"a.tar\"]\n", coco);
    let mut tried = 0;
    for (key, names) in [
        ("model.dtype", names::<WeightType>()),
        ("model.quantize", names::<Quantization>()),
        ("data.crop", names::<Crop>()),
        ("loss.alignment", names::<Alignment>()),
        ("loss.heads", vec!["keep".into(), "mean".into(), "0".into(), "23".into()]),
        ("loss.attention", names::<AttentionForm>()),
        ("loss.match_max_cost", vec!["0.75".into()]),
        ("model.expert_layers", vec!["9".into(), "[7, 8, 9]".into()]),
        ("model.expert_layer", vec!["3".into()]),
        ("loss.focal_probability", names::<FocalProbability>()),
        ("device", vec!["auto".into(), "cpu".into(), "cuda:3".into()]),
        ("train.gradient_checkpointing", vec!["auto".into(), "true".into(), "false".into()]),
        ("lora.layers", vec!["all".into(), "[2, 5]".into()]),
        ("model.text_encoders", vec!["[\"t5\", \"clip_l\"]".into(), "[\"clip_g\"]".into()]),
        ("seed", vec!["9223372036854775807".into()]),
        ("optim.lr", vec!["1.2345678901234567e-5".into()]),
    ] {
        for name in names {
            let set = format!("{key}={name}");
            for text in [SMALLEST, &with_coco] {
                let config = parse(text, &[&set]).unwrap_or_else(|e| panic!("{set}: {e}"));
                let written = config.to_toml();
                assert_eq!(parse(&written, &[]).unwrap_or_else(|e| panic!("{set}: {e}")), config, "{written}");
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 74);
}

#[test]
fn all_problems_of_a_file_are_reported_at_once_in_order() {
    let text = "sed = 1\noutput = \"runs/x\"\n[model]\npath = \"m\"\n  dtyp = \"f32\"\ndtype = \"bf8\"\n\
                [lora]\nrank = \"ten\"\nalpha = -1\n[dta]\nx = 1\n[data]\nsource = []\n[train]\nlr = 1e-3\nsteps = 0\n";
    let message = refused(text, &["optim.eps=zero", "optim.lr"]);
    // A --set that does not parse is a syntax error, and those are reported first.
    assert_eq!(message, "--set optim.lr: expected KEY=VALUE, such as train.steps=100");
    let message = refused(text, &["optim.eps=zero"]);
    let expected = [
        "c.toml:1:1: unknown key sed; the nearest is seed",
        "c.toml:5:3: unknown key model.dtyp; the nearest is model.dtype",
        "c.toml:6:1: model.dtype: expected \"f32\", \"bf16\" or \"f16\", found the string \"bf8\"; the nearest is \"bf16\"",
        "c.toml:8:1: lora.rank: expected a whole number, 0 or more, found the string \"ten\"",
        "c.toml:9:1: lora.alpha: must be above 0, is -1.0",
        "c.toml:10:2: unknown section [dta]; the nearest is [data]",
        "c.toml:13:1: data.source: must not be empty",
        "c.toml:15:1: unknown key train.lr; the nearest is optim.lr",
        "c.toml:16:1: train.steps: must be at least 1, is 0",
        "--set optim.eps=zero: optim.eps: expected a number, found the string \"zero\"",
    ];
    assert_eq!(message.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn single_problems_are_named_in_place() {
    for (extra, set, expected) in [
        (
            "",
            "model.text_encoders=[\"clip_x\"]",
            "item 1: expected \"clip_l\", \"clip_g\", \"t5\" or \"qwen3\", found the string \"clip_x\"",
        ),
        ("", "model.text_encoders=[\"t5\"]", "add \"clip_l\" or \"clip_g\""),
        ("", "model.text_encoders=[]", "must not be empty"),
        ("", "model.path=hf:nothing", "expected hf:ORG/NAME"),
        ("", "lora.targets=[\"attn.to_qq\"]", "the nearest is \"attn.to_q\""),
        ("", "lora.layers=[1,1]", "1 is listed twice"),
        ("", "lora.layers=[10,11]", "blocks 0 to 9 (model.expert_layers)"),
        ("", "loss.flow_weight=-1", "must be at least 0.0, is -1.0"),
        ("", "data.caption_dropout=1.5", "from 0.0 to 1.0"),
        ("", "data.format=coco", "data.labels: is missing"),
        ("", "data.labels=somewhere", "only"),
        ("", "model.expert_layers=[]", "model.expert_layers: must not be empty"),
        ("", "model.expert_layer=[2,2]", "model.expert_layers: 2 is listed twice"),
        ("", "model.expert_layers=all", "expected a block index (from 0) or a list of them"),
        ("", "loss.heads=max", "set loss.attention to \"softmax\" or \"softmax_text\""),
        ("", "loss.heads=maximum", "\"keep\", \"mean\", \"max\" or a head's index (from 0)"),
        ("", "loss.heads=-1", "found the integer -1"),
        ("", "loss.attention=softmax_image", "the nearest is \"softmax_text\""),
        ("[loss]\nscore_head = false\n", "loss.score_head_init=c", "no score head is trained"),
        ("[loss]\nalignment = \"softmax\"\n", "loss.score_head_init=c", "no score head is trained"),
        ("caption_dropout = 0.1\n", "model.learnable_prompt=true", "data.caption_dropout: no caption is used"),
        (
            "format = \"coco\"\nlabels = \"l\"\nclasses = \"c\"\n",
            "model.learnable_prompt=true",
            "a learnt prompt has none",
        ),
        ("cache = \"c\"\n", "data.crop=random", "is for crop = \"center\" or \"stretch\" only"),
        ("", "train.batch=2.5", "found the number 2.5"),
        ("", "train.batch=99999999999999999999", "too large"),
        ("", "optim.lr=inf", "not a finite number"),
        ("", "optim.lr=nan", "not a finite number"),
        ("", "optim.betas=[0.9]", "a list of two numbers"),
        ("", "optim.betas=[0.9, 1.0]", "below 1"),
        ("", "device=gpu", "\"cuda:N\""),
        ("", "lora=3", "expected a section [lora]"),
        ("", "seed.x=3", "seed: expected a whole number, 0 or more, found a section"),
        ("", "data.source=[a", "TOML syntax"),
        ("", "=3", "is not a key"),
        ("", "output=", "must not be empty"),
        ("[lora]\nrank = 1\nrank = 2\n", "seed=1", "c.toml:8:1: TOML syntax: duplicate key"),
        ("[[lora]]\nrank = 1\n", "seed=1", "c.toml:6"),
        ("\"lora.rank\" = 3\n", "seed=1", "unknown key data.\"lora.rank\""),
    ] {
        let message = refused(&format!("{SMALLEST}{extra}"), &[set]);
        assert!(message.contains(expected), "{extra}{set}: {message}");
        assert!(message.contains(&format!("--set {set}")) || message.contains("c.toml:"), "no place: {message}");
        assert_eq!(message.lines().count(), if set == "data.format=coco" { 2 } else { 1 }, "{message}");
    }
}

/// The old name of a key is read as the new one, whichever of them a file has and `--set` gives.
#[test]
fn the_former_name_of_the_experts_goes_on() {
    let with = |line: &str| SMALLEST.replace("path = \"m\"\n", &format!("path = \"m\"\n{line}\n"));
    let layers = |text: &str, set: &[&str]| parse(text, set).expect("config").model.expert_layers;
    assert_eq!(layers(SMALLEST, &[]), [9]);
    assert_eq!(layers(&with("expert_layer = 4"), &[]), [4]);
    assert_eq!(layers(&with("expert_layers = 4"), &[]), [4]);
    assert_eq!(layers(&with("expert_layers = [9, 7, 8]"), &[]), [7, 8, 9]);
    assert_eq!(layers(&with("expert_layer = 4"), &["model.expert_layers=[5, 6]"]), [5, 6]);
    assert_eq!(layers(&with("expert_layers = [5, 6]"), &["model.expert_layer=4"]), [4]);
    let heads = |set: &str| parse(SMALLEST, &[set]).expect("config").loss.heads;
    assert_eq!((heads("loss.heads=3"), heads("loss.heads=mean")), (HeadMaps::One(3), HeadMaps::Mean));
    assert!(parse(SMALLEST, &["loss.heads=max", "loss.attention=softmax_text"]).is_ok());
}

#[test]
fn nothing_to_train_is_refused() {
    let zero = ["loss.flow_weight=0", "loss.focal_weight=0", "loss.dice_weight=0"];
    assert!(refused(SMALLEST, &zero).contains("every loss has weight 0"));
    // The softmax form has a weight of its own.
    assert!(parse(SMALLEST, &[zero[0], zero[1], zero[2], "loss.alignment=softmax"]).is_ok());
}

#[test]
fn what_has_no_default_is_asked_for() {
    let message = refused("", &[]);
    for key in ["output", "model.path", "data.source"] {
        assert!(message.contains(&format!("c.toml: {key} is missing")), "{message}");
    }
    assert!(parse("", &["output=o", "model.path=m", "data.source=[\"s\"]"]).is_ok());
}

#[test]
fn columns_count_characters() {
    let message = refused("output = \"ä\"\nmodel = { path = \"ü\", x = 1 }\n[data]\nsource = [\"s\"]\n", &[]);
    assert_eq!(message, "c.toml:2:23: unknown key model.x; the nearest is model.path");
}

#[test]
fn files_that_are_missing_or_do_not_fit_are_all_named() {
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    fake_model(&folder.path().join("model"));
    std::fs::write(folder.path().join("a_0.tar"), "").expect("write");
    let text = format!(
        "output = {:?}\n[model]\npath = {:?}\nexpert_layer = 2\n[data]\nsource = [{:?}]\n",
        at("out"),
        at("model"),
        at("a_*.tar")
    );
    let check = |set: &[&str]| parse(&text, set).expect("config").check_files();
    let problems = |set: &[&str]| match check(set) {
        Err(Error::Usage(message)) => message,
        other => panic!("expected a usage error, got {other:?}"),
    };
    check(&[]).expect("all there");
    check(&["model.path=hf:org/name", "model.expert_layer=30"]).expect("hub models are not looked up");

    let message = problems(&["data.cache=/nowhere/cache"]);
    assert_eq!(message, "data.cache: there is no folder /nowhere/cache; seg4diff prepare cache --config F fills it");

    let message = problems(&["model.expert_layer=4", "lora.layers=[1,5]", "data.resolution=40"]);
    assert_eq!(message.lines().count(), 3, "{message}");
    assert!(message.contains("model.expert_layers: there is no block 4"), "{message}");
    assert!(message.contains("lora.layers: there is no block 5"), "{message}");
    assert!(message.contains("data.resolution: 40 is not a multiple of 16"), "{message}");

    let message = problems(&["loss.heads=99", "lora.init=/nowhere/a", "loss.score_head_init=/nowhere/b"]);
    assert_eq!(message.lines().count(), 3, "{message}");
    for part in
        ["loss.heads: there is no head 99", "lora.init: /nowhere/a is missing", "loss.score_head_init: /nowhere/b"]
    {
        assert!(message.contains(part), "{part} in {message}");
    }

    // Evaluation settings must suit the model, too; their default is the experts' blocks.
    let [images, classes] = [at("model"), at("a_0.tar")].map(|path| format!("{path:?}"));
    let eval = [format!("eval.images={images}"), format!("eval.labels={images}"), format!("eval.classes={classes}")];
    let eval: Vec<&str> = eval.iter().map(String::as_str).collect();
    check(&eval).expect("suits");
    let message = problems(&[&eval[..], &["eval.layers=[1,7,4]", "eval.heads=6"]].concat());
    assert_eq!(message.lines().count(), 3, "{message}");
    for part in
        ["eval.layers: there is no block 7", "eval.layers: there is no block 4", "eval.heads: there is no head 6"]
    {
        assert!(message.contains(part), "{part} in {message}");
    }

    let message = problems(&["model.text_encoders=[\"clip_l\",\"t5\"]"]);
    for file in ["text_encoder_3/config.json", "text_encoder_3/model.safetensors", "tokenizer_3/tokenizer.json"] {
        assert!(message.contains(&format!("{file} is missing")), "{message}");
    }
    std::fs::remove_file(folder.path().join("model/text_encoder_2/model-1.safetensors")).expect("remove");
    let missing = format!("data.captions={}", at("captions.json"));
    let message = problems(&[&missing, "data.source=[\"/nowhere/*.tar\", \"/nowhere/x.tar\", \"a[.tar\"]"]);
    assert_eq!(message.lines().count(), 5, "{message}");
    for part in [
        "text_encoder_2/model-1.safetensors is missing",
        "captions.json: is missing",
        "/nowhere/*.tar matches nothing",
        "/nowhere/x.tar is missing",
        "a[.tar: not a pattern",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

/// Settings with which no step could change the LoRA, or only to non-finite values.
#[test]
fn what_is_certainly_without_effect_is_refused() {
    for (settings, problem) in [
        (
            &["optim.lr=1e-45", "optim.lora_lr_scale=0.1"][..],
            "optim.lr: the LoRA's learning rate would be 1e-46 at most, which is 0 in f32",
        ),
        (&["optim.lora_lr_scale=1e-60"], "optim.lr: the LoRA's learning rate would be"),
        (&["optim.lr=1e40", "optim.lora_lr_scale=1"], "optim.lr: is 1e40 for the LoRA, too large for f32"),
        (&["train.steps=1", "optim.warmup_factor=0"], "optim.lr: the LoRA's learning rate would be 0e0 at most"),
        (&["lora.alpha=1e-50"], "lora.alpha: alpha/rank must be a number of f32 above 0, is 0"),
        (&["lora.alpha=1e60"], "lora.alpha: alpha/rank must be a number of f32 above 0, is inf"),
        (&["optim.clip_norm=1e-50"], "optim.clip_norm: is 1e-50, which is 0 in f32"),
        (&["optim.eps=1e60"], "optim.eps: is 1e60, infinite in f32"),
        (&["loss.flow_weight=0", "loss.mask_max_sigma=0"], "loss.mask_max_sigma: is 0: no image is without noise"),
    ] {
        let message = refused(SMALLEST, settings);
        assert!(message.contains(problem), "{settings:?}: {problem} in {message}");
        assert_eq!(message.lines().count(), 1, "{settings:?}: {message}");
    }
    for settings in [
        &["optim.lr=1e-38", "optim.lora_lr_scale=1"][..],
        &["train.steps=2", "optim.warmup_factor=0"],
        &["train.steps=1", "optim.warmup_factor=0", "optim.warmup_steps=0"],
        &["optim.clip_norm=0"],
        &["loss.mask_max_sigma=0"],
        &["loss.flow_weight=0", "loss.mask_max_sigma=0.1"],
    ] {
        parse(SMALLEST, settings).unwrap_or_else(|e| panic!("{settings:?}: {e}"));
    }
}
