//! Follows FlowSchemas and PriorityLevelConfigurations: what is stored counts, what must be there is written, and schemas
//! that lead nowhere say so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Method;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::time;
use keelson_machinery::value::{self, Value};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{FlowControl, GROUP, LEVELS, SCHEMAS, defaults};
use crate::bootstrap::ObjectWriter;
use crate::loopback::Loopback;
use crate::objects::Objects;
use crate::reader::Change;

/// Changes that come close together are answered together.
const QUIET: Duration = Duration::from_millis(20);
/// How long to wait after a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How often what was deleted is looked for otherwise.
const RESYNC: Duration = Duration::from_secs(60);

type Stored = HashMap<String, Arc<Value>>;

/// Keeps all of it up to date until `shutdown`.
pub async fn keep(
    control: Arc<FlowControl>,
    objects: Objects,
    writer: Arc<Loopback>,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let stream = |resource: &str| objects.0.changes(&GroupResource::new(GROUP, resource));
    let mut changes = futures::stream::select(
        stream(SCHEMAS).map(|change| (0, change)),
        stream(LEVELS).map(|change| (1, change)),
    );
    let mut stored: [Stored; 2] = Default::default();
    let mut synced = [false, false];
    let mut wait = QUIET;
    loop {
        let wait_now = if synced == [true, true] {
            wait
        } else {
            Duration::MAX
        };
        let next = tokio::time::timeout(wait_now, changes.next());
        match shutdown.run_until_cancelled(next).await {
            None | Some(Ok(None)) => return,
            Some(Ok(Some((which, change)))) => {
                let of: &mut Stored = &mut stored[which];
                match change {
                    Change::Synced => synced[which] = true,
                    Change::Applied(object) => {
                        of.insert(meta::name(&object).to_owned(), object);
                    }
                    Change::Deleted(object) => {
                        of.remove(meta::name(&object));
                    }
                }
                wait = QUIET;
            }
            Some(Err(_quiet)) => {
                let [schemas, levels] = &stored;
                control.configure(
                    schemas.values().map(|object| &**object),
                    levels.values().map(|object| &**object),
                );
                wait = match write(&writer, &clock, schemas, levels).await {
                    Ok(()) => RESYNC,
                    // Somebody was faster; their change is on its way here.
                    Err(error) if error.is_conflict() || error.is_already_exists() => RETRY,
                    Err(error) => {
                        tracing::warn!(error = error.message, "priority and fairness");
                        RETRY
                    }
                };
            }
        }
    }
}

async fn write(
    writer: &Loopback,
    clock: &Clock,
    schemas: &Stored,
    levels: &Stored,
) -> Result<(), ApiError> {
    let all = |stored: &Stored| stored.values().cloned().collect::<Vec<_>>();
    for write in defaults::plan(&all(schemas), &all(levels)) {
        writer.write(write).await?;
    }
    for schema in schemas.values() {
        let level = value::str_or_empty(schema, &["spec", "priorityLevelConfiguration", "name"]);
        let mut next = Value::clone(schema);
        if !set_dangling(&mut next, level, levels.contains_key(level), clock) {
            continue;
        }
        let path = format!("/apis/{GROUP}/v1/{SCHEMAS}/{}/status", meta::name(schema));
        match writer.request(Method::PUT, &path, Some(&next)).await {
            Ok(_) => {}
            // It changed meanwhile, and that change comes here too.
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Puts in the `Dangling` condition; `false` when the schema says so already.
fn set_dangling(schema: &mut Value, level: &str, found: bool, clock: &Clock) -> bool {
    let (status, reason) = if found {
        ("False", "Found")
    } else {
        ("True", "NotFound")
    };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {level:?} {}",
        if found {
            "and it exists"
        } else {
            "but there is no such object"
        }
    );
    let mut conditions = value::items(schema, &["status", "conditions"]).to_vec();
    let is_it = |one: &Value| value::get_str(one, &["type"]) == Some("Dangling");
    let old = conditions.iter().position(is_it);
    let text = |field: &str| {
        old.and_then(|index| value::get_str(&conditions[index], &[field]))
            .unwrap_or_default()
    };
    if text("status") == status && text("reason") == reason && text("message") == message {
        return false;
    }
    let since = match text("lastTransitionTime") {
        since if text("status") == status && !since.is_empty() => since.to_owned(),
        _ => time::format(clock.now()),
    };
    let new = json!({"type": "Dangling", "status": status, "lastTransitionTime": since,
        "reason": reason, "message": message});
    match old {
        Some(index) => conditions[index] = new,
        None => conditions.push(new),
    }
    value::set(schema, &["status", "conditions"], conditions);
    true
}
