//! The second stage of checking a configuration: against the files that it names.
use crate::config::{HeadMaps, LayerChoice, Palette, RunConfig};
use crate::data::sources::patterns::{Expanded, expand};
use crate::data::sources::remote;
use crate::model::weights::bounds::Bounds;
use crate::model::weights::files::ModelFiles;
use crate::model::weights::required_files::{RequiredFiles, pipeline_of};
use crate::system::error::{Error, Result};
use crate::system::paths::{exists, is_file, is_folder};
use std::io::ErrorKind;
use std::path::Path;

impl RunConfig {
    /// Checks that the files which the run reads are there, and that the model's sizes suit the settings.
    ///
    /// Models on the hub (`hf:…`) are not looked up.
    ///
    /// # Errors
    /// `Error::Usage` with a line for everything that is missing or does not fit, naming key and file.
    pub fn check_files(&self) -> Result<()> {
        let mut problems = Vec::new();
        self.check_output(&mut problems);
        self.check_model(&mut problems);
        self.check_sources(&mut problems);
        if let Some(cache) = &self.data.cache {
            match is_folder(cache) {
                Ok(true) => {}
                Ok(false) => {
                    let fill = "seg4diff prepare cache --config F fills it";
                    problems.push(format!("data.cache: there is no folder {}; {fill}", cache.display()));
                }
                Err(e) => problems.push(format!("data.cache: {e}")),
            }
        }
        if let Some(adapter) = &self.lora.init {
            match exists(adapter) {
                Ok(true) => {}
                Ok(false) => problems.push(format!("lora.init: {} is missing", adapter.display())),
                Err(e) => problems.push(format!("lora.init: {e}")),
            }
        }
        self.check_named(self.training_files(), &mut problems);
        self.check_named(self.evaluation_files(), &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(Error::Usage(problems.join("\n"))) }
    }

