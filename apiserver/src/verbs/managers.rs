//! Field managers of a request: who writes, what that write cannot change, and the tracking itself, for every verb
//! (upstream `endpoints/handlers/fieldmanager`, `managerOrUserAgent`, the strategies' `GetResetFields`).

use std::sync::Arc;

use keelson_machinery::apply::scale::SCALE_API_VERSION;
use keelson_machinery::apply::{self, Set, Shape, Write};
use keelson_machinery::clock::Clock;
use keelson_machinery::meta;
use keelson_machinery::schema::Type;
use keelson_machinery::status::ApiError;
use keelson_machinery::time;
use keelson_machinery::value::{self, Value};

use super::Call;
use super::options::WriteOptions;
use crate::codec::body::set_type_meta;
use crate::registry::{Served, conversion, generic};

/// The longest name of a manager (upstream `FieldManagerMaxLength`).
const MAX_NAME: usize = 128;

/// Tracks the writes of one request.
pub struct Tracker {
    served: Arc<Served>,
    api_version: String,
    subresource: String,
    manager: String,
    ignored: Set,
    clock: Clock,
}

impl Tracker {
    /// For the object of the call.
    pub fn new(call: &Call, options: &WriteOptions) -> Tracker {
        let manager = if options.field_manager.is_empty() {
            prefix_of_user_agent(
                call.parts
                    .headers
                    .get(http::header::USER_AGENT)
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or_default(),
            )
        } else {
            options.field_manager.clone()
        };
        Tracker {
            served: call.served.clone(),
            api_version: call.served.api_version(),
            subresource: call.info.subresource.clone(),
            manager,
            ignored: reset_fields(&call.served, &call.info.subresource),
            clock: call.server.storage.clock.clone(),
        }
    }

    fn write<'a>(&'a self, now: &'a str) -> Write<'a> {
        Write {
            shape: self.served.shape(),
            api_version: &self.api_version,
            subresource: &self.subresource,
            manager: &self.manager,
            ignored: &self.ignored,
            now,
        }
    }

    /// What a create starts from.
    fn zero(&self) -> Value {
        let mut zero = self.served.shape().zero();
        set_type_meta(&mut zero, &self.served.row.kind, &self.api_version);
        zero
    }

    /// Sets the managed fields of `object`, which replaces `current`; both in the storage version.
    pub fn track(&self, object: &mut Value, current: Option<&Value>) -> Result<(), ApiError> {
        let now = time::format(self.clock.now());
        let write = self.write(&now);
        let zero;
        if self.served.is_working_version() {
            let live = match current {
                Some(current) => current,
                None => {
                    zero = self.zero();
                    &zero
                }
            };
            apply::track(live, object, &write);
            return Ok(());
        }
        // Ownership is told in the version of the request.
        let live = match current {
            Some(current) => conversion::from_storage(&self.served, current.clone())?,
            None => self.zero(),
        };
        let mut shown = conversion::from_storage(&self.served, object.clone())?;
        apply::track(&live, &mut shown, &write);
        match value::remove(&mut shown, &["metadata", "managedFields"]) {
            Some(entries) => {
                meta::set(object, "managedFields", entries);
            }
            None => {
                meta::remove(object, "managedFields");
            }
        }
        Ok(())
    }

    /// Applies a configuration to `current`, both in the version of the request; the result is not yet defaulted.
    pub fn apply(
        &self,
        current: Option<&Value>,
        config: &Value,
        force: bool,
    ) -> Result<Value, ApiError> {
        let now = time::format(self.clock.now());
        let zero;
        let live = match current {
            Some(current) => current,
            None => {
                zero = self.zero();
                &zero
            }
        };
        apply::apply(live, config, &self.write(&now), force)
    }

    fn scale_write<'a>(&'a self, of: &'static Type, now: &'a str) -> Write<'a> {
        Write {
            shape: Shape::Object(of),
            api_version: SCALE_API_VERSION,
            ..self.write(now)
        }
    }

    /// Sets the managed fields of a Scale (of this type) that replaces `current`.
    pub fn track_scale(&self, of: &'static Type, scale: &mut Value, current: &Value) {
        let now = time::format(self.clock.now());
        apply::track(current, scale, &self.scale_write(of, &now));
    }

    /// Applies a configuration to a Scale (of this type).
    pub fn apply_scale(
        &self,
        of: &'static Type,
        current: &Value,
        config: &Value,
        force: bool,
    ) -> Result<Value, ApiError> {
        let now = time::format(self.clock.now());
        apply::apply(current, config, &self.scale_write(of, &now), force)
    }
}

/// What stands before the first slash, without what cannot be printed (upstream `prefixFromUserAgent`).
fn prefix_of_user_agent(agent: &str) -> String {
    let mut out = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars() {
        if c.is_control() {
            continue;
        }
        if out.len() + c.len_utf8() > MAX_NAME {
            break;
        }
        out.push(c);
    }
    out
}

/// The fields that a write to a subresource leaves as they are, and which it therefore cannot own
/// (upstream `GetResetFields`).
fn reset_fields(served: &Served, subresource: &str) -> Set {
    let row = &served.row;
    let fields: &[&[&'static str]] = match (row.group.as_str(), row.resource.as_str(), subresource)
    {
        ("certificates.k8s.io", "certificatesigningrequests", "") => &[&["spec"], &["status"]],
        ("certificates.k8s.io", "certificatesigningrequests", "status") => {
            &[&["spec"], &["status", "conditions"]]
        }
        ("certificates.k8s.io", "certificatesigningrequests", "approval") => {
            &[&["spec"], &["status", "certificate"]]
        }
        ("apps", "deployments", "status") => &[&["spec"], &["metadata", "labels"]],
        ("", "pods", "status") => &[
            &["spec"],
            &["metadata", "deletionTimestamp"],
            &["metadata", "ownerReferences"],
        ],
        (_, _, "status") if served.custom.is_some() => &[&["spec"], &["metadata"]],
        (_, _, "status") if generic::keeps_metadata_on_status(row) => &[&["spec"], &["metadata"]],
        (_, _, "status") => &[&["spec"]],
        (_, _, "") if generic::has_status(row) => &[&["status"]],
        ("", "namespaces", "finalize") => &[&["status"]],
        _ => &[],
    };
    Set::of_fields(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_from_user_agents() {
        for (agent, want) in [
            ("kubectl/v1.36.2 (linux/amd64)", "kubectl"),
            ("", ""),
            ("no-slash", "no-slash"),
            ("a\u{7}b/c", "ab"),
        ] {
            assert_eq!(prefix_of_user_agent(agent), want, "{agent:?}");
        }
        assert_eq!(prefix_of_user_agent(&"x".repeat(200)).len(), MAX_NAME);
    }
}
