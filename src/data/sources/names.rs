//! What a file of a source is, by its name alone.
use crate::data::codec::photograph::{EXTENSIONS, UNREAD_EXTENSIONS};
use std::borrow::Cow;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A photograph or a mask, by the place of its extension in [`EXTENSIONS`].
    Picture(u8),
    /// A caption: `.txt`.
    Text,
    /// A caption: `.caption`.
    Caption,
    /// Annotations: `.json`.
    Json,
    /// Captions of a whole folder: `metadata.jsonl`, `.csv` or `.parquet`, as the Hugging Face hub has them.
    Metadata,
    /// A shard, perhaps compressed.
    Tar,
    /// A picture in a format that is not read.
    UnreadPicture,
    /// An archive that is not read.
    Archive,
    Other,
}

/// Folders that hold masks of the pictures beside them.
const MASK_FOLDERS: [&str; 13] = [
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "segmentation",
    "segmentations",
    "segmentationclass",
    "segmentationobject",
    "groundtruth",
    "masklabels",
    "label_maps",
    "ground_truth",
];

/// Folders beside which those of [`MASK_FOLDERS`] stand.
const PICTURE_FOLDERS: [&str; 11] =
    ["images", "image", "imgs", "img", "photos", "photo", "photographs", "pictures", "jpegimages", "rgb", "inputs"];

const ARCHIVES: [&str; 12] = ["zip", "7z", "rar", "bz2", "tbz", "tbz2", "xz", "txz", "zst", "tzst", "lz4", "gz"];

/// Whether systems and programs leave this file or folder lying around everywhere.
pub fn is_passed_over(name: &str) -> bool {
    let known = ["__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "lost+found"];
    name.starts_with('.') || known.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a folder of this name holds masks.
pub fn is_mask_folder(name: &str) -> bool {
    MASK_FOLDERS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a folder of this name holds pictures, whose masks are in a folder beside it.
pub fn is_picture_folder(name: &str) -> bool {
    PICTURE_FOLDERS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a folder is called as kohya's trainer reads repeats from its name: `10_cats`. A year is none.
pub fn says_repeats(name: &str) -> bool {
    let number = name.split_once('_').and_then(|(number, _)| number.parse().ok());
    number.is_some_and(|number: u32| (2..1000).contains(&number))
}

/// Stem and role of a file.
pub fn role(name: &str) -> (&str, Role) {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, extension.to_ascii_lowercase()),
        _ => return (name, Role::Other),
    };
    let place = |list: &[&str]| list.iter().position(|known| *known == extension);
    let role = match extension.as_str() {
        "txt" if is_about_the_folder(stem) => Role::Other,
        "txt" => Role::Text,
        "caption" => Role::Caption,
        "jsonl" | "csv" | "parquet" if stem.eq_ignore_ascii_case("metadata") => Role::Metadata,
        "json" => Role::Json,
        "tar" | "tgz" => Role::Tar,
        "gz" if has_extension(stem, "tar") => Role::Tar,
        _ => match place(&EXTENSIONS) {
            Some(place) => Role::Picture(place as u8),
            None if place(&UNREAD_EXTENSIONS).is_some() => Role::UnreadPicture,
            None if place(&ARCHIVES).is_some() => Role::Archive,
            None => Role::Other,
        },
    };
    (stem, role)
}

/// Whether `name` has this extension, in any letter case.
fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

/// Whether a shard is compressed, by its name.
pub fn is_compressed(name: &str) -> bool {
    has_extension(name, "gz") || has_extension(name, "tgz")
}

/// The extension as counts show it: `.heic`, or nothing.
pub fn shown_extension(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => format!(".{}", extension.to_lowercase()),
        _ => "without extension".into(),
    }
}

fn is_about_the_folder(stem: &str) -> bool {
    ["readme", "license", "licence", "requirements"].iter().any(|known| known.eq_ignore_ascii_case(stem))
}

impl Role {
    /// Whether pictures of this kind lose detail, so that they cannot be masks.
    pub fn is_jpeg(self) -> bool {
        matches!(self, Self::Picture(place) if EXTENSIONS[usize::from(place)].starts_with('j'))
    }

    pub fn is_png(self) -> bool {
        matches!(self, Self::Picture(place) if EXTENSIONS[usize::from(place)] == "png")
    }
}

/// What a file's name says of the picture that it is a mask of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskName<'a> {
    /// Stem of the picture.
    pub picture: &'a str,
    /// Number among the picture's masks.
    pub number: Option<u32>,
    /// Whether the name says that it is a mask: `x_mask`, and not only `x.0`.
    pub says_mask: bool,
}

