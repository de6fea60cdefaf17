//! COCO's annotations by picture: panoptic segments and instances, in [`KeyedTempStore`]s.
use super::coco::{self, Annotation, Category, Item, Segment};
use super::unusable::Unusable;
use crate::data::codec::labels::Classes;
use crate::data::codec::stored_mask::StoredMask;
use crate::data::keyed_temp_store::{ClaimedStore, KeyedTempStore, KeyedTempStoreWriter, TableEntry, hash};
use crate::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::path::Path;

/// What each picture's annotations say, all of one [`Kind`]. Memory: 44 bytes a picture and 16 an annotation; what they say is in temporary
/// files.
pub struct Annotations {
    /// The setting that names the file.
    setting: &'static str,
    /// File name of a picture to its id and size, as JSON.
    pictures: ClaimedStore,
    /// Id of a picture to its annotations, as JSON.
    annotations: KeyedTempStore,
    /// The JSON's `categories`.
    pub categories: Classes,
    /// The categories that annotations have, each with the first image's id.
    pub used: BTreeMap<u32, String>,
}

/// What is said of a picture.
#[derive(Deserialize, Serialize)]
struct Picture {
    id: String,
    /// Width and height.
    size: Option<(usize, usize)>,
}

/// The annotations of a picture, in their order.
pub struct OfPicture<T> {
    /// Width and height that the annotations are for, where the JSON says them.
    pub size: Option<(usize, usize)>,
    pub annotations: Vec<T>,
}

/// What is read of an annotation.
pub trait Kind: Serialize + DeserializeOwned {
    /// The setting that names the file.
    const KEY: &'static str;

    /// # Errors
    /// The annotation is of another kind.
    fn of(annotation: Annotation) -> Result<Self, String>;

    /// The categories that it names.
    fn categories(&self) -> impl Iterator<Item = u32>;
}

/// The panoptic annotation of a picture: a PNG of segment ids, and the segments' categories.
#[derive(Deserialize, Serialize, PartialEq)]
pub struct PanopticSegments {
    /// The PNG, below the folder of PNGs.
    pub file_name: String,
    segments: Vec<Segment>,
}

/// Of instances or stuff: a mask and its class.
#[derive(Deserialize, Serialize)]
pub struct Instance {
    pub category: u32,
    pub mask: StoredMask,
}

impl PanopticSegments {
    /// Segment id to category.
    pub fn categories(&self) -> BTreeMap<u32, u32> {
        self.segments.iter().map(|segment| (segment.id, segment.category_id)).collect()
    }
}

impl Kind for PanopticSegments {
    const KEY: &'static str = "data.panoptic";

    fn of(annotation: Annotation) -> Result<Self, String> {
        let Some(segments) = annotation.segments_info else {
            return Err(match annotation.segmentation {
                Some(_) => "an annotation has a mask of its own: the file is for data.instances".into(),
                None => "an annotation has no `segments_info`: the file is not COCO's panoptic".into(),
            });
        };
        Ok(Self { file_name: annotation.file_name.ok_or("an annotation has no `file_name`")?, segments })
    }

    fn categories(&self) -> impl Iterator<Item = u32> {
        self.segments.iter().map(|segment| segment.category_id)
    }
}

impl Kind for Instance {
    const KEY: &'static str = "data.instances";

    fn of(annotation: Annotation) -> Result<Self, String> {
        let mask = annotation.segmentation.ok_or(match annotation.segments_info {
            Some(_) => "an annotation has `segments_info`: the file is for data.panoptic",
            None => "an annotation has no `segmentation`",
        })?;
        Ok(Self { category: annotation.category_id.ok_or("an annotation has no `category_id`")?, mask })
    }

    fn categories(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.category)
    }
}

