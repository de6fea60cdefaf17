//! Brace patterns as shells expand them: `sa_{000..010}.tar`, `{train,val}/*.tar`.
use crate::{Error, Result};

/// Names that one pattern may stand for; SA-1B has a thousand shards.
const MOST: u64 = 1_000_000;

/// The texts that `pattern` stands for, in its order. Numbers keep the width of the first: `{08..10}` is 08, 09, 10. Braces
/// without `..` or `,` stand for themselves.
///
/// # Errors
/// The pattern stands for too many.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>> {
    let mut texts = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, choices, behind)) = first_braces(rest) {
        if (texts.len() as u64).saturating_mul(choices.count()) > MOST {
            let problem = format!("stands for more than {MOST} names");
            return Err(Error::Usage(format!("data.source: `{pattern}` {problem}")));
        }
        let choices = choices.texts();
        texts =
            texts.iter().flat_map(|text| choices.iter().map(move |choice| format!("{text}{before}{choice}"))).collect();
        rest = behind;
    }
    texts.iter_mut().for_each(|text| text.push_str(rest));
    Ok(texts)
}

enum Choices<'a> {
    Range { first: u64, last: u64, width: usize },
    List(Vec<&'a str>),
}

/// The text before the first braces with choices, these, and the text behind.
fn first_braces(text: &str) -> Option<(&str, Choices<'_>, &str)> {
    text.match_indices('{').find_map(|(open, _)| {
        let close = open + text[open..].find('}')?;
        Some((&text[..open], Choices::read(&text[open + 1..close])?, &text[close + 1..]))
    })
}

impl<'a> Choices<'a> {
    fn read(inside: &'a str) -> Option<Self> {
        if inside.contains(['{', '/']) {
            return None;
        }
        if let Some((first, last)) = inside.split_once("..") {
            let number = |digits: &str| {
                digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
            };
            let (first_number, last) = (number(first)?, number(last)?);
            return Some(Self::Range { first: first_number, last, width: first.len() });
        }
        inside.contains(',').then(|| Self::List(inside.split(',').collect()))
    }

    fn count(&self) -> u64 {
        match self {
            Self::Range { first, last, .. } => first.abs_diff(*last).saturating_add(1),
            Self::List(list) => list.len() as u64,
        }
    }

    fn texts(&self) -> Vec<String> {
        let padded = |number: u64, width: usize| format!("{number:0width$}");
        match *self {
            Self::Range { first, last, width } if first <= last => {
                (first..=last).map(|number| padded(number, width)).collect()
            }
            Self::Range { first, last, width } => (last..=first).rev().map(|number| padded(number, width)).collect(),
            Self::List(ref list) => list.iter().map(|text| text.to_string()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_as_in_a_shell() {
        let cases = [
            ("a.tar", vec!["a.tar"]),
            ("sa_{008..011}.tar", vec!["sa_008.tar", "sa_009.tar", "sa_010.tar", "sa_011.tar"]),
            ("{8..11}", vec!["8", "9", "10", "11"]),
            ("{3..1}", vec!["3", "2", "1"]),
            ("{a,b}/{0..1}.tar", vec!["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
            ("x{,y}", vec!["x", "xy"]),
            ("{7..7}", vec!["7"]),
            // As a shell, which leaves these as they are.
            ("{a}", vec!["{a}"]),
            ("{a..}", vec!["{a..}"]),
            ("{..}", vec!["{..}"]),
            ("{1..2", vec!["{1..2"]),
            ("}{", vec!["}{"]),
            ("{-1..2}", vec!["{-1..2}"]),
            ("{x{1..2}", vec!["{x1", "{x2"]),
            ("{99999999999999999999..1}", vec!["{99999999999999999999..1}"]),
            ("", vec![""]),
        ];
        for (pattern, expected) in cases {
            assert_eq!(expand_braces(pattern).unwrap(), expected, "{pattern}");
        }
    }

    #[test]
    fn too_many_names_are_refused() {
        for pattern in ["{0..1000000}", "{0..999}{0..999}{0..1}", "{0..18446744073709551615}{1,2}"] {
            let problem = expand_braces(pattern).unwrap_err().to_string();
            assert!(problem.contains("more than 1000000 names"), "{problem}");
        }
    }
}
