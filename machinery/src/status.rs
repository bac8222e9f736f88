//! API errors: what becomes a `metav1.Status` on the wire (upstream `k8s.io/apimachinery/pkg/api/errors`).

pub mod field;

use std::fmt;

use serde_json::json;

use crate::meta::{GroupKind, GroupResource};
use crate::text;
use crate::value::{self, Object, Value};
use field::FieldError;

/// Why a request failed: `Status.reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are upstream's and say it all
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    StoreReadError,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
    /// A reason that upstream does not define, as webhooks may send.
    Other(Box<str>),
}

const REASONS: [(Reason, &str); 20] = [
    (Reason::Unknown, ""),
    (Reason::Unauthorized, "Unauthorized"),
    (Reason::Forbidden, "Forbidden"),
    (Reason::NotFound, "NotFound"),
    (Reason::AlreadyExists, "AlreadyExists"),
    (Reason::Conflict, "Conflict"),
    (Reason::Gone, "Gone"),
    (Reason::Invalid, "Invalid"),
    (Reason::ServerTimeout, "ServerTimeout"),
    (Reason::StoreReadError, "StorageReadError"),
    (Reason::Timeout, "Timeout"),
    (Reason::TooManyRequests, "TooManyRequests"),
    (Reason::BadRequest, "BadRequest"),
    (Reason::MethodNotAllowed, "MethodNotAllowed"),
    (Reason::NotAcceptable, "NotAcceptable"),
    (Reason::RequestEntityTooLarge, "RequestEntityTooLarge"),
    (Reason::UnsupportedMediaType, "UnsupportedMediaType"),
    (Reason::InternalError, "InternalError"),
    (Reason::Expired, "Expired"),
    (Reason::ServiceUnavailable, "ServiceUnavailable"),
];

impl Reason {
    /// The wire form; empty for [`Reason::Unknown`].
    pub fn as_str(&self) -> &str {
        match self {
            Reason::Other(text) => text,
            known => REASONS
                .iter()
                .find(|(reason, _)| reason == known)
                .map_or("", |(_, text)| text),
        }
    }

    /// Reads the wire form.
    pub fn parse(text: &str) -> Self {
        REASONS
            .iter()
            .find(|(_, known)| *known == text)
            .map_or_else(|| Reason::Other(text.into()), |(reason, _)| reason.clone())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One of several causes of an error (`metav1.StatusCause`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// A machine-readable kind, like `FieldValueInvalid`.
    pub reason: String,
    /// Words for a person.
    pub message: String,
    /// The field's path, if one is at fault.
    pub field: String,
}

/// What an error is about (`metav1.StatusDetails`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The object's name, or upstream's stand-in for one (the operation of a server timeout).
    pub name: String,
    /// The API group.
    pub group: String,
    /// The resource (for most reasons) or the kind (for `Invalid`).
    pub kind: String,
    /// The object's uid.
    pub uid: String,
    /// The causes.
    pub causes: Vec<Cause>,
    /// Seconds to wait before trying again; 0 for no advice.
    pub retry_after_seconds: i32,
}

/// An error with everything its `Status` needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Why, for machines.
    pub reason: Reason,
    /// The message for the client.
    pub message: String,
    /// What it is about.
    pub details: Option<Box<Details>>,
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        ApiError {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(code: u16, reason: Reason, at: &GroupResource, name: &str, message: String) -> Self {
        Self::new(code, reason, message).with_details(Details {
            name: name.to_owned(),
            group: at.group.clone(),
            kind: at.resource.clone(),
            ..Details::default()
        })
    }

    /// The same error with `details`.
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The same error with one more cause.
    pub fn with_cause(
        mut self,
        reason: impl Into<String>,
        message: impl Into<String>,
        field: impl Into<String>,
    ) -> Self {
        self.details_mut().causes.push(Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        });
        self
    }

    /// The details for changing, made if there are none.
    pub fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    /// 404: no such object (`NewNotFound`).
    pub fn not_found(at: &GroupResource, name: &str) -> Self {
        let message = format!("{at} {} not found", text::quote(name));
        Self::about(404, Reason::NotFound, at, name, message)
    }

    /// 404 for a path that no resource serves (`NewGenericServerResponse` for 404).
    pub fn no_such_resource() -> Self {
        Self::new(
            404,
            Reason::NotFound,
            "the server could not find the requested resource",
        )
        .with_details(Details::default())
    }

