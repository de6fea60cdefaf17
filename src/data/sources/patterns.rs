//! Patterns of paths: `~`, `{a,b}`, `{000..010}`, and the wildcards of the crate `glob`.
use crate::system::paths::{exists, fixed_part};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Paths that braces may stand for.
const MOST: usize = 100_000;

/// What a pattern stands for.
pub enum Expanded {
    Paths(Vec<PathBuf>),
    /// Nothing matches this, which is the pattern or what its braces stand for.
    Missing(String),
}

/// What `pattern` names: the path itself if it is there, otherwise every path that it stands for, in the order of its
/// braces, and those of wildcards in alphabetical order.
///
/// # Errors
/// `Error::Usage` where it is no pattern; the system's reason why nothing is found.
pub fn expand(pattern: &str) -> Result<Expanded> {
    let pattern = with_home(pattern);
    if exists(Path::new(&pattern))? {
        return Ok(Expanded::Paths(vec![PathBuf::from(pattern)]));
    }
    let mut paths = Vec::new();
    for plain in without_braces(&pattern).map_err(|problem| Error::Usage(format!("{pattern}: {problem}")))? {
        let found = matches(&plain)?;
        if found.is_empty() {
            // If the system reports a reason, return it instead of "matches nothing".
            exists(fixed_part(&plain))?;
            return Ok(Expanded::Missing(plain));
        }
        paths.extend(found);
    }
    Ok(Expanded::Paths(paths))
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    if exists(Path::new(pattern))? {
        return Ok(vec![PathBuf::from(pattern)]);
    }
    let paths = glob::glob(pattern).map_err(|e| Error::Usage(format!("{pattern}: not a pattern: {}", e.msg)))?;
    paths.map(|path| path.map_err(|problem| Error::file(problem.path(), problem.error()))).collect()
}

/// `~` at the start is the user's home.
fn with_home(pattern: &str) -> String {
    match (pattern.strip_prefix('~'), std::env::home_dir()) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(std::path::is_separator) => {
            format!("{}{rest}", home.display())
        }
        _ => pattern.to_owned(),
    }
}

/// The patterns that one with braces stands for, as a shell makes them: `{a,b}` and `{000..010}`, numbers as wide as the
/// wider end is written if one begins with 0. Other braces stand for themselves.
fn without_braces(pattern: &str) -> Result<Vec<String>, String> {
    let mut done = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, inner, after)) = first_braces(rest) {
        let choices = choices(inner)?;
        if done.len().saturating_mul(choices.len()) > MOST {
            return Err(format!("its braces stand for more than {MOST} paths"));
        }
        done = done
            .iter()
            .flat_map(|start| choices.iter().map(move |choice| format!("{start}{before}{choice}")))
            .collect();
        rest = after;
    }
    done.iter_mut().for_each(|start| start.push_str(rest));
    Ok(done)
}

/// What stands before, in and behind the first pair of braces with a comma or a range in it.
fn first_braces(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let open = from + text[from..].find('{')?;
        let close = open + text[open..].find('}')?;
        let inner = &text[open + 1..close];
        // `{a{b,c}`: the inner pair counts.
        match inner.rfind('{') {
            Some(inner_open) => from = open + 1 + inner_open,
            None if inner.contains(',') || range(inner).is_some() => {
                return Some((&text[..open], inner, &text[close + 1..]));
            }
            None => from = close + 1,
        }
    }
}

fn choices(inner: &str) -> Result<Vec<String>, String> {
    let Some((first, last, width)) = range(inner) else {
        return Ok(inner.split(',').map(str::to_owned).collect());
    };
    if first.abs_diff(last) >= MOST as u64 {
        return Err(format!("{{{inner}}} stands for more than {MOST} paths"));
    }
    let number = |number: u64| format!("{number:0width$}");
    Ok(match first <= last {
        true => (first..=last).map(number).collect(),
        false => (last..=first).rev().map(number).collect(),
    })
}

/// Ends and width of `000..010`.
fn range(inner: &str) -> Option<(u64, u64, usize)> {
    let (first, last) = inner.split_once("..")?;
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let is_padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if is_padded { first.len().max(last.len()) } else { 0 };
    Some((number(first)?, number(last)?, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_what_a_shell_makes_of_them() {
        let expand = |text| without_braces(text).expect("expand").join(" ");
        assert_eq!(expand("a/{x,y}/b"), "a/x/b a/y/b");
        assert_eq!(expand("s_{000..003}.tar"), "s_000.tar s_001.tar s_002.tar s_003.tar");
        assert_eq!(expand("s_{8..11}"), "s_8 s_9 s_10 s_11");
        assert_eq!(expand("s_{08..10}_{a,b}"), "s_08_a s_08_b s_09_a s_09_b s_10_a s_10_b");
        assert_eq!(expand("{2..0}"), "2 1 0");
        assert_eq!(expand("{a}{b"), "{a}{b");
        assert_eq!(expand("plain"), "plain");
        assert_eq!(expand("x{,.bak}"), "x x.bak");
        assert!(without_braces("{0..999999999999}").is_err());
        assert!(without_braces("{0..9999}{0..9999}").is_err());
    }

    #[test]
    fn every_path_of_a_pattern_must_be_there() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["s_0.tar", "s_1.tar", "{odd,name}"] {
            std::fs::write(folder.path().join(name), "").expect("write");
        }
        let expanded = |name: &str| match expand(folder.path().join(name).to_str().expect("path")).expect("pattern") {
            Expanded::Paths(paths) => Ok(paths.len()),
            Expanded::Missing(part) => Err(part.rsplit('/').next().unwrap_or_default().to_owned()),
        };
        assert_eq!(expanded("s_{0..1}.tar"), Ok(2));
        assert_eq!(expanded("s_*.tar"), Ok(2));
        assert_eq!(expanded("{odd,name}"), Ok(1));
        assert_eq!(expanded("s_{0..2}.tar"), Err("s_2.tar".into()));
    }

    #[test]
    fn a_tilde_is_the_home() {
        if let Some(home) = std::env::home_dir() {
            assert_eq!(with_home("~/data"), format!("{}/data", home.display()));
            assert_eq!(with_home("~"), home.display().to_string());
        }
        assert_eq!(with_home("~other/data"), "~other/data");
        assert_eq!(with_home("a~b"), "a~b");
    }
}
