//! Devices: taints carry the time since when they hold (upstream `SetDefaults_DeviceTaint`,
//! `pkg/registry/resource/devicetaintrule`).

use keelson_machinery::time;
use keelson_machinery::value::{self, Value};

use super::defaults::{for_items, put};
use super::generic;
use super::strategy::{Context, Strategy};

/// Strategy of resource slices.
pub struct ResourceSlice;

/// Strategy of rules that taint devices.
pub struct DeviceTaintRule;

const TAINT: [&str; 2] = ["spec", "taint"];

fn stamp_devices(context: &Context<'_>, object: &mut Value) {
    let now = time::format(context.clock.now());
    for_items(object, &["spec", "devices"], |device| {
        for_items(device, &["taints"], |taint| {
            put(taint, &["timeAdded"], now.as_str());
        });
    });
}

fn stamp_rule(context: &Context<'_>, object: &mut Value) {
    let now = time::format(context.clock.now());
    if let Some(taint) = value::get_mut(object, &TAINT) {
        put(taint, &["timeAdded"], now);
    }
}

impl Strategy for ResourceSlice {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        stamp_devices(context, object);
        generic::prepare_for_create(context, object);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        stamp_devices(context, object);
        generic::prepare_for_update(context, object, old);
    }
}

impl Strategy for DeviceTaintRule {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        stamp_rule(context, object);
        generic::prepare_for_create(context, object);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if context.subresource.is_empty() {
            let member =
                |object: &Value, name: &str| value::get(object, &["spec", "taint", name]).cloned();
            if member(object, "effect") != member(old, "effect")
                && member(object, "timeAdded") == member(old, "timeAdded")
            {
                value::remove(object, &["spec", "taint", "timeAdded"]);
            }
            stamp_rule(context, object);
        }
        generic::prepare_for_update(context, object, old);
    }
}
