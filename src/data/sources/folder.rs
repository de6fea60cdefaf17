//! The files of one folder, paired to samples by their names.
//!
//! Memory: 16 bytes and the name for each file; a million names take 40 MB.
use super::findings::{Finding, Findings};
use super::names::{Role, composed, is_passed_over, mask_name, role};
use super::pairing::Pairing;
use crate::config::DataFormat;
use crate::system::paths::may_be_file;
use crate::system::patience::patiently;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The names of a folder's files, sorted by stem.
#[derive(Default)]
pub struct FileNames {
    /// All names, and the composed stems of those that are not composed.
    text: String,
    files: Vec<Named>,
}

/// A file: where its name and its stem stand in the text.
#[derive(Clone, Copy)]
struct Named {
    name: (u32, u16),
    stem: (u32, u16),
    role: Role,
}

impl FileNames {
    /// Reads a folder. What is no file is left out, and so is what lies around everywhere.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read(folder: &Path, below: &str, findings: &mut Findings) -> io::Result<Self> {
        let mut names = Self::default();
        for entry in patiently(|| std::fs::read_dir(folder))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() || kind.is_symlink() && !may_be_file(&entry.path()) {
                continue;
            }
            match entry.file_name().into_string() {
                Ok(name) if is_passed_over(&name) => {}
                Ok(name) => names.push(&name)?,
                Err(name) => findings.add(Finding::NoUnicode, &format!("{below}{}", name.to_string_lossy())),
            }
        }
        let Self { text, files } = &mut names;
        files.sort_unstable_by(|a, b| {
            let order = |file: &Named| (part(text, file.stem), file.role, part(text, file.name));
            order(a).cmp(&order(b))
        });
        Ok(names)
    }

    fn push(&mut self, name: &str) -> io::Result<()> {
        let (stem, role) = role(name);
        let place = self.append(name)?;
        let stem = match composed(stem) {
            stem if stem.len() <= name.len() && name.starts_with(&*stem) => (place.0, stem.len() as u16),
            stem => self.append(&stem)?,
        };
        self.files.push(Named { name: place, stem, role });
        Ok(())
    }

    fn append(&mut self, text: &str) -> io::Result<(u32, u16)> {
        let too_many = |_| io::Error::other("the names of this folder's files take more than 4 GB");
        let place = u32::try_from(self.text.len()).map_err(too_many)?;
        self.text.push_str(text);
        Ok((place, u16::try_from(text.len()).map_err(too_many)?))
    }

    fn name(&self, file: usize) -> &str {
        part(&self.text, self.files[file].name)
    }

    fn stem(&self, file: usize) -> &str {
        part(&self.text, self.files[file].stem)
    }

    /// The files of one stem, those of all stems in order.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let mut end = 0;
        self.files.chunk_by(|a, b| part(&self.text, a.stem) == part(&self.text, b.stem)).map(move |group| {
            let start = end;
            end += group.len();
            start..end
        })
    }

    /// The files with this stem.
    fn group(&self, stem: &str) -> Range<usize> {
        let start = self.files.partition_point(|file| part(&self.text, file.stem) < stem);
        let count = self.files[start..].iter().take_while(|file| part(&self.text, file.stem) == stem).count();
        start..start + count
    }

    fn of_role(&self, group: Range<usize>, wanted: impl Fn(Role) -> bool) -> impl Iterator<Item = usize> {
        group.filter(move |&file| wanted(self.files[file].role))
    }

    fn pictures(&self, group: Range<usize>) -> impl Iterator<Item = usize> {
        self.of_role(group, |role| matches!(role, Role::Picture(_)))
    }

    /// The picture of which the files of `group` are masks, by the first of its files, with their number.
    fn picture_of_masks(&self, group: Range<usize>) -> Option<(usize, Option<u32>)> {
        let found = mask_name(self.stem(group.start))?;
        let mut pictures = self.pictures(group.clone()).peekable();
        pictures.peek()?;
        // `x.0.jpg` beside `x.jpg` is another photograph.
        if !found.says_mask && pictures.any(|file| self.files[file].role.is_jpeg()) {
            return None;
        }
        let picture = self.group(found.picture);
        let is_photograph = self.pictures(picture.clone()).next().is_some() && !self.is_group_of_masks(picture.clone());
        is_photograph.then_some((picture.start, found.number))
    }

    fn is_group_of_masks(&self, group: Range<usize>) -> bool {
        self.picture_of_masks(group).is_some()
    }
}

fn part(text: &str, (start, length): (u32, u16)) -> &str {
    &text[start as usize..][..usize::from(length)]
}

/// A folder's files, and those of the folders with its masks.
pub struct PictureFolder {
    /// Path below the source, in composed Unicode, with a trailing slash.
    pub below: String,
    names: FileNames,
    masks: Vec<(PathBuf, FileNames)>,
    pairing: Arc<Pairing>,
}

