//! Subresources: most are the generic verbs on a part of the object; the others have a file here.

pub mod binding;
pub mod connect;
pub mod eviction;
pub mod reviews;
pub mod scale;
pub mod token;

use keelson_machinery::schema::Schema;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use crate::body::{RequestBody, Response};
use crate::codec::body::{Expected, FieldValidation};
use crate::filters::method_not_allowed;
use crate::verbs::call::{Admission, read_body};
use crate::verbs::{self, Call};

/// Answers a request to a subresource.
pub async fn dispatch(mut call: Call, body: RequestBody) -> Result<Response, ApiError> {
    let name = call.info.subresource.clone();
    let Some(sub) = call.served.row.subresource(&name).cloned() else {
        return Err(ApiError::no_such_resource());
    };
    if connect::is_connection(&name) {
        return connect::connect(call, body).await;
    }
    let verb = call.info.verb.clone();
    if !sub.verbs.contains(&verb) {
        return Err(method_not_allowed());
    }
    match (call.served.row.resource.as_str(), name.as_str()) {
        (_, "scale") => scale::scale(&mut call, body).await,
        ("pods", "binding") => {
            let body = read_body(body).await?;
            binding::bind(&mut call, &body).await
        }
        ("pods", "eviction") => {
            let body = read_body(body).await?;
            eviction::evict(&mut call, &body).await
        }
        ("serviceaccounts", "token") => {
            let body = read_body(body).await?;
            token::create(&mut call, &body).await
        }
        // The rest are parts of the object itself: status, finalize, approval, ephemeralcontainers, resize. What each
        // may change is the strategy's knowledge.
        _ => match verb.as_str() {
            "get" => verbs::get::get(&mut call).await,
            "update" => {
                let body = read_body(body).await?;
                verbs::update::update(&mut call, &body).await
            }
            "patch" => {
                verbs::patch::PatchType::of(&call)?;
                let body = read_body(body).await?;
                verbs::patch::patch(&mut call, &body).await
            }
            _ => Err(method_not_allowed()),
        },
    }
}

/// Answers a request to a resource that is not stored: reviews and old forms.
pub async fn answered_only(mut call: Call, body: RequestBody) -> Result<Response, ApiError> {
    match (
        call.served.row.group.as_str(),
        call.served.row.resource.as_str(),
    ) {
        ("", "bindings") => {
            let body = read_body(body).await?;
            binding::bind_from_collection(&mut call, &body).await
        }
        ("", "componentstatuses") => reviews::component_statuses(&mut call).await,
        ("authentication.k8s.io" | "authorization.k8s.io", _) => {
            let body = read_body(body).await?;
            reviews::create(&mut call, &body).await
        }
        _ => Err(ApiError::no_such_resource()),
    }
}

/// Decodes a body of the kind that a subresource takes.
pub(crate) fn decode_kind(
    call: &mut Call,
    body: &bytes::Bytes,
    group: &str,
    version: &str,
    kind: &str,
    validation: FieldValidation,
) -> Result<Value, ApiError> {
    let object_type = Schema::builtin()
        .lookup_kind(group, version, kind)
        .ok_or_else(|| ApiError::internal(format!("the type table has no {kind}")))?;
    call.decode(
        body,
        &Expected {
            group,
            version,
            kind,
            object_type,
            custom: None,
        },
        validation,
    )
}

/// Runs mutating and validating admission over an object that is not stored.
pub(crate) async fn admit(
    call: &mut Call,
    mut admission: Admission,
    object: Value,
) -> Result<Value, ApiError> {
    let object = admission.admit(object, None).await?;
    admission.validate(Some(&object), None).await?;
    call.warnings.extend(admission.into_warnings());
    Ok(object)
}
