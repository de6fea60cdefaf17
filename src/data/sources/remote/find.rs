//! The objects that `data.source` names.
use super::answers::Connector;
use super::failure::{Failure, Tries};
use super::object::{Object, Shared, runtime};
use super::{is_url, shown};
use crate::data::sources::names::{Role, role};
use crate::data::sources::patterns::without_braces;
use crate::{
    Error, Result,
    config::{Allowed, DataConfig, DataFormat},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use glob::{MatchOptions, Pattern};
use object_store::{
    ClientConfigKey, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    http::HttpBuilder,
    path::Path,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

/// Objects that are asked for at a time, to see whether they are there.
const AT_A_TIME: usize = 16;
/// A server that sends nothing for so long is given up; a whole answer may take longer, where the connection is slow.
const LIMITS: [(ClientConfigKey, &str); 2] =
    [(ClientConfigKey::ReadTimeout, "30 seconds"), (ClientConfigKey::Timeout, "1 hour")];

/// The objects of each URL in `sources`, each asked for once. `{000..010}` and `{a,b}` are expanded; in buckets `*`, `?` and
/// `[…]` match names, and a URL that ends with `/` stands for all shards below it.
///
/// # Errors
/// A URL is none, or names what is not there or cannot be read.
pub fn find(sources: &[String], config: &DataConfig) -> Result<BTreeMap<String, Vec<Arc<Object>>>> {
    let mut finder = Finder::new(config);
    let mut found = BTreeMap::new();
    for source in sources.iter().filter(|source| is_url(source)) {
        if config.format != DataFormat::Sa1b {
            return Err(wrong(source, "object storage holds tar shards; expected data.format = \"sa1b\""));
        }
        let mut objects = Vec::new();
        for url in without_braces(source).map_err(|problem| wrong(source, &problem))? {
            objects.extend(finder.objects(&url)?.into_iter().map(Arc::new));
        }
        found.insert(source.clone(), objects);
    }
    let objects: Vec<&Arc<Object>> = found.values().flatten().collect();
    if let Some(first) = objects.first() {
        let runtime = runtime().map_err(|problem| Error::file(first.path(), problem))?;
        let touched = stream::iter(objects)
            .map(async |object| object.touch().await.map_err(|failure| Error::file(object.path(), failure.reason)));
        runtime.block_on(touched.buffered(AT_A_TIME).try_collect::<()>())?;
    }
    Ok(found)
}

fn wrong(url: &str, problem: &str) -> Error {
    Error::Usage(format!("data.source: {}: {problem}", shown(url)))
}

/// What the objects of a run have in common: connections, buckets.
struct Finder<'a> {
    config: &'a DataConfig,
    shared: Arc<Shared>,
    /// The connections to web servers, for `http://` and `https://`.
    web: HashMap<bool, Connector>,
    buckets: HashMap<(String, String), Arc<dyn ObjectStore>>,
    /// The objects that were found, by their whole URLs: two may differ behind the `?` alone.
    seen: HashSet<String>,
}

impl<'a> Finder<'a> {
    fn new(config: &'a DataConfig) -> Self {
        let shared = Shared::new(Duration::from_secs(config.retry_seconds));
        Self { config, shared, web: HashMap::new(), buckets: HashMap::new(), seen: HashSet::new() }
    }

    /// The objects of a URL that were not found before.
    fn objects(&mut self, url: &str) -> Result<Vec<Object>> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(url, "expected a URL"))?;
        match scheme.to_ascii_lowercase().as_str() {
            scheme @ ("s3" | "gs") => self.in_bucket(url, scheme, rest),
            scheme @ ("https" | "http") => self.on_web_server(url, rest, scheme == "http"),
            _ => Err(wrong(url, "expected s3://, gs:// or https://")),
        }
    }

    /// The object on a web server. Its store has the whole URL, and so keeps what is behind a `?`.
    fn on_web_server(&mut self, url: &str, rest: &str, is_plain: bool) -> Result<Vec<Object>> {
        let address = rest.split(['?', '#']).next().unwrap_or_default();
        if is_plain && !self.config.plain_http && !is_this_machine(address) {
            return Err(wrong(url, "http:// is not encrypted; take https://, or set data.plain_http = true"));
        }
        if address.split('/').next().is_some_and(|host| host.contains('@')) {
            return Err(wrong(url, "a user and a password in a URL are not sent; leave them out"));
        }
        if address.contains('*') {
            return Err(wrong(url, "web servers list no files; name the shards, such as sa_{000000..000999}.tar"));
        }
        if !self.seen.insert(url.to_owned()) {
            return Ok(vec![]);
        }
        let failed = |error| wrong(url, &Failure::from(error).reason);
        let connector = match self.web.remove(&is_plain) {
            Some(connector) => connector,
            None => {
                let options = ClientOptions::new().with_allow_http(is_plain);
                let options = LIMITS.iter().fold(options, |options, (key, value)| options.with_config(*key, *value));
                Connector::shared(&options).map_err(failed)?
            }
        };
        self.web.insert(is_plain, connector.clone());
        let store = HttpBuilder::new().with_url(url).with_http_connector(connector).with_retry(no_retries());
        let store = store.build().map_err(failed)?;
        Ok(vec![Object::new(Arc::new(store), Path::default(), shown(url), &self.shared)])
    }

    /// The objects that a key or pattern names in a bucket, in alphabetical order.
    fn in_bucket(&mut self, url: &str, scheme: &str, rest: &str) -> Result<Vec<Object>> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains('@') {
            return Err(wrong(url, "expected the name of a bucket; credentials are taken from the environment"));
        }
        let store = self.bucket(scheme, bucket).map_err(|error| wrong(url, &Failure::from(error).reason))?;
        let wild = key.find(['*', '?', '[']);
        let locations = match wild.is_some() || key.is_empty() || key.ends_with('/') {
            false => vec![Path::parse(key).map_err(|problem| wrong(url, &problem.to_string()))?],
            true => {
                let pattern = wild.map(|_| Pattern::new(key)).transpose();
                let pattern = pattern.map_err(|problem| wrong(url, &problem.to_string()))?;
                let folder = key[..wild.unwrap_or(key.len())].rsplit_once('/').map(|(folder, _)| Path::from(folder));
                let mut names = self.list(url, &store, folder.as_ref())?;
                match pattern {
                    Some(pattern) => {
                        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
                        names.retain(|name| pattern.matches_with(name.as_ref(), options));
                    }
                    None => names = self.shards(names, url)?,
                }
                if names.is_empty() {
                    return Err(wrong(url, "matches no object"));
                }
                names
            }
        };
        let object = |location: Path| {
            let url = format!("{scheme}://{bucket}/{location}");
            let is_new = self.seen.insert(url.clone());
            is_new.then(|| Object::new(store.clone(), location, url, &self.shared))
        };
        Ok(locations.into_iter().filter_map(object).collect())
    }

    /// The bucket's store, with credentials and endpoint of the environment.
    fn bucket(&mut self, scheme: &str, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        let name = (scheme.to_owned(), bucket.to_owned());
        if let Some(store) = self.buckets.get(&name) {
            return Ok(store.clone());
        }
        let store: Arc<dyn ObjectStore> = if scheme == "s3" {
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(no_retries());
            let builder = builder.with_http_connector(Connector::default());
            let limited = |builder: AmazonS3Builder, (key, value): (ClientConfigKey, &str)| {
                builder.with_config(AmazonS3ConfigKey::Client(key), value)
            };
            Arc::new(LIMITS.into_iter().fold(builder, limited).build()?)
        } else {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(no_retries());
            let builder = builder.with_http_connector(Connector::default());
            let limited = |builder: GoogleCloudStorageBuilder, (key, value): (ClientConfigKey, &str)| {
                builder.with_config(GoogleConfigKey::Client(key), value)
            };
            Arc::new(LIMITS.into_iter().fold(builder, limited).build()?)
        };
        self.buckets.insert(name, store.clone());
        Ok(store)
    }

    /// The names below `folder`, in alphabetical order.
    fn list(&self, url: &str, store: &Arc<dyn ObjectStore>, folder: Option<&Path>) -> Result<Vec<Path>> {
        let failed = |problem: &dyn std::fmt::Display| Error::file(shown(url), problem);
        let list = async || {
            let mut tries = Tries::new(self.shared.patience);
            loop {
                let names = store.list(folder).map_ok(|object| object.location).try_collect::<Vec<_>>().await;
                match names {
                    Ok(names) => return Ok(names),
                    Err(error) => tokio::time::sleep(tries.after(error.into())?).await,
                }
            }
        };
        let names: Result<Vec<Path>, Failure> = runtime().map_err(|problem| failed(&problem))?.block_on(list());
        let mut names = names.map_err(|failure| failed(&failure.reason))?;
        names.sort();
        Ok(names)
    }

    /// The shards among `names`. Archives of other kinds are refused, unless `data.allow` accepts unread files.
    fn shards(&self, names: Vec<Path>, url: &str) -> Result<Vec<Path>> {
        let is = |name: &Path, wanted: Role| role(name.filename().unwrap_or_default()).1 == wanted;
        if let Some(archive) = names.iter().find(|name| is(name, Role::Archive))
            && !self.config.allow.contains(&Allowed::FilesUnread)
        {
            let problem = format!(
                "{archive} is not read, only .tar, .tar.gz and .tgz; data.allow = [\"files_unread\"] leaves it out"
            );
            return Err(wrong(url, &problem));
        }
        Ok(names.into_iter().filter(|name| is(name, Role::Tar)).collect())
    }
}

/// The crate's own tries are left out: [`Tries`] has the only ones, which go on where an answer stopped.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Whether the host of `user@host:port/path` is this machine.
fn is_this_machine(address: &str) -> bool {
    let host = address.split('/').next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let host = match host.strip_prefix('[') {
        Some(host) => host.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_address_is_this_machine() {
        for here in ["localhost", "LOCALHOST:80/a", "127.0.0.1:8000/a.tar", "user:word@127.1.2.3", "[::1]:80/a"] {
            assert!(is_this_machine(here), "{here}");
        }
        for there in ["", "host", "localhost.example.org", "10.0.0.1", "127.0.0.1@host", "[::2]", "1.2.3.4/127.0.0.1"] {
            assert!(!is_this_machine(there), "{there}");
        }
    }
}
