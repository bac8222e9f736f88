//! Selectors: by labels (`k8s.io/apimachinery/pkg/labels`) and by fields (`k8s.io/apimachinery/pkg/fields`).

mod field;
mod label;

pub use field::{FieldError as FieldSelectorError, FieldRequirement, FieldSelector, escape_value};
pub use label::{LabelError, LabelRequirement, LabelSelector, Operator, validate_label_selector};
