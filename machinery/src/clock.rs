//! The one place that reads the wall clock and the random source. Everything else is handed a [`Clock`],
//! so that a whole control plane can be run under a seeded simulation.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

/// Where time and randomness come from.
pub trait Source: Send + Sync {
    /// The current wall-clock time.
    fn now(&self) -> Timestamp;
    /// Fills `buf` with random bytes, fit for identifiers and secrets.
    fn fill_random(&self, buf: &mut [u8]);
}

/// A cheap handle to a [`Source`]; clones share it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Source>);

impl Clock {
    /// The machine's clock and the operating system's random source.
    pub fn system() -> Self {
        Clock(Arc::new(System))
    }

    /// A clock of the caller's making, for tests and simulations.
    pub fn from_source(source: impl Source + 'static) -> Self {
        Clock(Arc::new(source))
    }

    /// The current wall-clock time.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// A random (version 4) UUID in its lower-case text form, as used for `metadata.uid`.
    pub fn uuid(&self) -> String {
        let mut bytes = [0u8; 16];
        self.0.fill_random(&mut bytes);
        uuid::Builder::from_random_bytes(bytes)
            .into_uuid()
            .to_string()
    }

    /// `len` characters of the alphabet that upstream uses for generated names (no vowels, no look-alikes;
    /// `k8s.io/apimachinery/pkg/util/rand.String`).
    pub fn name_suffix(&self, len: usize) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut bytes = vec![0u8; len];
        self.0.fill_random(&mut bytes);
        bytes
            .iter()
            .map(|b| ALPHABET[*b as usize % ALPHABET.len()] as char)
            .collect()
    }

    /// Fills `buf` with random bytes.
    pub fn fill_random(&self, buf: &mut [u8]) {
        self.0.fill_random(buf)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

struct System;

impl Source for System {
    #[allow(clippy::disallowed_methods)] // the one reader of the wall clock
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn fill_random(&self, buf: &mut [u8]) {
        use rand::TryRngCore;
        // The kernel's source fails only before it is seeded at boot; there is nothing sound to do without it.
        rand::rngs::OsRng
            .try_fill_bytes(buf)
            .expect("the operating system has no random source");
    }
}
