//! `AdmissionReview`: what a webhook is told, and what it may answer
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/request`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keelson_machinery::codec;
use keelson_machinery::status::{ApiError, Details, Reason};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::hooks::Hook;
use super::matching::{Gvk, Gvr, Seen, kind_of, resource_of};
use super::view::View;
use crate::admission::AdmissionRequest;

const GROUP: &str = "admission.k8s.io";

/// The version of reviews that we and a webhook both know.
pub fn version_for(hook: &Hook) -> Option<&'static str> {
    hook.review_versions
        .iter()
        .find_map(|version| match version.as_str() {
            "v1" => Some("v1"),
            "v1beta1" => Some("v1beta1"),
            _ => None,
        })
}

fn kind(of: &Gvk) -> Value {
    json!({"group": of.group, "version": of.version, "kind": of.kind})
}

fn resource(of: &Gvr) -> Value {
    json!({"group": of.group, "version": of.version, "resource": of.resource})
}

/// Everything of `AdmissionRequest` but the uid and the objects; also what policies see as `request`.
pub fn attributes(request: &AdmissionRequest, seen: &Seen) -> Value {
    let info = &request.request;
    let user = &request.user;
    let mut user_info = json!({ "username": user.name });
    if !user.uid.is_empty() {
        user_info["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        user_info["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        user_info["extra"] = json!(user.extra);
    }
    let mut told = json!({
        "kind": kind(&seen.kind),
        "resource": resource(&seen.resource),
        "requestKind": kind(&kind_of(request)),
        "requestResource": resource(&resource_of(request)),
        "operation": request.operation.as_str(),
        "userInfo": user_info,
        "dryRun": request.dry_run,
    });
    for (member, text) in [
        ("name", &info.name),
        ("namespace", &info.namespace),
        ("subResource", &info.subresource),
        ("requestSubResource", &info.subresource),
    ] {
        if !text.is_empty() {
            told[member] = text.clone().into();
        }
    }
    told
}

/// The review as it is posted.
pub fn encode(
    version: &str,
    uid: &str,
    request: &AdmissionRequest,
    seen: &Seen,
    view: &View,
) -> Bytes {
    let mut told = attributes(request, seen);
    told["uid"] = uid.into();
    told["options"] = request.options.clone();
    let head = json!({"kind": "AdmissionReview", "apiVersion": format!("{GROUP}/{version}")});
    let (object, old) = (view.object_json(), view.old_json());
    let mut out = Vec::with_capacity(object.len() + old.len() + 1024);
    // The objects are put in as they are: encoded once for all webhooks that see this version.
    codec::json::encode_to(&head, &mut out);
    out.pop();
    out.extend_from_slice(b",\"request\":");
    codec::json::encode_to(&told, &mut out);
    out.pop();
    out.extend_from_slice(b",\"object\":");
    out.extend_from_slice(&object);
    out.extend_from_slice(b",\"oldObject\":");
    out.extend_from_slice(&old);
    out.extend_from_slice(b"}}");
    Bytes::from(out)
}

/// What a webhook says.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// Whether the request may go on.
    pub allowed: bool,
    /// The Status that explains a refusal.
    pub result: Option<Value>,
    /// A JSON patch, as it was sent.
    pub patch: Vec<u8>,
    /// Its type; always `JSONPatch` for `v1beta1`.
    pub patch_type: String,
    /// Warnings for the client.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: BTreeMap<String, String>,
}

/// Reads an answer (upstream `VerifyAdmissionResponse`). The error says what is wrong with it.
pub fn decode(version: &str, uid: &str, mutating: bool, body: &[u8]) -> Result<Verdict, String> {
    let review: Value = serde_json::from_slice(body)
        .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))?;
    let response = review
        .get("response")
        .filter(|response| response.is_object())
        .ok_or("webhook response was absent")?;
    let text = |member: &str| value::get_str(response, &[member]);
    let strict = version == "v1";
    if strict {
        let given = text("uid").unwrap_or_default();
        if given != uid {
            return Err(format!("expected response.uid={uid:?}, got {given:?}"));
        }
        let kind = value::str_or_empty(&review, &["kind"]);
        let api_version = value::str_or_empty(&review, &["apiVersion"]);
        if kind != "AdmissionReview" || api_version != format!("{GROUP}/v1") {
            let shown = if api_version.contains('/') {
                api_version.to_string()
            } else {
                format!("/{api_version}")
            };
            return Err(format!(
                "expected webhook response of {GROUP}/v1, Kind=AdmissionReview, got {shown}, Kind={kind}"
            ));
        }
    }
    let mut patch = match text("patch") {
        Some(encoded) => STANDARD
            .decode(encoded)
            .map_err(|error| format!("response.patch: {error}"))?,
        None => Vec::new(),
    };
    let mut patch_type = text("patchType").map(str::to_string);
    match (strict, mutating) {
        (true, true) => match (&patch_type, patch.is_empty()) {
            (None, false) => {
                return Err("webhook returned response.patch but not response.patchType".into());
            }
            (Some(_), true) => {
                return Err("webhook returned response.patchType but not response.patch".into());
            }
            (Some(given), false) if given.is_empty() => {
                return Err("webhook returned invalid response.patchType of \"\"".into());
            }
            _ => {}
        },
        (true, false) => {
            if !patch.is_empty() {
                return Err("validating webhook may not return response.patch".into());
            }
            if patch_type.is_some() {
                return Err("validating webhook may not return response.patchType".into());
            }
        }
        (false, true) => patch_type = (!patch.is_empty()).then(|| "JSONPatch".to_string()),
        (false, false) => {
            patch.clear();
            patch_type = None;
        }
    }
    Ok(Verdict {
        allowed: value::get_bool(response, &["allowed"]).unwrap_or(false),
        result: response
            .get("status")
            .filter(|status| status.is_object())
            .cloned(),
        patch,
        patch_type: patch_type.unwrap_or_default(),
        warnings: value::items(response, &["warnings"])
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_string)
            .collect(),
        annotations: value::get_object(response, &["auditAnnotations"])
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_string())))
            .collect(),
    })
}

/// The error of a refusal (upstream `ToStatusErr`).
pub fn denied(hook: &str, result: Option<&Value>) -> ApiError {
    let by = format!("admission webhook {hook:?} denied the request");
    let text = |member: &str| result.map_or("", |result| value::str_or_empty(result, &[member]));
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = result
        .and_then(|result| value::get_i64(result, &["code"]))
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..1000).contains(code))
        .unwrap_or(400);
    let mut error = ApiError::new(code, Reason::parse(text("reason")), message);
    let details = result.and_then(|result| result.get("details"));
    error.details = details.map(|details| Box::new(Details::from_value(details)));
    error
}
