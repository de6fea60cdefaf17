//! What was found in a source beside whole samples, counted by kind.
use super::names::shown_extension;
use crate::config::{Allowed, Choice};
use serde::Serialize;
use std::collections::BTreeMap;

/// Names of files that are shown for a kind.
pub const EXAMPLES: usize = 3;

/// A kind of file, or of gap, that training does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    CaptionMissing,
    CaptionUnclear,
    AnnotationMissing,
    LabelMapMissing,
    NotAnnotated,
    AnnotationUnclear,
    CaptionAlone,
    MaskAlone,
    AnnotationAlone,
    SecondPicture,
    SecondCaption,
    SecondMask,
    JpegMask,
    UnusedCaption,
    CaptionBesideMetadata,
    UnusedAnnotation,
    UnreadPicture,
    Archive,
    BesideShards,
    NoPlainFile,
    LinkedFolder,
    DeadLink,
    NoUnicode,
    /// Nothing is wrong with it: masks are optional.
    MaskMissing,
    /// Nothing is wrong with it, unless all are.
    BlankCaption,
    /// Nothing is wrong with it: these captions are for other pictures.
    CaptionOfOthers,
    /// Nothing is wrong with it: these annotations are of other pictures.
    AnnotationOfOthers,
    /// Perhaps nothing is wrong with it.
    Unended,
    RepeatsInName,
    /// Nothing that looks like data.
    Other,
}

