//! Why a read failed, whether it is worth another try, and when.
use super::answers::Refusal;
use object_store::client::HttpError;
use std::{
    error::Error,
    hash::{BuildHasher, RandomState},
    io,
    iter::successors,
    time::{Duration, Instant},
};

/// The first pause before another try; each is about twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Where clouds lend credentials to their machines.
const LENDERS: [&str; 3] = ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];

/// Why a read failed.
#[derive(Clone, Debug)]
pub struct Failure {
    pub reason: String,
    /// Whether another try may succeed.
    passes: bool,
    /// How long the server asks to wait.
    wait: Duration,
}

impl Failure {
    /// A failure that no other try mends.
    pub fn lasting(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), passes: false, wait: Duration::ZERO }
    }

    /// A failure that may pass.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), passes: true, wait: Duration::ZERO }
    }

    fn refused(refusal: &Refusal) -> Self {
        let hint = match refusal.number {
            301 | 307 | 308 => "; for a bucket of another region, set AWS_REGION",
            401 | 403 => "; credentials are taken from the environment, see docs/data.md",
            416 => "; it is empty, or shorter than it was",
            _ => "",
        };
        let passes = matches!(refusal.number, 408 | 429 | 500..);
        Self { reason: format!("{refusal}{hint}"), passes, wait: refusal.wait.unwrap_or_default() }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        if matches!(error, object_store::Error::NotSupported { .. }) {
            return Self::lasting(
                "the server sends the whole file where a range is asked for, and shards are read by ranges",
            );
        }
        let chain = || successors(Some(&error as &(dyn Error + 'static)), |&error| error.source());
        if let Some(refusal) = chain().find_map(|error| error.downcast_ref::<Refusal>()) {
            return Self::refused(refusal);
        }
        // The outer errors repeat URLs; the innermost is the system's or the protocol's.
        let reason = chain().last().map_or_else(String::new, ToString::to_string);
        let text = error.to_string();
        let lends = LENDERS.iter().any(|lender| text.contains(lender));
        let reason = match reason.split_once("status code: ").map(|(_, status)| status.split(':').next()) {
            // Of an answer that is no `Refusal`, a body may follow.
            Some(status) => format!("asked for credentials, a server answers {}", status.unwrap_or_default()),
            None if lends => format!("no credentials in the environment, and none from the machine's cloud: {reason}"),
            None => reason,
        };
        let is_transport = chain().any(|error| error.is::<HttpError>());
        Self { passes: is_transport && !reason.contains("peer certificate"), reason, wait: Duration::ZERO }
    }
}

impl From<Failure> for io::Error {
    /// `NetworkDown` ends the run, whatever the reason is.
    fn from(failure: Failure) -> Self {
        Self::new(io::ErrorKind::NetworkDown, failure.reason)
    }
}

/// The tries of one read: pauses grow exponentially with jitter, until there was no progress for `patience`.
pub struct Tries {
    patience: Duration,
    /// Since when there was no progress.
    since: Option<Instant>,
    pause: Duration,
    /// Failures since the last progress.
    pub count: u32,
}

impl Tries {
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: None, pause: FIRST_PAUSE, count: 0 }
    }

    /// Bytes came: what failed before is forgotten.
    pub fn progress(&mut self) {
        *self = Self::new(self.patience);
    }

    /// How long to wait before the next try.
    ///
    /// # Errors
    /// There is to be none.
    pub fn after(&mut self, failure: Failure) -> Result<Duration, Failure> {
        if !failure.passes {
            return Err(failure);
        }
        self.count += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        // Half of the pause is random, so that many readers do not come back at once.
        let random = RandomState::new().hash_one(self.count) as f64 / u64::MAX as f64;
        let pause = self.pause.mul_f64(0.5 + 0.5 * random).max(failure.wait);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if since.elapsed() + pause <= self.patience {
            return Ok(pause);
        }
        let tried = format!("{} tries in {} s; see data.retry_seconds", self.count, since.elapsed().as_secs());
        Err(Failure::lasting(format!("{} ({tried})", failure.reason)))
    }
}
