//! Custom resources: what a CustomResourceDefinition adds to the server at run time.
//!
//! A definition adds rows to the registry's table, one per served version, and its objects take the path of all
//! others. What differs from a built-in resource is one field of a row, [`Custom`]: instead of the type table, the
//! definition's schema says what is pruned, defaulted, validated and merged. Objects are handled in the version of the
//! request, as upstream does, and converted where they enter and leave the store.
//!
//! - [`definition`]: a definition as the server reads it; schemas are compiled when first needed.
//! - [`custom`]: the schema at work, and the storage format.
//! - [`strategy`]: what differs on writes; [`rules`]: those in CEL.
//! - [`conversion`]: between versions; [`webhook`]: by somebody else.
//! - [`columns`]: tables.
//! - [`publish`]: schemas in OpenAPI documents.
//! - [`status`]: accepted names and conditions, as a pure function.
//! - [`controller`]: follows the definitions, keeps the registry and their status up to date, and cleans up.

pub mod columns;
pub mod controller;
pub mod conversion;
pub mod custom;
pub mod definition;
pub mod publish;
pub mod rules;
pub mod status;
pub mod strategy;
pub mod webhook;

pub use self::custom::Custom;
pub use self::definition::Definition;