    /// 409: the name is taken (`NewAlreadyExists`).
    pub fn already_exists(at: &GroupResource, name: &str) -> Self {
        let message = format!("{at} {} already exists", text::quote(name));
        Self::about(409, Reason::AlreadyExists, at, name, message)
    }

    /// 409: no free generated name was found (`NewGenerateNameConflict`).
    pub fn generate_name_conflict(at: &GroupResource, name: &str, retry_after: i32) -> Self {
        let message = format!(
            "{at} {} already exists, the server was not able to generate a unique name for the object",
            text::quote(name)
        );
        let mut error = Self::about(409, Reason::AlreadyExists, at, name, message);
        error.details_mut().retry_after_seconds = retry_after;
        error
    }

    /// 401 (`NewUnauthorized`); an empty reason reads `not authorized`.
    pub fn unauthorized(message: &str) -> Self {
        let message = match message {
            "" => "not authorized",
            given => given,
        };
        Self::new(401, Reason::Unauthorized, message)
    }

    /// 403 (`NewForbidden`).
    pub fn forbidden(at: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = if at.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{at} is forbidden: {why}")
        } else {
            format!("{at} {} is forbidden: {why}", text::quote(name))
        };
        Self::about(403, Reason::Forbidden, at, name, message)
    }

    /// 409: the object changed meanwhile, or a precondition fails (`NewConflict`).
    pub fn conflict(at: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {at} {}: {why}",
            text::quote(name)
        );
        Self::about(409, Reason::Conflict, at, name, message)
    }

    /// The conflict of an update on an old resourceVersion (upstream `OptimisticLockErrorMsg`).
    pub fn optimistic_lock(at: &GroupResource, name: &str) -> Self {
        Self::conflict(
            at,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409: other managers own fields of an apply (`NewApplyConflict`).
    pub fn apply_conflict(causes: Vec<Cause>, message: impl Into<String>) -> Self {
        Self::new(409, Reason::Conflict, message).with_details(Details {
            causes,
            ..Details::default()
        })
    }

    /// 410 (`NewGone`).
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Gone, message)
    }

    /// 410: the revision is compacted (`NewResourceExpired`).
    pub fn resource_expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message)
    }

    /// 422: the object breaks the rules of its kind (`NewInvalid`).
    pub fn invalid(at: &GroupKind, name: &str, errors: Vec<FieldError>) -> Self {
        let name_quoted = text::quote(name);
        let message = match field::aggregate(&errors) {
            Some(all) => format!("{at} {name_quoted} is invalid: {all}"),
            None => format!("{at} {name_quoted} is invalid"),
        };
        Self::new(422, Reason::Invalid, message).with_details(Details {
            name: name.to_owned(),
            group: at.group.clone(),
            kind: at.kind.clone(),
            causes: errors
                .into_iter()
                .map(|error| Cause {
                    reason: error.kind.cause().to_owned(),
                    message: error.body(),
                    field: error.field,
                })
                .collect(),
            ..Details::default()
        })
    }

    /// 400 (`NewBadRequest`).
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    /// 429 with a time to wait (`NewTooManyRequests`).
    pub fn too_many_requests(message: impl Into<String>, retry_after: i32) -> Self {
        Self::new(429, Reason::TooManyRequests, message).with_details(Details {
            retry_after_seconds: retry_after,
            ..Details::default()
        })
    }

    /// 429 without advice (`NewTooManyRequestsError`).
    pub fn too_many_requests_error(message: impl fmt::Display) -> Self {
        Self::new(
            429,
            Reason::TooManyRequests,
            format!("Too many requests: {message}"),
        )
    }

    /// 503 (`NewServiceUnavailable`).
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, Reason::ServiceUnavailable, message)
    }

    /// 405 (`NewMethodNotSupported`).
    pub fn method_not_supported(at: &GroupResource, action: &str) -> Self {
        let message = format!(
            "{action} is not supported on resources of kind {}",
            text::quote(&at.to_string())
        );
        Self::about(405, Reason::MethodNotAllowed, at, "", message)
    }

    /// 500: try again (`NewServerTimeout`).
    pub fn server_timeout(at: &GroupResource, operation: &str, retry_after: i32) -> Self {
        let message = format!(
            "The {operation} operation against {at} could not be completed at this time, please try again."
        );
        let mut error = Self::about(500, Reason::ServerTimeout, at, operation, message);
        error.details_mut().retry_after_seconds = retry_after;
        error
    }

    /// 500 (`NewInternalError`).
    pub fn internal(why: impl fmt::Display) -> Self {
        let why = why.to_string();
        Self::new(
            500,
            Reason::InternalError,
            format!("Internal error occurred: {why}"),
        )
        .with_cause("", why, "")
    }

    /// 504: it took too long and may yet happen (`NewTimeoutError`).
    pub fn timeout(message: impl fmt::Display, retry_after: i32) -> Self {
        Self::new(504, Reason::Timeout, format!("Timeout: {message}")).with_details(Details {
            retry_after_seconds: retry_after,
            ..Details::default()
        })
    }

    /// 413 (`NewRequestEntityTooLargeError`).
    pub fn request_entity_too_large(message: impl fmt::Display) -> Self {
        Self::new(
            413,
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: {message}"),
        )
    }

    /// 415: the body's type is not among `accepted` (upstream `negotiation.NewUnsupportedMediaTypeError`).
    pub fn unsupported_media_type<S: AsRef<str>>(accepted: &[S]) -> Self {
        Self::new(
            415,
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                join(accepted)
            ),
        )
    }

    /// 406: none of the answer types that the client takes is among `accepted` (upstream `NewNotAcceptableError`).
    pub fn not_acceptable<S: AsRef<str>>(accepted: &[S]) -> Self {
        Self::new(
            406,
            Reason::NotAcceptable,
            format!(
                "only the following media types are accepted: {}",
                join(accepted)
            ),
        )
    }

    /// Whether the object does not exist (upstream `IsNotFound`).
    pub fn is_not_found(&self) -> bool {
        self.is(Reason::NotFound, 404)
    }

    /// Whether the name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }

    /// Whether the object changed meanwhile.
    pub fn is_conflict(&self) -> bool {
        self.is(Reason::Conflict, 409)
    }

    /// Whether the object is invalid.
    pub fn is_invalid(&self) -> bool {
        self.is(Reason::Invalid, 422)
    }

    /// Whether a revision is gone: `Expired` or `Gone`.
    pub fn is_expired(&self) -> bool {
        matches!(self.reason, Reason::Expired | Reason::Gone)
    }

    fn is(&self, reason: Reason, code: u16) -> bool {
        self.reason == reason
            || (matches!(self.reason, Reason::Unknown | Reason::Other(_)) && self.code == code)
    }

    /// The `v1` `Status` of this error.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": self.code,
        });
        if let Some(object) = status.as_object_mut() {
            put(object, "message", &self.message);
            put(object, "reason", self.reason.as_str());
            if let Some(details) = &self.details {
                object.insert("details".to_owned(), details.to_value());
            }
        }
        status
    }

    /// Reads a `Status` of some server; `None` when `value` is not a `Status` or reports success.
    pub fn from_value(status: &Value) -> Option<Self> {
        if value::get_str(status, &["kind"]) != Some("Status")
            || value::get_str(status, &["status"]) == Some("Success")
        {
            return None;
        }
        let code = value::get_i64(status, &["code"])
            .and_then(|code| u16::try_from(code).ok())
            .filter(|code| *code != 0)
            .unwrap_or(500);
        Some(ApiError {
            code,
            reason: Reason::parse(value::str_or_empty(status, &["reason"])),
            message: value::str_or_empty(status, &["message"]).to_owned(),
            details: value::get(status, &["details"])
                .map(|details| Box::new(Details::from_value(details))),
        })
    }
}