/// Reads `x_mask`, `x-masklabel`, `x.mask`, the same with a number behind it (`x_mask0`, `x_mask_0`), and `x.0`.
pub fn mask_name(stem: &str) -> Option<MaskName<'_>> {
    const SEPARATORS: [char; 3] = ['_', '-', '.'];
    let bare = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = stem.get(bare.len()..).and_then(|digits| digits.parse().ok());
    let unnumbered = if number.is_some() { bare.strip_suffix(SEPARATORS).unwrap_or(bare) } else { stem };
    let word = ["masklabel", "mask"].iter().find_map(|word| {
        let at = unnumbered.len().checked_sub(word.len())?;
        let is_word = unnumbered.get(at..)?.eq_ignore_ascii_case(word);
        unnumbered[..at].strip_suffix(SEPARATORS).filter(|_| is_word)
    });
    let found = match (word, bare.strip_suffix('.')) {
        (Some(picture), _) => MaskName { picture, number, says_mask: true },
        (None, Some(picture)) if number.is_some() => MaskName { picture, number, says_mask: false },
        _ => return None,
    };
    Some(found).filter(|found| !found.picture.is_empty())
}

/// Composed Unicode (NFC), in which names are compared: macOS and Linux write `é` differently.
pub fn composed(name: &str) -> Cow<'_, str> {
    if name.is_ascii() || is_nfc(name) { Cow::Borrowed(name) } else { Cow::Owned(name.nfc().collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_files_are() {
        let roles = |names: &[&str]| names.iter().map(|name| role(name).1).collect::<Vec<_>>();
        assert!(roles(&["a.jpg", "a.JPEG", "a.b.WebP", "a.TIFF"]).iter().all(|role| matches!(role, Role::Picture(_))));
        assert_eq!(roles(&["a.tar", "a.TAR", "a.tar.gz", "a.TGZ", "a.gz"])[..4], [Role::Tar; 4]);
        assert_eq!(roles(&["a.gz", "a.zip", "a.tar.zst"]), [Role::Archive; 3]);
        assert_eq!(roles(&["a.HEIC", "a.avif", "a.jxl"]), [Role::UnreadPicture; 3]);
        assert_eq!(roles(&["metadata.jsonl", "Metadata.CSV", "metadata.parquet"]), [Role::Metadata; 3]);
        assert_eq!(roles(&["README.txt", "a", "a.md", "captions.csv"]), [Role::Other; 4]);
        assert_eq!((role("a.b.txt").0, role("noext").0), ("a.b", "noext"));
        assert!(role("a.JPG").1.is_jpeg() && role("a.jfif").1.is_jpeg() && !role("a.png").1.is_jpeg());
        assert!(["._a.jpg", ".DS_Store", "thumbs.db", "__MACOSX"].iter().all(|name| is_passed_over(name)));
    }

    #[test]
    fn mask_names_name_their_picture() {
        let read = |stem| mask_name(stem).map(|found| (found.picture, found.number, found.says_mask));
        for stem in ["x_mask", "x-masklabel", "x.mask", "x_Mask", "x.masklabel"] {
            assert_eq!(read(stem), Some(("x", None, true)), "{stem}");
        }
        for stem in ["x_mask3", "x_mask_3", "x.mask.3", "x-mask-03"] {
            assert_eq!(read(stem), Some(("x", Some(3), true)), "{stem}");
        }
        assert_eq!(read("x.0"), Some(("x", Some(0), false)));
        assert_eq!(read("a.b.12"), Some(("a.b", Some(12), false)));
        for stem in ["x", "mask", "_mask", "x_0", "unmask", "x12", ".0"] {
            assert_eq!(read(stem), None, "{stem}");
        }
    }
}
