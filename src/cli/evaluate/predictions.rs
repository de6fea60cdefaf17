//! Predicted label maps as files.
use crate::data::codec::labels::encode_labels;
use crate::distributed::Collective;
use crate::eval::segmentation::{LabelledFolder, NO_CLASS, SegmentationMap};
use crate::system::error::{Error, Result};
use crate::system::output_folder::OutputFolder;
use crate::system::whole_file::{folder_of, sweep, write_atomically};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The folder of predictions, locked by this process, or by that of rank 0.
pub struct Predictions {
    folder: PathBuf,
    _held: Option<OutputFolder>,
}

impl Predictions {
    /// Locks the folder for the predictions of `data`'s images by these processes.
    ///
    /// # Errors
    /// It cannot be written, or another process is writing into it.
    pub fn open(folder: &Path, data: &LabelledFolder, processes: &dyn Collective) -> Result<Self> {
        let hold = || -> Result<OutputFolder> {
            let held = OutputFolder::hold(folder)?;
            let files = data.keys().map(|key| file(folder, key));
            let below: BTreeSet<PathBuf> = files.map(|file| folder_of(&file).to_path_buf()).collect();
            below.iter().try_for_each(|folder| sweep(folder))?;
            Ok(held)
        };
        let held = processes.is_main().then(hold).transpose()?;
        processes.barrier()?;
        Ok(Self { folder: folder.to_path_buf(), _held: held })
    }

    /// Writes the predicted labels of the image `key` as PNG; pixels without class get the data set's label for that.
    pub fn write(&self, key: &str, map: &SegmentationMap, data: &LabelledFolder) -> Result<()> {
        let label = |class: &u16| match *class {
            NO_CLASS => data.label_of_none,
            class => data.classes[usize::from(class)].label,
        };
        let file = file(&self.folder, key);
        let labels: Vec<u32> = map.classes.iter().map(label).collect();
        let png = encode_labels(map.width, map.height, &labels).map_err(|e| Error::file(&file, e))?;
        write_atomically(&file, |out| out.write_all(&png))
    }
}

fn file(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.png"))
}
