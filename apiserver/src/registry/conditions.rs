//! Conditions in a status (upstream `podutil.UpdatePodCondition`).

use jiff::Timestamp;
use keelson_machinery::time;
use keelson_machinery::value::{self, Value};
use serde_json::json;

/// Sets a condition of `object`; `lastTransitionTime` moves only when the status changes.
pub fn set_condition(
    object: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let mut condition = json!({
        "type": kind,
        "status": status,
        "lastProbeTime": null,
        "lastTransitionTime": time::format(now),
    });
    if !reason.is_empty() {
        condition["reason"] = reason.into();
    }
    if !message.is_empty() {
        condition["message"] = message.into();
    }
    let mut conditions = value::items(object, &["status", "conditions"]).to_vec();
    match conditions
        .iter_mut()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(kind))
    {
        Some(present) => {
            if present.get("status").and_then(Value::as_str) == Some(status)
                && let Some(since) = present.get("lastTransitionTime")
            {
                condition["lastTransitionTime"] = since.clone();
            }
            *present = condition;
        }
        None => conditions.push(condition),
    }
    value::set(object, &["status", "conditions"], Value::Array(conditions));
}