impl Annotations {
    /// Streams the JSON at `path`. Where its `images` have no `file_name`, the annotations' own `file_name` names the picture.
    ///
    /// # Errors
    /// The file cannot be read, is of another kind, lacks `annotations`, `categories` or the pictures' names, has an
    /// annotation of an image that it does not list, or one id for two images.
    pub fn read<T: Kind>(path: &Path) -> Result<Self> {
        let failed = |problem: String| Error::file(path, problem);
        let writer = || KeyedTempStoreWriter::new().map_err(failed);
        let (mut listed, mut named, mut annotations) = (writer()?, writer()?, writer()?);
        // Of each image its id, its name and its place in the list.
        let (mut ids, mut annotated): (Vec<(u64, u64, u32)>, Vec<u64>) = (Vec::new(), Vec::new());
        let (mut categories, mut used) = (BTreeMap::new(), BTreeMap::new());
        let mut nameless = None;
        coco::read(path, &mut |item| match item {
            Item::Image(image) => {
                let Some(file_name) = &image.file_name else {
                    nameless.get_or_insert(image.id);
                    return Ok(());
                };
                ids.push((hash(&image.id), hash(file_name), ids.len() as u32 + 1));
                let size = image.width.zip(image.height);
                insert(&mut listed, file_name, &Picture { id: image.id, size })
            }
            Item::Annotation(annotation) => {
                let name = annotation.file_name.clone();
                let id = annotation.image_id.clone().or(name.clone()).ok_or("an annotation has no `image_id`")?;
                annotated.push(hash(&id));
                if let Some(name) = name {
                    insert(&mut named, &name, &Picture { id: id.clone(), size: None })?;
                }
                let kind = T::of(annotation).map_err(|problem| format!("image {id}: {problem}"))?;
                for category in kind.categories() {
                    used.entry(category).or_insert_with(|| id.clone());
                }
                insert(&mut annotations, &id, &kind)
            }
            Item::Category(category) => add(&mut categories, category),
        })?;
        if annotated.is_empty() || categories.is_empty() {
            return Err(failed("there are no `annotations` or no `categories`".into()));
        }
        match nameless {
            // A panoptic JSON's annotations have names of their own.
            Some(id) if !ids.is_empty() || named.is_empty() => {
                return Err(failed(format!("image {id} has no `file_name`, so that no picture can be found for it")));
            }
            None if ids.is_empty() && named.is_empty() => {
                return Err(failed("there are no `images`, so that nothing says whose the annotations are".into()));
            }
            _ => {}
        }
        ids.sort_unstable();
        if let Some([first, second]) =
            ids.array_windows().find(|[first, second]| first.0 == second.0 && first.1 != second.1)
        {
            let [first, second] = [first.2.min(second.2), first.2.max(second.2)];
            return Err(failed(format!("images {first} and {second} have one id and two names")));
        }
        let is_listed = |id: &u64| ids.binary_search_by_key(id, |(id, ..)| *id).is_ok();
        let unknown = annotated.iter().position(|id| !is_listed(id));
        if let Some(place) = unknown.filter(|_| !ids.is_empty()) {
            return Err(failed(format!("annotation {} is of an image that is not in `images`", place + 1)));
        }
        let pictures = if ids.is_empty() { named } else { listed };
        let differ = |first: &TableEntry, second: &TableEntry| {
            let [is, other] = [first, second].map(|entry| String::from_utf8_lossy(&entry.value));
            format!("`{}` and `{}` name one image, which is {is} and {other}", first.key, second.key)
        };
        let pictures = pictures.finish_distinct(differ).map_err(failed)?;
        Ok(Self {
            setting: T::KEY,
            pictures: ClaimedStore::new(pictures),
            annotations: annotations.finish().map_err(failed)?,
            categories: Classes::new(categories),
            used,
        })
    }

    /// The annotations of the picture `key`; `None` where the JSON does not have the picture.
    ///
    /// # Errors
    /// The key matches several pictures equally well, another picture has taken the entry that it fits, or a temporary
    /// file cannot be read.
    pub fn of<T: Kind>(&self, key: &str) -> Result<Option<OfPicture<T>>, Unusable> {
        let Some(OfPicture { size, annotations }) = self.stored(key)? else { return Ok(None) };
        let annotations = annotations.iter().map(|json| read(json)).collect::<Result<_, _>>()?;
        Ok(Some(OfPicture { size, annotations }))
    }

    /// How many annotations the picture `key` has.
    ///
    /// # Errors
    /// Those of [`of`](Self::of).
    pub fn count(&self, key: &str) -> Result<Option<usize>, Unusable> {
        Ok(self.stored(key)?.map(|stored| stored.annotations.len()))
    }

    /// [`of`](Self::of), as JSON.
    fn stored(&self, key: &str) -> Result<Option<OfPicture<Vec<u8>>>, Unusable> {
        let refused = |picture: &TableEntry| {
            let problem = format!("`{}` fits {key} and another image of that name", picture.key);
            format!("{}: {problem}; write their folders in its `file_name`", self.setting)
        };
        let Some(picture) = self.pictures.take(key, refused)? else { return Ok(None) };
        let Picture { id, size } = read(&picture.value)?;
        Ok(Some(OfPicture { size, annotations: self.annotations.all(&id)? }))
    }

    /// How many of its pictures have not been asked for, and the names of `count` of them.
    ///
    /// # Errors
    /// The temporary file cannot be read.
    pub fn left(&self, count: usize) -> Result<(u64, Vec<String>)> {
        self.pictures.left(count)
    }

    /// The panoptic annotation of the picture `key`.
    ///
    /// # Errors
    /// Those of [`of`](Self::of); the picture has several.
    pub fn segments(&self, key: &str) -> Result<Option<PanopticSegments>, Unusable> {
        let Some(OfPicture { annotations: mut found, .. }) = self.of(key)? else { return Ok(None) };
        let Some(first) = found.pop() else { return Ok(None) };
        if found.iter().any(|other| *other != first) {
            return Err(format!("the panoptic JSON has {} annotations of this image", found.len() + 1).into());
        }
        Ok(Some(first))
    }
}

fn insert(table: &mut KeyedTempStoreWriter, key: &str, value: &impl Serialize) -> Result<(), String> {
    table.insert(key, &serde_json::to_vec(value).map_err(|problem| problem.to_string())?)
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|problem| problem.to_string())
}

fn add(categories: &mut BTreeMap<u32, String>, Category { id, name }: Category) -> Result<(), String> {
    let name = name.trim().to_owned();
    if name.is_empty() {
        return Err(format!("category {id} has no name"));
    }
    match categories.insert(id, name.clone()) {
        Some(other) if other != name => Err(format!("category {id} is both {other:?} and {name:?}")),
        _ => Ok(()),
    }
}