/// A photograph and the files that belong to it, by name.
pub struct Paired<'a> {
    /// The photograph's stem.
    pub stem: &'a str,
    pub picture: &'a str,
    pub text: Option<&'a str>,
    pub json: Option<&'a str>,
    /// Names of masks, with their folder where it is another; in the order of their numbers.
    pub masks: Vec<(Option<&'a Path>, &'a str)>,
    /// Whether each of the masks is a file of its own, and none a label map.
    pub are_numbered: bool,
}

/// A mask of the picture whose group starts at `picture`. Sorted by that, then masks without a number first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MaskPlace {
    picture: u32,
    number: Option<u32>,
    /// Index into `masks`, after 0 for the folder itself.
    folder: u32,
    file: u32,
}

impl PictureFolder {
    /// Reads the names of `folder` and of the folders with its masks, as far as those are there.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn read(
        folder: &Path,
        below: &str,
        mask_folders: &[PathBuf],
        pairing: Arc<Pairing>,
        findings: &mut Findings,
    ) -> io::Result<Self> {
        let names = FileNames::read(folder, below, findings)?;
        let mut masks = Vec::new();
        for folder in mask_folders {
            match FileNames::read(folder, below, &mut Findings::default()) {
                Ok(names) => masks.push((folder.clone(), names)),
                Err(problem) if problem.kind() == io::ErrorKind::NotFound => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(Self { below: composed(below).into_owned(), names, masks, pairing })
    }

    /// Calls `visit` for each photograph, sorted by name, until it breaks; what belongs to none is counted.
    pub fn pair<B>(
        &self,
        findings: &mut Findings,
        mut visit: impl FnMut(Paired, &mut Findings) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let masks = self.mask_places(findings);
        let mut rest = masks.as_slice();
        for group in self.names.groups() {
            let own = rest.partition_point(|mask| mask.picture <= group.start as u32);
            let (of_group, others) = rest.split_at(own);
            rest = others;
            if self.pairing.format == DataFormat::Folder && self.is_aside(group.clone(), findings) {
                continue;
            }
            if let Some(paired) = self.paired(group, of_group, findings) {
                visit(paired, findings)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The masks in files of their own names, sorted by picture. JPEGs are counted and left out.
    fn mask_places(&self, findings: &mut Findings) -> Vec<MaskPlace> {
        let mut places = Vec::new();
        let mut add =
            |names: &FileNames, group: Range<usize>, folder: usize, (picture, number): (usize, Option<u32>)| {
                for file in names.pictures(group) {
                    if names.files[file].role.is_jpeg() {
                        let name = match folder {
                            0 => format!("{}{}", self.below, names.name(file)),
                            _ => self.masks[folder - 1].0.join(names.name(file)).display().to_string(),
                        };
                        findings.add(Finding::JpegMask, &name);
                    } else {
                        let [picture, folder, file] = [picture, folder, file].map(|number| number as u32);
                        places.push(MaskPlace { picture, number, folder, file });
                    }
                }
            };
        if self.pairing.format == DataFormat::Folder {
            for group in self.names.groups() {
                if let Some(picture) = self.names.picture_of_masks(group.clone()) {
                    add(&self.names, group, 0, picture);
                }
            }
        }
        for (number, (_, names)) in (1..).zip(&self.masks) {
            for group in names.groups() {
                if let Some(picture) = self.picture_of(names.stem(group.start)) {
                    add(names, group, number, picture);
                }
            }
        }
        places.sort_unstable();
        places
    }

    /// The photograph that a mask of this stem in a folder of masks belongs to, and the mask's number.
    pub fn picture_of(&self, stem: &str) -> Option<(usize, Option<u32>)> {
        let is_folder = self.pairing.format == DataFormat::Folder;
        let photograph = |stem: &str| {
            let group = self.names.group(stem);
            let found = self.names.pictures(group.clone()).next().is_some();
            (found && !(is_folder && self.names.is_group_of_masks(group.clone()))).then_some(group.start)
        };
        photograph(stem).map(|picture| (picture, None)).or_else(|| {
            let found = mask_name(stem)?;
            Some((photograph(found.picture)?, found.number))
        })
    }

    /// Whether the files of `group` are masks, with or without a picture, and no photograph. What is no mask of a picture is
    /// counted.
    fn is_aside(&self, group: Range<usize>, findings: &mut Findings) -> bool {
        let names = &self.names;
        let is_mask = names.is_group_of_masks(group.clone());
        let has = |wanted: fn(Role) -> bool| names.of_role(group.clone(), wanted).next().is_some();
        let has_text = has(|role| matches!(role, Role::Text | Role::Caption));
        let has_lossless = has(|role| matches!(role, Role::Picture(_)) && !role.is_jpeg());
        let says_mask = mask_name(names.stem(group.start)).is_some_and(|found| found.says_mask);
        let is_alone = has_lossless && says_mask && !has_text && !has(Role::is_jpeg);
        if !is_mask && !is_alone {
            return false;
        }
        for file in group {
            let finding = match names.files[file].role {
                // Masks of a picture are counted with it.
                Role::Picture(_) if is_mask => continue,
                Role::Picture(_) => Finding::MaskAlone,
                role => beside_masks(role),
            };
            findings.add(finding, &format!("{}{}", self.below, names.name(file)));
        }
        true
    }

    /// The sample that the files of `group` make with its `masks`.
    fn paired(&self, group: Range<usize>, masks: &[MaskPlace], findings: &mut Findings) -> Option<Paired<'_>> {
        let Self { names, below, pairing, .. } = self;
        let mut add = |finding, file: usize| findings.add(finding, &format!("{below}{}", names.name(file)));
        let pictures: Vec<usize> = names.pictures(group.clone()).collect();
        let is_folder = pairing.format == DataFormat::Folder;
        let is_png = |file: usize| names.files[file].role.is_png();
        // Beside another picture of its name, a PNG is the mask.
        let photograph = pictures.iter().copied().find(|&file| !(is_folder && is_png(file)));
        let has_png_mask = is_folder && photograph.is_some();
        let photograph = photograph.or(pictures.first().copied());
        let is_unread = names.of_role(group.clone(), |role| role == Role::UnreadPicture).next().is_some();
        let (mut text, mut json, mut own_mask) = (None, None, None);
        for file in group.clone() {
            let role = names.files[file].role;
            match role {
                Role::Picture(_) if Some(file) == photograph => {}
                Role::Picture(_) if has_png_mask && role.is_png() && own_mask.is_none() => own_mask = Some(file),
                Role::Picture(_) => add(Finding::SecondPicture, file),
                Role::Text | Role::Caption if pairing.format == DataFormat::Coco => add(Finding::Other, file),
                Role::Text | Role::Caption if photograph.is_none() => {
                    // What is to be done is said of the picture.
                    add(if is_unread { Finding::Other } else { Finding::CaptionAlone }, file);
                }
                Role::Text | Role::Caption if !pairing.text => add(pairing.unused_caption(), file),
                Role::Text | Role::Caption if text.is_some() => add(Finding::SecondCaption, file),
                Role::Text | Role::Caption => text = Some(file),
                Role::Json if pairing.format == DataFormat::Sa1b && photograph.is_some() => json = Some(file),
                Role::Json if pairing.format == DataFormat::Sa1b && !is_unread => add(Finding::AnnotationAlone, file),
                Role::Json if is_folder && photograph.is_some() => add(Finding::UnusedAnnotation, file),
                Role::UnreadPicture => add(Finding::UnreadPicture, file),
                Role::Archive | Role::Tar => add(Finding::Archive, file),
                Role::Metadata if pairing.prompts && !pairing.text => {}
                Role::Json | Role::Metadata | Role::Other => add(Finding::Other, file),
            }
        }
        let photograph = photograph?;
        let mut used: Vec<(Option<&Path>, &str)> = own_mask.iter().map(|&file| (None, names.name(file))).collect();
        let mut is_single = own_mask.is_some();
        let mut are_numbered = false;
        for mask in masks {
            let folder = (mask.folder as usize).checked_sub(1).map(|index| &self.masks[index]);
            let name = folder.map_or(names, |(_, names)| names).name(mask.file as usize);
            let folder = folder.map(|(folder, _)| folder.as_path());
            if is_single {
                let folder = folder.map_or_else(|| below.clone(), |folder| format!("{}/", folder.display()));
                findings.add(Finding::SecondMask, &format!("{folder}{name}"));
                continue;
            }
            used.push((folder, name));
            is_single = mask.number.is_none() || !is_folder;
            are_numbered = !is_single;
        }
        let name = |file: usize| names.name(file);
        Some(Paired {
            stem: names.stem(group.start),
            picture: name(photograph),
            text: text.map(name),
            json: json.map(name),
            masks: used,
            are_numbered,
        })
    }
}

/// Calls `visit` with each stem and name of the pictures in a folder of masks, and counts what is none.
///
/// # Errors
/// The folder cannot be read.
pub fn for_each_mask(folder: &Path, findings: &mut Findings, mut visit: impl FnMut(&str, &str)) -> io::Result<()> {
    let shown = format!("{}/", folder.display());
    let names = FileNames::read(folder, &shown, findings)?;
    for file in 0..names.files.len() {
        match names.files[file].role {
            Role::Picture(_) => visit(names.stem(file), names.name(file)),
            role => findings.add(beside_masks(role), &format!("{shown}{}", names.name(file))),
        }
    }
    Ok(())
}

/// What a file among masks is that is none.
fn beside_masks(role: Role) -> Finding {
    match role {
        Role::UnreadPicture => Finding::UnreadPicture,
        Role::Archive | Role::Tar => Finding::Archive,
        Role::Text | Role::Caption => Finding::CaptionAlone,
        _ => Finding::Other,
    }
}
