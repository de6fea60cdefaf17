//! The commands that faults are injected into: short runs, and their initial folders.
use seg4diff::sample::image::write_png;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the program's own models and data.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A command in a folder of its own.
pub struct Case {
    pub name: &'static str,
    /// The folder that it may write into, and nothing else.
    pub work: PathBuf,
    args: Vec<String>,
    /// The command to rerun after a fault, if different.
    again: Option<Vec<String>>,
    /// Commands that make the initial content of the folder.
    before: Vec<Vec<String>>,
    /// Whether intermediate states of the folder are visible.
    pub has_states: bool,
}

/// `seg4diff` with these arguments, on one thread: every run makes equal system calls in equal order.
pub fn seg4diff(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(args);
    calm(&mut command);
    command
}

/// Sets the environment of a command under test.
pub fn calm(command: &mut Command) {
    command.current_dir(ROOT).env_remove("RUST_LOG").env("RAYON_NUM_THREADS", "1");
}

impl Case {
    /// Resets the folder to its initial content.
    pub fn begin(&self) {
        if self.work.exists() {
            std::fs::remove_dir_all(&self.work).expect("an empty folder");
        }
        std::fs::create_dir_all(&self.work).expect("a folder");
        for args in &self.before {
            let output = seg4diff(args).output().expect("a command that starts");
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// The command to run after a fault.
    pub fn args_again(&self) -> &[String] {
        self.again.as_ref().unwrap_or(&self.args)
    }
}

/// Makes the cases' folders in `root`, and the inputs beyond the program's own data.
pub struct Cases<'a> {
    root: &'a Path,
    all: Vec<Case>,
}

/// All cases, the longest first.
pub fn cases(root: &Path) -> Vec<Case> {
    for index in 0..6u8 {
        let picture = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8 * 7, y as u8 * 7, index * 40]));
        write_png(&root.join(format!("pictures/{index}.png")), &picture).expect("a picture");
    }
    let mut cases = Cases { root, all: vec![] };
    cases.training();
    cases.preparing();
    cases.drawing();
    cases.evaluating();
    cases.all
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_string).collect()
}

const DATA_SET: &str = "--images tests/fixtures/segmentation/images --labels tests/fixtures/segmentation/labels \
                        --classes tests/fixtures/segmentation/classes.json";
const MODEL: &str = "--model checkpoints/smoke-base --device cpu --size 64";
/// Few steps of few pixels; validations keep the best checkpoint, and old checkpoints and pictures are removed.
const TRAIN: &str = "train --config configs/smoke.toml --set train.steps=4 --set train.batch=1 --set \
                     data.resolution=64 --set data.workers=1 --set checkpoint.every=1 --set checkpoint.keep=2 --set \
                     eval.images=tests/fixtures/segmentation/images --set \
                     eval.labels=tests/fixtures/segmentation/labels --set \
                     eval.classes=tests/fixtures/segmentation/classes.json --set eval.every=1 --set \
                     eval.every_images=1 --set eval.keep_pictures=2 --set eval.before=false --set \
                     eval.segmentation_images=1";

impl Cases<'_> {
    /// Adds a command; `@` in it stands for its folder.
    fn add(&mut self, name: &'static str, line: &str) -> &mut Case {
        let work = self.root.join(name.replace(' ', "-"));
        let args = words(&line.replace('@', &work.display().to_string()));
        let case = Case { name, work, args, again: None, before: vec![], has_states: false };
        self.all.push(case);
        self.all.last_mut().expect("one")
    }

    fn training(&mut self) {
        let line = format!("{TRAIN} --set output=@/run");
        let run = self.add("train", &line);
        run.again = Some(run.args.iter().cloned().chain(["--resume".to_string()]).collect());
        run.has_states = true;
        // From a checkpoint that is not the newest; newer ones are set aside.
        let line = format!("{line} --set checkpoint.keep=3");
        let resumed = self.add("train resumed", &format!("{line} --resume @/run/checkpoints/step-000002"));
        resumed.before = vec![words(&line.replace('@', &resumed.work.display().to_string()))];
        resumed.has_states = true;
    }

    fn preparing(&mut self) {
        self.add("prepare scenes", "prepare scenes --out @/scenes --count 2");
        let config =
            "--config configs/smoke.toml --set data.resolution=64 --set data.source=['data/smoke/sa_000000.tar']";
        self.add("prepare cache", &format!("prepare cache {config} --out @/cache"));
        self.add("prepare labels", "prepare labels --mat tests/fixtures/matlab --out @/labels");
        let checkpoint = self.root.join("trained/checkpoints/step-000001");
        let train =
            "train --config configs/smoke.toml --set train.steps=1 --set train.batch=1 --set data.resolution=64";
        let output = self.root.join("trained");
        let made = seg4diff(&words(&format!("{train} --set output={}", output.display()))).output().expect("train");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let export = format!("export --checkpoint {} --format", checkpoint.display());
        self.add("export peft", &format!("{export} peft --out @/peft"));
        self.add("export comfyui", &format!("{export} comfyui --out @/lora.safetensors"));
        // Overwrites an existing file.
        let over = self.add("export diffusers", &format!("{export} diffusers --out @/lora.safetensors"));
        let before = format!("{export} comfyui --out {}/lora.safetensors", over.work.display());
        over.before = vec![words(&before)];
    }

    fn drawing(&mut self) {
        self.add("generate", &format!("generate {MODEL} --prompt a b --steps 1 --out @/images"));
        let image = "tests/fixtures/segmentation/images/wide.jpg";
        self.add("probe", &format!("probe {MODEL} --image {image} --prompt cat --layer 1 --out @/attention"));
        let config = "--config configs/smoke.toml --set data.resolution=64 --set eval.images=tests/fixtures/clip/images \
                      --set eval.captions=tests/fixtures/clip/captions.json --set eval.features=checkpoints/demo-features \
                      --set eval.generation_images=3 --set eval.steps=1";
        self.add("evaluate generation", &format!("evaluate generation {config} --out @/images --json @/scores.json"));
    }

    fn evaluating(&mut self) {
        let look = format!("{MODEL} {DATA_SET} --limit 2");
        let outputs = "--layer 1 --predictions @/predictions --json @/scores.json";
        self.add("evaluate segmentation", &format!("evaluate segmentation {look} {outputs}"));
        self.add("evaluate unsupervised", &format!("evaluate unsupervised {look} {outputs}"));
        let phrases = "--images tests/fixtures/segmentation/images --phrases tests/fixtures/segmentation/phrases.jsonl";
        self.add("evaluate referring", &format!("evaluate referring {MODEL} {phrases} --layer 1 --json @/scores.json"));
        let pictures = self.root.join("pictures");
        let folders = format!("--real {} --generated tests/fixtures/clip/images", pictures.display());
        let features = "--features checkpoints/demo-features --device cpu";
        self.add("evaluate fid", &format!("evaluate fid {folders} {features} --json @/scores.json"));
        let clip = "--clip tests/fixtures/clip/model --images tests/fixtures/clip/images";
        let captions = "--captions tests/fixtures/clip/captions.json --device cpu --json @/scores.json";
        self.add("evaluate clip-score", &format!("evaluate clip-score {clip} {captions}"));
        let outputs = "--json @/blocks.json --plot @/blocks.svg --sheet @/blurred.png --blur 1 --steps 2 --timestep=-2";
        self.add("analyze", &format!("analyze {look} {outputs}"));
    }
}
