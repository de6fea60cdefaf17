//! Names that files give to other files: plain relative ones, or refused. What a name can reach outside the folder that
//! it belongs to, it could also make there.
use std::path::{Component, Path};

/// Checks the name of a file within a folder.
///
/// # Errors
/// It is empty, absolute, holds `..`, `.`, a backslash or a control character.
pub fn check(name: &str) -> Result<(), String> {
    let is_plain = |part: Component| matches!(part, Component::Normal(_));
    // `a/./b` and `a//b` are the same path as `a/b`: a plain name is written in one way.
    let parts: Vec<Component> = Path::new(name).components().collect();
    let written = name.split('/').count() == parts.len();
    let odd = name.contains(['\\', ':']) || name.chars().any(char::is_control);
    match !parts.is_empty() && written && !odd && parts.into_iter().all(is_plain) {
        true => Ok(()),
        false => Err(format!("{name:?} is no plain name of a file within its folder")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_their_folder() {
        for name in ["model-00001-of-00002.safetensors", "train2014/COCO_1.jpg", "ä ö.png", "..a", "a..b"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in
            ["", ".", "..", "../a", "a/../b", "a/..", "./a", "/a", "//a", "a/", "a//b", "a\\b", "C:a", "a\0b", "a\nb"]
        {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
