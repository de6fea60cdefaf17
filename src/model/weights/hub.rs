//! Repositories of the Hugging Face hub in its usual cache.
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::process::refused;
use hf_hub::{HFClientSync, HFError, HFRepositorySync, RepoTypeModel};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seconds that the hub may take to answer at all, where HF_HUB_ETAG_TIMEOUT does not say otherwise.
const ANSWER_SECONDS: u64 = 30;

/// What follows `hf:`: `ORG/NAME` or `ORG/NAME@REVISION`, either with `/FILE`, as in huggingface_hub's paths of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HubName<'a> {
    owner: &'a str,
    repository: &'a str,
    /// A branch, tag or commit.
    revision: &'a str,
    /// A file of weights in it.
    pub file: Option<&'a str>,
}

impl<'a> HubName<'a> {
    /// None where it is no such name. A revision with a file behind it has no slash but in `refs/pr/N` and
    /// `refs/convert/NAME`.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (owner, rest) = name.split_once('/')?;
        let is_file = [".safetensors", ".gguf"].iter().any(|end| rest.to_lowercase().ends_with(end));
        let (repository, revision, file) = match (rest.split_once('@'), rest.split_once('/')) {
            (Some((repository, rest)), _) if is_file && !repository.contains('/') => {
                let slashes =
                    if ["refs/pr/", "refs/convert/"].iter().any(|start| rest.starts_with(start)) { 2 } else { 0 };
                let (end, _) = rest.match_indices('/').nth(slashes)?;
                (repository, &rest[..end], Some(&rest[end + 1..]))
            }
            (_, Some((repository, file))) if is_file => (repository, "main", Some(file)),
            (Some((repository, revision)), _) => (repository, revision, None),
            (None, _) => (rest, "main", None),
        };
        let is_name = |part: &str| !part.is_empty() && !part.contains('/');
        let is_valid = is_name(owner) && is_name(repository) && !revision.is_empty() && file != Some("");
        is_valid.then_some(Self { owner, repository, revision, file })
    }
}

/// The local copy of `hf:ORG/NAME/FILE` or `hf:ORG/NAME@REVISION/FILE`: the cache's, else downloaded into it. None where
/// `path` names no file on the hub.
///
/// # Errors
/// There is no such file, or it cannot be asked for.
pub(super) fn fetched(path: &str) -> Result<Option<PathBuf>> {
    let Some(HubName { file: Some(file), .. }) = path.strip_prefix("hf:").and_then(HubName::parse) else {
        return Ok(None);
    };
    let hub = Hub::of(&path["hf:".len()..])?;
    if let Some(cached) = hub.cached(file) {
        return Ok(Some(cached));
    }
    if !is_offline() {
        // Every repository has it. It is small, so that a hub that does not answer is noticed.
        hub.fetch_in_time(".gitattributes")?;
    }
    let missing = || Error::Failed(format!("{path}: no such file in the repository"));
    hub.fetch(file)?.map(Some).ok_or_else(missing)
}

/// A part's path; of a file on the hub that of its local copy.
///
/// # Errors
/// Those of [`fetched`]; the name on the hub is not of a file.
pub(super) fn local(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.to_str().filter(|path| path.starts_with("hf:")) else { return Ok(path.to_path_buf()) };
    let expected = || Error::Usage(format!("{name}: expected hf:ORG/NAME/FILE or hf:ORG/NAME@REVISION/FILE"));
    fetched(name)?.ok_or_else(expected)
}

/// A repository at one commit.
#[derive(Clone)]
pub(super) struct Hub {
    repository: HFRepositorySync<RepoTypeModel>,
    /// As the user wrote it, for errors.
    name: String,
    revision: String,
}

impl Hub {
    /// The repository of a name, which is not asked for yet.
    fn of(name: &str) -> Result<Self> {
        let expected =
            || format!("hf:{name}: expected hf:org/name or hf:org/name@revision, for one file with /file behind it");
        let HubName { owner, repository, revision, .. } =
            HubName::parse(name).ok_or_else(|| Error::Usage(expected()))?;
        let client = HFClientSync::new().map_err(|e| Error::Failed(format!("hf:{name}: {}", reason(&e))))?;
        Ok(Self {
            repository: client.model(owner, repository),
            name: format!("hf:{name}"),
            revision: revision.to_string(),
        })
    }