/// How a kind is described.
pub struct Description {
    /// After "1", and after a larger number.
    text: [&'static str; 2],
    /// What to do about it.
    pub help: &'static str,
    /// What `data.allow` must have for it to be accepted; `None` where it is no error.
    pub allowed: Option<Allowed>,
}

const fn error(text: [&'static str; 2], help: &'static str, allowed: Allowed) -> Description {
    Description { text, help, allowed: Some(allowed) }
}

const fn remark(text: [&'static str; 2]) -> Description {
    Description { text, help: "", allowed: None }
}

impl Finding {
    pub fn description(self) -> Description {
        use Allowed::{CaptionsMissing, FilesUnread, MasksMissing, PicturesMissing};
        match self {
            Self::CaptionMissing => error(
                ["photograph without a caption", "photographs without a caption"],
                "write it into NAME.txt beside the picture or into data.captions",
                CaptionsMissing,
            ),
            Self::CaptionUnclear => error(
                ["photograph that several captions fit", "photographs that several captions fit"],
                "give the keys of the captions the folders of their pictures",
                CaptionsMissing,
            ),
            Self::AnnotationMissing => error(
                ["photograph without annotations", "photographs without annotations"],
                "its masks belong into NAME.json beside it",
                MasksMissing,
            ),
            Self::LabelMapMissing => error(
                ["photograph without a label map", "photographs without a label map"],
                "it belongs into data.labels under the picture's name",
                MasksMissing,
            ),
            Self::NotAnnotated => error(
                ["photograph that the annotations do not have", "photographs that the annotations do not have"],
                "the `file_name` in its `images` is the picture's path, or the end of it",
                MasksMissing,
            ),
            Self::AnnotationUnclear => error(
                [
                    "photograph that several images of the annotations fit",
                    "photographs that several images of the annotations fit",
                ],
                "write their folders in `file_name`",
                MasksMissing,
            ),
            Self::CaptionAlone => error(
                ["caption without its photograph", "captions without their photographs"],
                "a caption has the name of its picture, but for the extension",
                PicturesMissing,
            ),
            Self::MaskAlone => error(
                ["mask without its photograph", "masks without their photographs"],
                "a mask has its picture's name: x.png, x_mask.png or masks/x.png for x.jpg; a photograph with such a name \
                 needs another",
                PicturesMissing,
            ),
            Self::AnnotationAlone => error(
                ["annotation without its photograph", "annotations without their photographs"],
                "annotations have the name of their picture, but for the extension",
                PicturesMissing,
            ),
            Self::SecondPicture => error(
                ["second picture of one name", "second pictures of one name"],
                "a name stands for one photograph, and a mask beside it for a PNG or for NAME_mask: rename or remove the \
                 others",
                FilesUnread,
            ),
            Self::SecondCaption => error(
                ["second caption of one picture", "second captions of one picture"],
                "keep one of NAME.txt and NAME.caption",
                FilesUnread,
            ),
            Self::SecondMask => error(
                ["further mask of one picture", "further masks of one picture"],
                "a picture has one label map, or masks that are all numbered: NAME.0.png, NAME.1.png, …",
                FilesUnread,
            ),
            Self::JpegMask => error(
                ["mask as JPEG", "masks as JPEG"],
                "masks must not be JPEG, which blurs their edges into other values: save them as PNG",
                FilesUnread,
            ),
            // Naming a file of captions is the user's choice.
            Self::UnusedCaption => remark([
                "caption file beside a picture, not read: captions come from the file of captions",
                "caption files beside pictures, not read: captions come from the file of captions",
            ]),
            Self::CaptionBesideMetadata => error(
                ["caption file beside a picture", "caption files beside pictures"],
                "not read, since a file metadata.* has the captions: keep one of the two, or name the file in data.captions",
                FilesUnread,
            ),
            Self::UnusedAnnotation => error(
                ["JSON file beside a picture", "JSON files beside pictures"],
                "not read: masks are PNG files here; SA-1B's annotations need format = \"sa1b\"",
                FilesUnread,
            ),
            Self::UnreadPicture => error(
                ["picture in a format that is not read", "pictures in formats that are not read"],
                "convert to JPEG, PNG or WebP",
                FilesUnread,
            ),
            Self::Archive => error(
                ["archive that is not read", "archives that are not read"],
                "unpack it; format = \"sa1b\" reads .tar, .tar.gz and .tgz",
                FilesUnread,
            ),
            Self::BesideShards => error(
                ["file of a sample beside tar shards", "files of samples beside tar shards"],
                "in a folder with tar files only those are read: move the others to a folder of their own",
                FilesUnread,
            ),
            Self::NoPlainFile => error(
                ["link or sparse file in a tar file", "links or sparse files in tar files"],
                "only plain files are read: pack them with tar --dereference --hard-dereference",
                FilesUnread,
            ),
            Self::LinkedFolder => error(
                ["link to a folder", "links to folders"],
                "folders behind links are not entered: list them in data.source themselves",
                FilesUnread,
            ),
            Self::DeadLink => {
                error(["link that leads nowhere", "links that lead nowhere"], "what it named is gone", FilesUnread)
            }
            Self::NoUnicode => error(
                ["file whose name is no UTF-8", "files whose names are no UTF-8"],
                "no caption can name it: rename it",
                FilesUnread,
            ),
            Self::MaskMissing => remark(["photograph without a mask", "photographs without a mask"]),
            Self::BlankCaption => remark(["empty caption", "empty captions"]),
            Self::CaptionOfOthers => {
                remark(["caption of a picture that is not here", "captions of pictures that are not here"])
            }
            Self::AnnotationOfOthers => {
                remark(["annotated picture that is not here", "annotated pictures that are not here"])
            }
            Self::Unended => remark([
                "tar file without the mark of its end, perhaps cut short",
                "tar files without the mark of their end, perhaps cut short",
            ]),
            Self::RepeatsInName => remark([
                "folder with a number before its name; if that says repeats, give them in [[data.sources]]",
                "folders with numbers before their names; if those say repeats, give them in [[data.sources]]",
            ]),
            Self::Other => remark(["other file", "other files"]),
        }
    }

    /// Whether a tar file yields each of these as a broken sample.
    pub fn is_broken_sample(self) -> bool {
        use Finding::{AnnotationAlone, AnnotationMissing, CaptionMissing, MaskAlone, UnreadPicture};
        matches!(self, CaptionMissing | AnnotationMissing | AnnotationAlone | MaskAlone | UnreadPicture)
    }

    /// What is wrong with so many of these in `source`, unless it is nothing or accepted.
    pub fn problem(self, count: &Count, source: &str, allow: &[Allowed]) -> Option<String> {
        let Description { help, allowed, .. } = self.description();
        let allowed = allowed.filter(|allowed| !allow.contains(allowed))?;
        let accept = allowed.name();
        Some(format!("{source}: {}; {help}, or accept it with data.allow = [{accept:?}]", self.shown(count)))
    }

    /// `4 photographs without a caption: a.jpg, b.jpg, c.jpg, …`, as far as there are names.
    pub fn shown(self, count: &Count) -> String {
        let text = counted(count.count, self.description().text);
        let more = if count.count > count.first.len() as u64 { ", …" } else { "" };
        if count.first.is_empty() { text } else { format!("{text}: {}{more}", count.first.join(", ")) }
    }
}

/// How many there are of a kind, the first names, and how many of each extension.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub count: u64,
    /// The first names.
    pub first: Vec<String>,
    pub extensions: BTreeMap<String, u64>,
}

impl Count {
    /// Folders are not listed in order: the first by name are shown.
    fn show(&mut self, name: String) {
        let place = self.first.partition_point(|other| *other < name);
        if place < EXAMPLES && self.first.get(place) != Some(&name) {
            self.first.insert(place, name);
            self.first.truncate(EXAMPLES);
        }
    }
}

/// All that was found, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Findings(BTreeMap<Finding, Count>);

impl Findings {
    /// Counts the file `name`, a path below the source.
    pub fn add(&mut self, finding: Finding, name: &str) {
        let found = self.0.entry(finding).or_default();
        found.count += 1;
        found.show(name.to_owned());
        let extension = shown_extension(name.rsplit('/').next().unwrap_or(name));
        // Names are many, extensions few; where they are not, as in `x.001`, the rest is left uncounted.
        if found.extensions.len() < 50 || found.extensions.contains_key(&extension) {
            *found.extensions.entry(extension).or_default() += 1;
        }
    }

    /// Counts so many, some of which have these names.
    pub fn add_many(&mut self, finding: Finding, (count, names): (u64, Vec<String>)) {
        if count > 0 {
            let found = self.0.entry(finding).or_default();
            found.count += count;
            names.into_iter().for_each(|name| found.show(name));
        }
    }

    /// Takes over what others have found.
    pub fn merge(&mut self, other: Self) {
        for (finding, more) in other.0 {
            let found = self.0.entry(finding).or_default();
            found.count += more.count;
            more.first.into_iter().for_each(|name| found.show(name));
            more.extensions
                .into_iter()
                .for_each(|(extension, count)| *found.extensions.entry(extension).or_default() += count);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Finding, &Count)> {
        self.0.iter().map(|(finding, count)| (*finding, count))
    }

    pub fn count(&self, finding: Finding) -> u64 {
        self.0.get(&finding).map_or(0, |found| found.count)
    }
}

/// `1 photograph`, `1 204 photographs`.
pub fn counted(count: u64, [one, more]: [&str; 2]) -> String {
    format!("{} {}", thousands(count), if count == 1 { one } else { more })
}

/// A number with a space before every three digits.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let group = |(place, digit): (usize, char)| {
        let is_start = place > 0 && (digits.len() - place).is_multiple_of(3);
        is_start.then_some(' ').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn digits_stand_in_threes() {
        let shown = [0, 12, 999, 1000, 1204, 1_000_000].map(thousands);
        assert_eq!(shown, ["0", "12", "999", "1 000", "1 204", "1 000 000"]);
    }
}