    fn training_files(&self) -> Vec<Named<'_>> {
        let data = &self.data;
        let of_sources = self.data.sources.iter().flat_map(|source| {
            [
                ("data.sources: captions", source.captions.as_deref(), false),
                ("data.sources: labels", source.labels.as_deref(), true),
                ("data.sources: panoptic", source.panoptic.as_deref(), false),
                ("data.sources: instances", source.instances.as_deref(), false),
                ("data.sources: palette", source.palette.as_ref().and_then(Palette::file), false),
                ("data.sources: classes", source.classes.as_deref(), false),
            ]
        });
        let of_run = [
            ("data.captions", data.captions.as_deref(), false),
            ("data.labels", data.labels.as_deref(), true),
            ("data.panoptic", data.panoptic.as_deref(), false),
            ("data.instances", data.instances.as_deref(), false),
            ("data.classes", data.classes.as_deref(), false),
            ("data.palette", data.palette.as_ref().and_then(Palette::file), false),
            ("loss.score_head_init", self.loss.score_head_init.as_deref(), true),
        ];
        of_run.into_iter().chain(of_sources).collect()
    }

    fn evaluation_files(&self) -> Vec<Named<'_>> {
        let Some(eval) = &self.eval else { return vec![] };
        vec![
            ("eval.images", Some(eval.images.as_path()), true),
            ("eval.real", eval.real.as_deref(), true),
            ("eval.labels", eval.labels.as_deref(), true),
            ("eval.classes", eval.classes.as_deref(), false),
            ("eval.captions", eval.captions.as_deref(), false),
            ("eval.inception", eval.inception.as_deref(), false),
            ("eval.features", eval.features.as_deref(), true),
        ]
    }

    /// As `check_files`, for what is measured alone: the model, and the files that `[eval]` names.
    pub fn check_evaluation_files(&self) -> Result<()> {
        let mut problems = Vec::new();
        self.check_model(&mut problems);
        self.check_named(self.evaluation_files(), &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(Error::Usage(problems.join("\n"))) }
    }

    fn check_output(&self, problems: &mut Vec<String>) {
        // The nearest ancestor that exists must be a folder for OUTPUT to be made in it.
        for path in self.output.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            match std::fs::metadata(path) {
                Ok(found) if found.is_dir() => return,
                Ok(_) => return problems.push(format!("output: {} is a file; expected a folder", path.display())),
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(e) => return problems.push(format!("output: {}: {e}", path.display())),
            }
        }
    }

    fn check_model(&self, problems: &mut Vec<String>) {
        if self.model.is_on_hub() {
            return;
        }
        let path = Path::new(&self.model.path);
        if is_file(path).unwrap_or(false) {
            return self.check_one_file(problems);
        }
        match RequiredFiles::find(path, &self.model) {
            Ok(files) => {
                problems.extend(files.missing.iter().map(|file| format!("model.path: {} is missing", file.display())));
            }
            Err(e) => problems.push(format!("model.path: {e}")),
        }
        if self.model.files.parts().next().is_some() {
            // The headers of what lies elsewhere.
            problems.extend(ModelFiles::of(&self.model).err().map(|e| format!("model.files: {e}")));
        }
        if let Err(problem) = pipeline_of(path).check_encoders(&self.model.text_encoders) {
            problems.push(format!("model.text_encoders: {problem}"));
        }
        match Bounds::read(path) {
            Ok(Some(bounds)) => self.check_bounds(&bounds, problems),
            Ok(None) => {}
            Err(e) => problems.push(format!("model.path: {e}")),
        }
    }

    /// A model in one file, and the files of its parts: their headers are read.
    fn check_one_file(&self, problems: &mut Vec<String>) {
        let checked = || {
            let files = ModelFiles::of(&self.model)?;
            Ok::<_, Error>((files.problems(&self.model), files.known_pipeline()?, Bounds::of_file(&files)?))
        };
        match checked() {
            Ok((found, pipeline, bounds)) => {
                problems.extend(found);
                if let Err(problem) = pipeline.check_encoders(&self.model.text_encoders) {
                    problems.push(format!("model.text_encoders: {problem}"));
                }
                self.check_bounds(&bounds, problems);
            }
            Err(e) => problems.push(format!("model.path: {e}")),
        }
    }

    /// Settings that must suit the model: block and head indices, and sizes of whole tokens.
    fn check_bounds(&self, bounds: &Bounds, problems: &mut Vec<String>) {
        let file = bounds.file.display();
        if let Some(blocks) = bounds.blocks {
            let beyond = |key: &str, layer: usize| {
                format!("{key}: there is no block {layer}; {file} has blocks 0 to {}", blocks - 1)
            };
            if self.model.last_expert() >= blocks {
                problems.push(beyond("model.expert_layers", self.model.last_expert()));
            } else if let Some(eval) = &self.eval {
                let of_eval = eval.layers.iter().map(|layer| ("eval.layers", *layer));
                let of_eval = of_eval.chain([("eval.perturb_layer", eval.perturb_layer)]);
                problems.extend(of_eval.filter(|(_, layer)| *layer >= blocks).map(|(key, layer)| beyond(key, layer)));
            }
            if let LayerChoice::List(layers) = &self.lora.layers {
                let wrong = layers.iter().filter(|layer| **layer >= blocks);
                problems.extend(wrong.map(|layer| beyond("lora.layers", *layer)));
            }
        }
        let chosen = [
            ("loss.heads", if let HeadMaps::One(head) = self.loss.heads { Some(head) } else { None }),
            ("eval.heads", self.eval.as_ref().and_then(|eval| eval.heads.one())),
        ];
        for (key, head) in chosen.into_iter().filter_map(|(key, head)| Some((key, head?))) {
            if let Some(heads) = bounds.heads.filter(|heads| head >= *heads) {
                let found = format!("{file} has heads 0 to {}", heads.saturating_sub(1));
                problems.push(format!("{key}: there is no head {head}; {found}"));
            }
        }
        if let Some(unit) = bounds.token_pixels {
            let evaluated = self.eval.as_ref().map(|eval| ("eval.size", eval.size));
            for (key, size) in [("data.resolution", self.data.resolution)].into_iter().chain(evaluated) {
                if !size.is_multiple_of(unit) {
                    let problem = format!("{size} is not a multiple of {unit}, the pixels of one token of this model");
                    problems.push(format!("{key}: {problem}"));
                }
            }
        }
    }

    fn check_sources(&self, problems: &mut Vec<String>) {
        for source in
            self.source_paths().filter(|source| !self.will_be_drawn(Path::new(source)) && !remote::is_url(source))
        {
            match expand(source) {
                Ok(Expanded::Paths(_)) => {}
                Ok(Expanded::Missing(part)) => {
                    let what = if part.contains(['*', '?', '[']) { "matches nothing" } else { "is missing" };
                    problems.push(format!("data.source: {part} {what}"));
                }
                Err(e) => problems.push(format!("data.source: {e}")),
            }
        }
    }

    fn source_paths(&self) -> impl Iterator<Item = &String> {
        self.data.source.iter().chain(self.data.sources.iter().map(|source| &source.path))
    }

    /// Whether some of the training data belongs to scenes that are drawn first.
    pub fn draws_sources(&self) -> bool {
        self.source_paths().any(|source| self.will_be_drawn(Path::new(source)))
    }

    /// Whether this belongs to the scenes, which the run draws first where they are missing.
    fn will_be_drawn(&self, path: &Path) -> bool {
        let sets = self.scenes.iter().flat_map(|scenes| scenes.sets().map(|set| set.folder));
        sets.into_iter().any(|folder| exists(&folder).is_ok_and(|found| !found) && path.starts_with(&folder))
    }

    fn check_named(&self, files: Vec<Named>, problems: &mut Vec<String>) {
        for (key, path, is_folder) in files {
            let Some(path) = path.filter(|path| !self.will_be_drawn(path)) else { continue };
            match std::fs::metadata(path) {
                Err(e) => {
                    let reason = if e.kind() == ErrorKind::NotFound { "is missing".into() } else { e.to_string() };
                    problems.push(format!("{key}: {}: {reason}", path.display()));
                }
                Ok(found) if found.is_dir() != is_folder => {
                    let expected = if is_folder { "a folder" } else { "a file" };
                    problems.push(format!("{key}: {} is not {expected}", path.display()));
                }
                Ok(_) => {}
            }
        }
    }
}

/// A key, the path that it gives, and whether a folder belongs there.
type Named<'a> = (&'static str, Option<&'a Path>, bool);
