//! The files that a command leaves, and comparisons of them.
use super::commands::Case;
use seg4diff::model::adapters::formats;
use seg4diff::model::weights::read_all;
use seg4diff::sample::image::read_rgb8;
use seg4diff::train::checkpoint;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Files by path, without times and the files that show them, which differ between runs.
#[derive(Clone, PartialEq)]
pub struct Snapshot {
    files: BTreeMap<String, Vec<u8>>,
    /// Hidden files and folders.
    pub hidden: Vec<String>,
}

impl Snapshot {
    pub fn of(case: &Case) -> Self {
        let mut found = Self { files: BTreeMap::new(), hidden: vec![] };
        found.add(&case.work, &case.work);
        found
    }

    fn add(&mut self, root: &Path, folder: &Path) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("inside").display().to_string();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                self.hidden.push(name);
            } else if path.is_dir() {
                self.add(root, &path);
            } else if !name.contains("tensorboard/") {
                let bytes = std::fs::read(&path).expect("a file");
                self.files.insert(name.clone(), without_times(&name, bytes));
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Files that are missing, different or unexpected.
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut names: Vec<&String> = self.files.keys().chain(wanted.files.keys()).collect();
        names.sort();
        names.dedup();
        let differs = names.into_iter().filter(|name| self.files.get(*name) != wanted.files.get(*name));
        let how = |name: &String| match (self.files.get(name), wanted.files.get(name)) {
            (None, _) => format!("{name} is missing"),
            (_, None) => format!("{name} is too much"),
            _ => format!("{name} has other bytes"),
        };
        differs.map(how).collect()
    }

    /// Files that are neither in their old nor in their final state.
    pub fn halves(&self, case: &Case, before: &Self, wanted: &Self) -> Vec<String> {
        let known =
            |name: &String, bytes: &Vec<u8>| [before, wanted].iter().any(|at| at.files.get(name) == Some(bytes));
        let others = self.files.iter().filter(|(name, bytes)| !known(name, bytes)).map(|(name, _)| name);
        match case.has_states {
            false => others.map(|name| format!("{name} is half written")).collect(),
            true => others.filter_map(|name| damage(case, name)).collect(),
        }
    }
}

fn without_times(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    if name.ends_with("report.html") {
        return vec![];
    }
    if !name.ends_with("metrics.jsonl") {
        return bytes;
    }
    let line = |text: &[u8]| {
        let Ok(mut line) = serde_json::from_slice::<Value>(text) else { return text.to_vec() };
        for time in ["images_per_s", "seconds", "data_wait_s"] {
            line.as_object_mut().expect("an object").remove(time);
        }
        line.to_string().into_bytes()
    };
    bytes.split_inclusive(|byte| *byte == b'\n').flat_map(line).collect()
}

/// Problems with a file of a run that did not finish.
fn damage(case: &Case, name: &str) -> Option<String> {
    let path = case.work.join(name);
    let folder = path.parent().expect("a folder");
    let is_checkpoint = ["step-", "best"]
        .iter()
        .any(|of| folder.file_name().is_some_and(|folder| folder.to_string_lossy().starts_with(of)));
    let problem = match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        _ if is_checkpoint => checkpoint::verify(folder).err(),
        "safetensors" if name.contains("lora") => formats::read(&path).err(),
        "safetensors" => read_all(&path).err(),
        "png" => read_rgb8(&path).err(),
        "jsonl" | "html" => None,
        // It grows with the first steps.
        "json" if name.ends_with("samples/training.json") => {
            let text = std::fs::read(&path).expect("the file");
            return serde_json::from_slice::<Value>(&text).err().map(|problem| format!("{name}: {problem}"));
        }
        _ => return Some(format!("{name} is half written")),
    };
    problem.map(|problem| format!("{name}: {problem}"))
}
