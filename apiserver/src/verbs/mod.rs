//! The verbs: one implementation each, for every resource.

pub mod call;
pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod managers;
pub mod options;
pub mod patch;
pub mod respond;
pub mod selection;
pub mod update;
pub mod watch;

pub use self::call::Call;
