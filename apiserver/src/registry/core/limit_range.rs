//! Limit ranges: one without a name gets one (upstream `pkg/registry/core/limitrange`).

use keelson_machinery::meta;
use keelson_machinery::value::Value;

use crate::registry::strategy::{Context, Strategy};

/// Strategy of limit ranges.
pub struct LimitRange;

impl Strategy for LimitRange {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        if meta::name(object).is_empty() {
            meta::set(object, "name", context.clock.uuid());
        }
    }
}
