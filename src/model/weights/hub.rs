//! Repositories of the Hugging Face hub in its usual cache.
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::process::refused;
use hf_hub::{HFClientSync, HFError, HFRepositorySync, RepoTypeModel};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seconds that the hub may take to answer at all, where HF_HUB_ETAG_TIMEOUT does not say otherwise.
const ANSWER_SECONDS: u64 = 30;

/// A repository at one commit.
#[derive(Clone)]
pub(super) struct Hub {
    repository: HFRepositorySync<RepoTypeModel>,
    /// As the user wrote it, for errors.
    name: String,
    revision: String,
}

impl Hub {
    /// Finds the repository `ORG/NAME` or `ORG/NAME@REVISION`, and its snapshot in the cache.
    ///
    /// # Errors
    /// There is no such, or it cannot be asked for; it is no diffusers pipeline.
    pub fn open(name: &str) -> Result<(Self, PathBuf)> {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        let (owner, repository) = match id.split_once('/') {
            Some((owner, name)) if !owner.is_empty() && !name.is_empty() && !name.contains('/') => (owner, name),
            _ => return Err(Error::Usage(format!("hf:{name}: expected hf:org/name or hf:org/name@revision"))),
        };
        if revision.is_empty() {
            return Err(Error::Usage(format!("hf:{name}: no revision after @")));
        }
        let client = HFClientSync::new().map_err(|e| Error::Failed(format!("hf:{name}: {}", reason(&e))))?;
        let mut hub = Hub {
            repository: client.model(owner, repository),
            name: format!("hf:{name}"),
            revision: revision.to_string(),
        };
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

    /// Downloads a file unless the cache holds it; `None` if the repository has no such file.
    pub fn fetch(&self, file: &str) -> Result<Option<PathBuf>> {
        tracing::info!("fetching {file} of {} ({})", self.name, self.revision);
        let download = || {
            let request = self.repository.download_file().filename(file).revision(self.revision.as_str());
            Ok(request.local_files_only(is_offline()).send())
        };
        let got = guarded(download).map_err(|problem: String| {
            Error::Failed(format!("{}: cannot download {file}: the hub's answer is {problem}", self.name))
        })?;
        match got {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            Err(error) => Err(Error::Failed(format!("{}: cannot download {file}: {}", self.name, reason(&error)))),
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
