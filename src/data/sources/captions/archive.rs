//! Captions in a tar archive of text files, such as PixArt's SAM-LLaVA-Captions10M: read once, as a stream.
use super::columns::Insert;
use crate::data::sources::names::{Role, is_passed_over, role};
use crate::system::limits::{CAPTION, RECORD};
use crate::system::patience::Patient;
use crate::system::utf8;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read};

/// As [`read`], of an archive compressed by gzip.
pub fn read_compressed(file: Patient<File>, insert: &mut Insert) -> Result<(), String> {
    read(MultiGzDecoder::new(BufReader::with_capacity(1 << 20, file)), insert)
}

/// Calls `insert` for every `KEY.txt` or `KEY.caption`.
pub fn read(archive: impl Read, insert: &mut Insert) -> Result<(), String> {
    // The meter bounds what the crate `tar` takes for a long name.
    let (metered, meter) = RECORD.metered(archive);
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, metered));
    let failed = |problem: io::Error| format!("no readable tar archive: {problem}");
    let mut others = 0u64;
    for member in archive.entries().map_err(failed)? {
        let mut member = member.map_err(failed)?;
        let path = String::from_utf8(member.path_bytes().into_owned());
        let path = path.map_err(|problem| format!("the name {:?} is no UTF-8", problem.to_string()))?;
        let is_file = member.header().entry_type().is_file();
        let name = path.rsplit('/').next().unwrap_or(&path);
        if is_file && !is_passed_over(name) && matches!(role(name).1, Role::Text | Role::Caption) {
            let problem = |problem: String| format!("{path}: {problem}");
            CAPTION.check(member.size()).map_err(problem)?;
            let mut text = Vec::new();
            member.read_to_end(&mut text).map_err(failed)?;
            let key = path.rsplit_once('.').map_or(path.as_str(), |(key, _)| key);
            insert(key, &utf8::text(text).map_err(problem)?).map_err(problem)?;
            meter.reset();
        } else {
            others += u64::from(is_file && !is_passed_over(name));
            meter.unmetered(|| io::copy(&mut member, &mut io::sink())).map_err(failed)?;
        }
    }
    if others > 0 {
        tracing::warn!("{others} files of the archive of captions are neither .txt nor .caption and were passed over");
    }
    Ok(())
}