    /// Finds the repository `ORG/NAME` or `ORG/NAME@REVISION`, and its snapshot in the cache.
    ///
    /// # Errors
    /// There is no such, or it cannot be asked for; it is no diffusers pipeline.
    pub fn open(name: &str) -> Result<(Self, PathBuf)> {
        let mut hub = Self::of(name)?;
        let index = hub.fetch_in_time("model_index.json")?.ok_or_else(|| {
            Error::Failed(format!("hf:{name}: no model_index.json in it, so not a diffusers pipeline"))
        })?;
        let folder = index.parent().map(Path::to_path_buf).unwrap_or_default();
        // From here on that very commit, even if the branch moves: the snapshot's folder is named by it.
        if let Some(commit) = folder.file_name().and_then(|name| name.to_str()) {
            hub.revision = commit.to_string();
        }
        Ok((hub, folder))
    }

    /// Fetches a small file, and gives up on a hub that does not answer: the client itself would wait for ever.
    fn fetch_in_time(&self, file: &'static str) -> Result<Option<PathBuf>> {
        let seconds = std::env::var("HF_HUB_ETAG_TIMEOUT").ok().and_then(|text| text.parse().ok());
        let seconds = seconds.unwrap_or(ANSWER_SECONDS);
        let (sender, answer) = std::sync::mpsc::channel();
        let hub = self.clone();
        let thread = std::thread::Builder::new().spawn(move || sender.send(hub.fetch(file)));
        thread.map_err(|e| refused("a thread for the hub", e))?;
        answer.recv_timeout(Duration::from_secs(seconds)).unwrap_or_else(|_| {
            Err(Error::Failed(format!(
                "{}: cannot download {file}: no answer within {seconds} s (HF_HUB_ETAG_TIMEOUT sets the limit, \
                 HF_HUB_OFFLINE=1 takes what the cache holds)",
                self.name
            )))
        })
    }

    /// A file that the cache holds of the revision.
    fn cached(&self, file: &str) -> Option<PathBuf> {
        self.asked(file, true).ok()?.ok()
    }

    /// Asks the client for a file, which may ask the hub unless only local files are wanted.
    fn asked(&self, file: &str, local_files_only: bool) -> Result<Result<PathBuf, HFError>, String> {
        let request = self.repository.download_file().filename(file).revision(self.revision.as_str());
        guarded(|| Ok(request.local_files_only(local_files_only).send()))
    }

    /// Downloads a file unless the cache holds it; `None` if the repository has no such file.
    pub fn fetch(&self, file: &str) -> Result<Option<PathBuf>> {
        tracing::info!("fetching {file} of {} ({})", self.name, self.revision);
        let failed = |problem: &str| Error::Failed(format!("{}: cannot download {file}: {problem}", self.name));
        match self.asked(file, is_offline()) {
            Ok(Ok(path)) => Ok(Some(path)),
            Ok(Err(HFError::EntryNotFound { .. })) => Ok(None),
            Ok(Err(error)) => Err(failed(&reason(&error))),
            Err(problem) => Err(failed(&format!("the hub's answer is {problem}"))),
        }
    }
}

/// Whether only what the hub's cache holds may be used.
pub(super) fn is_offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0"))
}

/// An error of the hub client in one line, with what lies beneath it and what to do.
fn reason(error: &HFError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    match error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } | HFError::RepoNotFound { .. } => format!(
            "{text} (is the name right? for a gated model accept its licence on huggingface.co and set HF_TOKEN)"
        ),
        HFError::LocalEntryNotFound { .. } => format!("{text} (HF_HUB_OFFLINE is set)"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub() {
        let parsed = |name: &'static str| {
            HubName::parse(name).map(|name| (name.owner, name.repository, name.revision, name.file))
        };
        assert_eq!(parsed("a/b"), Some(("a", "b", "main", None)));
        assert_eq!(parsed("a/b@c/d"), Some(("a", "b", "c/d", None)));
        assert_eq!(parsed("a/b/c.safetensors"), Some(("a", "b", "main", Some("c.safetensors"))));
        assert_eq!(parsed("a/b/c/d.GGUF"), Some(("a", "b", "main", Some("c/d.GGUF"))));
        assert_eq!(parsed("a/b/c@d.gguf"), Some(("a", "b", "main", Some("c@d.gguf"))));
        assert_eq!(parsed("a/b@v1/c/d.gguf"), Some(("a", "b", "v1", Some("c/d.gguf"))));
        assert_eq!(parsed("a/b@refs/pr/3/d.gguf"), Some(("a", "b", "refs/pr/3", Some("d.gguf"))));
        for wrong in
            ["", "a", "a/", "/b", "a/b@", "a/b/c", "a/b/", "/b/c.gguf", "a//c.gguf", "a/b@/c.gguf", "a/b@c.gguf"]
        {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
