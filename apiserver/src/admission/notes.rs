//! What admission has to say beside its verdict: warnings for the client and annotations for the audit log.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Collected over one HTTP request, as an extension of it. A refused request keeps what was noted before.
#[derive(Debug, Default)]
pub struct Notes {
    warnings: Mutex<Vec<String>>,
    annotations: Mutex<BTreeMap<String, String>>,
}

impl Notes {
    /// Keeps warnings of a request that was refused; those of others go the usual way.
    pub fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        self.warnings.lock().extend(warnings);
    }

    /// The warnings kept.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// Keeps audit annotations; the first one under a key stays (upstream `audit.AddAuditAnnotation`).
    pub fn annotate(&self, annotations: BTreeMap<String, String>) {
        let mut kept = self.annotations.lock();
        for (key, value) in annotations {
            kept.entry(key).or_insert(value);
        }
    }

    /// The audit annotations.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.annotations.lock().clone()
    }
}