impl Details {
    /// The wire form, without empty fields.
    pub fn to_value(&self) -> Value {
        let mut out = Object::new();
        put(&mut out, "name", &self.name);
        put(&mut out, "group", &self.group);
        put(&mut out, "kind", &self.kind);
        put(&mut out, "uid", &self.uid);
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            out.insert("causes".to_owned(), Value::Array(causes));
        }
        if self.retry_after_seconds != 0 {
            out.insert(
                "retryAfterSeconds".to_owned(),
                self.retry_after_seconds.into(),
            );
        }
        Value::Object(out)
    }

    /// Reads the wire form.
    pub fn from_value(details: &Value) -> Self {
        let text = |name: &str| value::str_or_empty(details, &[name]).to_owned();
        Details {
            name: text("name"),
            group: text("group"),
            kind: text("kind"),
            uid: text("uid"),
            causes: value::items(details, &["causes"])
                .iter()
                .map(|cause| Cause {
                    reason: value::str_or_empty(cause, &["reason"]).to_owned(),
                    message: value::str_or_empty(cause, &["message"]).to_owned(),
                    field: value::str_or_empty(cause, &["field"]).to_owned(),
                })
                .collect(),
            retry_after_seconds: value::get_i64(details, &["retryAfterSeconds"])
                .and_then(|n| i32::try_from(n).ok())
                .unwrap_or(0),
        }
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut out = Object::new();
        put(&mut out, "reason", &self.reason);
        put(&mut out, "message", &self.message);
        put(&mut out, "field", &self.field);
        Value::Object(out)
    }
}

