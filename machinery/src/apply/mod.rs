//! Server-side apply: which manager owns which fields of an object, and how an applied configuration is merged into
//! it (upstream `sigs.k8s.io/structured-merge-diff` and `apimachinery/pkg/util/managedfields`).
//!
//! Lists and maps are merged as the type table says. The type table is fixed, so entries written under another
//! topology (a list that was atomic in an older version) are not rewritten.

pub mod managed;
pub mod path;
pub mod scale;
pub mod set;
pub mod shape;
mod update;
pub mod walk;

pub use managed::{ManagedFields, Manager, Operation, Owned, keep_times_if_same};
pub use set::Set;
pub use shape::Shape;
pub use update::{ApplyError, Conflict, LAST_APPLIED, Write, apply, track};

#[cfg(test)]
mod tests;
