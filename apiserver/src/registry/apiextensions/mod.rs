//! `apiextensions.k8s.io`: definitions of custom resources as objects of their own. What they define is served by
//! [`crate::extensions`].

pub mod definition;
mod schema_rules;
mod spec_rules;
pub mod structural_rules;