/// The `Status` that answers a finished deletion: success, and what was deleted.
pub fn success(details: Option<&Details>) -> Value {
    let mut status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
    });
    if let (Some(object), Some(details)) = (status.as_object_mut(), details) {
        object.insert("details".to_owned(), details.to_value());
    }
    status
}

fn put(object: &mut Object, name: &str, text: &str) {
    if !text.is_empty() {
        object.insert(name.to_owned(), text.into());
    }
}

fn join<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::field::Path;
    use super::*;

    fn check(error: ApiError, want: Value) {
        let got = error.to_value();
        assert_eq!(got, want);
        assert_eq!(ApiError::from_value(&got), Some(error));
    }

    #[test]
    fn statuses_as_upstream_writes_them() {
        let pods = GroupResource::new("", "pods");
        let deployments = GroupResource::new("apps", "deployments");
        check(
            ApiError::not_found(&deployments, "web"),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "deployments.apps \"web\" not found", "reason": "NotFound", "code": 404,
                "details": {"name": "web", "group": "apps", "kind": "deployments"}}),
        );
        check(
            ApiError::forbidden(&pods, "", "no"),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "pods is forbidden: no", "reason": "Forbidden", "code": 403,
                "details": {"kind": "pods"}}),
        );
        check(
            ApiError::internal("boom"),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Internal error occurred: boom", "reason": "InternalError", "code": 500,
                "details": {"causes": [{"message": "boom"}]}}),
        );
        let path = Path::new("spec").child("containers").index(0);
        check(
            ApiError::invalid(
                &GroupKind::new("apps", "Deployment"),
                "web",
                vec![
                    FieldError::required(&path.child("name"), ""),
                    FieldError::not_supported(&path.child("pullPolicy"), "x", &["Always", "Never"]),
                    FieldError::required(&path.child("name"), ""),
                ],
            ),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Deployment.apps \"web\" is invalid: [spec.containers[0].name: Required value, spec.containers[0].pullPolicy: Unsupported value: \"x\": supported values: \"Always\", \"Never\"]",
            "reason": "Invalid", "code": 422,
            "details": {"name": "web", "group": "apps", "kind": "Deployment", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers[0].name"},
                {"reason": "FieldValueNotSupported", "message": "Unsupported value: \"x\": supported values: \"Always\", \"Never\"", "field": "spec.containers[0].pullPolicy"},
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers[0].name"},
            ]}}),
        );
    }

    #[test]
    fn field_errors() {
        let p = Path::new("f");
        for (error, want) in [
            (
                FieldError::invalid(&p, -1, "must be positive"),
                "f: Invalid value: -1: must be positive",
            ),
            (
                FieldError::invalid(&p, json!({"a": "<"}), ""),
                r#"f: Invalid value: {"a":"\u003c"}"#,
            ),
            (
                FieldError::invalid(&p, "", "x"),
                r#"f: Invalid value: "": x"#,
            ),
            (
                FieldError::invalid(&p, Value::Null, "x"),
                "f: Invalid value: null: x",
            ),
            (
                FieldError::duplicate(&p.key("k"), "v"),
                r#"f[k]: Duplicate value: "v""#,
            ),
            (
                FieldError::too_long(&p, 1),
                "f: Too long: may not be more than 1 byte",
            ),
            (
                FieldError::too_many(&p, 3, 2),
                "f: Too many: 3: must have at most 2 items",
            ),
            (
                FieldError::forbidden(&Path::root(), "no"),
                "<nil>: Forbidden: no",
            ),
        ] {
            assert_eq!(error.to_string(), want);
        }
    }
}
