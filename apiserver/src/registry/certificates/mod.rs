//! Certificate signing requests: who asks is written down, and approval, status and spec are written apart
//! (upstream `pkg/registry/certificates/certificates`).

use keelson_machinery::time;
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::generic;
use super::strategy::{Context, Strategy};

/// Strategy of certificate signing requests.
pub struct SigningRequest;

impl Strategy for SigningRequest {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        for field in ["username", "uid", "groups", "extra"] {
            value::remove(object, &["spec", field]);
        }
        let user = context.user;
        value::set(object, &["spec", "username"], user.name.as_str());
        if !user.uid.is_empty() {
            value::set(object, &["spec", "uid"], user.uid.as_str());
        }
        if !user.groups.is_empty() {
            value::set(object, &["spec", "groups"], json!(user.groups));
        }
        if !user.extra.is_empty() {
            value::set(object, &["spec", "extra"], json!(user.extra));
        }
        value::set(object, &["status"], json!({}));
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        generic::keep_member(object, old, "spec");
        match context.subresource {
            "status" => {
                keep_decisions(object, old);
                stamp_conditions(context, object, old);
            }
            "approval" => {
                stamp_conditions(context, object, old);
                let conditions = value::remove(object, &["status", "conditions"]);
                generic::keep_member(object, old, "status");
                match conditions {
                    Some(conditions) => value::set(object, &["status", "conditions"], conditions),
                    None => value::remove(object, &["status", "conditions"]).is_some(),
                };
            }
            _ => generic::keep_member(object, old, "status"),
        }
    }
}

/// A signer cannot rewrite who approved or denied, and when.
fn keep_decisions(object: &mut Value, old: &Value) {
    let of_kind = |object: &Value, kind: &str| -> Vec<Value> {
        value::items(object, &["status", "conditions"])
            .iter()
            .filter(|c| value::str_or_empty(c, &["type"]) == kind)
            .cloned()
            .collect()
    };
    for kind in ["Approved", "Denied"] {
        let kept = of_kind(old, kind);
        if kept.len() != of_kind(object, kind).len() {
            continue;
        }
        let mut kept = kept.into_iter();
        if let Some(conditions) =
            value::get_mut(object, &["status", "conditions"]).and_then(Value::as_array_mut)
        {
            for condition in conditions {
                if value::str_or_empty(condition, &["type"]) == kind
                    && let Some(kept) = kept.next()
                {
                    *condition = kept;
                }
            }
        }
    }
}

/// Fills in the times that a client left out (upstream `populateConditionTimestamps`).
fn stamp_conditions(context: &Context<'_>, object: &mut Value, old: &Value) {
    let now = time::format(context.clock.now());
    let old_conditions = value::items(old, &["status", "conditions"]).to_vec();
    let Some(conditions) =
        value::get_mut(object, &["status", "conditions"]).and_then(Value::as_array_mut)
    else {
        return;
    };
    for condition in conditions {
        if value::str_or_empty(condition, &["lastUpdateTime"]).is_empty() {
            value::set(condition, &["lastUpdateTime"], now.as_str());
        }
        if value::str_or_empty(condition, &["lastTransitionTime"]).is_empty() {
            let same = |other: &&Value| {
                other.get("type") == condition.get("type")
                    && other.get("status") == condition.get("status")
            };
            let since = old_conditions
                .iter()
                .find(same)
                .and_then(|c| value::get_str(c, &["lastTransitionTime"]))
                .unwrap_or(&now)
                .to_string();
            value::set(condition, &["lastTransitionTime"], since);
        }
    }
}
