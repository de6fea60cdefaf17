//! In place of object storage, where the program was built without the feature `object-store`.
use super::{is_url, shown};
use crate::{Error, Result, config::DataConfig};
use std::{collections::BTreeMap, convert::Infallible, io, path::Path, sync::Arc};

/// An object: there is none.
#[derive(Clone, Debug)]
pub struct Object(Infallible);

/// A reader of an object: there is none.
pub struct Scan(Infallible);

/// # Errors
/// There is a URL.
pub fn find(sources: &[String], _: &DataConfig) -> Result<BTreeMap<String, Vec<Arc<Object>>>> {
    match sources.iter().find(|source| is_url(source)) {
        None => Ok(BTreeMap::new()),
        Some(source) => {
            let problem = "this program was built without object storage; build it with `--features object-store`";
            Err(Error::Usage(format!("data.source: {}: {problem}", shown(source))))
        }
    }
}

impl Object {
    pub(crate) fn path(&self) -> &Path {
        match self.0 {}
    }

    pub(crate) fn scan(self: &Arc<Self>) -> Scan {
        match self.0 {}
    }

    pub(crate) fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        match self.0 {}
    }
}

impl Scan {
    pub(crate) fn length(&self) -> u64 {
        match self.0 {}
    }

    pub(crate) fn read_exact_at(&mut self, _: &mut [u8], _: u64) -> io::Result<()> {
        match self.0 {}
    }
}
