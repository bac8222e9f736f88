//! `pods/binding`: assigns a pod to a node (upstream `pkg/registry/core/pod/storage.BindingREST`).

use bytes::Bytes;
use http::StatusCode;
use keelson_machinery::meta::{self, GroupKind, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::{admit, decode_kind};
use crate::admission::Operation;
use crate::body::Response;
use crate::codec::Output;
use crate::registry::Served;
use crate::registry::conditions::set_condition;
use crate::registry::store;
use crate::verbs::call::Admission;
use crate::verbs::options::WriteOptions;
use crate::verbs::{Call, respond};

/// `POST pods/NAME/binding`.
pub async fn bind(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let served = call.served.clone();
    bind_pod(call, body, &served).await
}

/// `POST bindings`, the old form: the name stands in the body.
pub async fn bind_from_collection(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let table = call.server.registry.table();
    let pods = table
        .storage(&GroupResource::new("", "pods"))
        .cloned()
        .ok_or_else(ApiError::no_such_resource)?;
    bind_pod(call, body, &pods).await
}

async fn bind_pod(call: &mut Call, body: &Bytes, pods: &Served) -> Result<Response, ApiError> {
    let output = call.output_without_table()?;
    let options = WriteOptions::read(&call.query, "CreateOptions", false)?;
    let mut binding = decode_kind(call, body, "", "v1", "Binding", options.field_validation)?;
    store::ensure_namespace(&call.info.namespace, &mut binding)?;
    if !call.info.name.is_empty() && meta::name(&binding) != call.info.name {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    validate(&binding)?;
    let admission = Admission::new(
        call,
        Operation::Create,
        "Binding",
        options.object.clone(),
        options.dry_run,
    );
    let binding = admit(call, admission, binding).await?;
    assign(call, pods, &binding, options.dry_run).await?;
    let status = keelson_machinery::status::success(None);
    let mut status = status;
    status["code"] = 201.into();
    let output = Output {
        convert: None,
        ..output
    };
    respond::meta_value(call, &output, StatusCode::CREATED, &status)
}

/// `ValidatePodBinding`.
fn validate(binding: &Value) -> Result<(), ApiError> {
    let target = Path::new("target");
    let mut findings = Vec::new();
    let kind = value::str_or_empty(binding, &["target", "kind"]);
    if !kind.is_empty() && kind != "Node" {
        findings.push(FieldError::not_supported(
            &target.child("kind"),
            kind,
            &["Node", "<empty>"],
        ));
    }
    if value::str_or_empty(binding, &["target", "name"]).is_empty() {
        findings.push(FieldError::required(&target.child("name"), ""));
    }
    if findings.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        &GroupKind::new("", "Binding"),
        meta::name(binding),
        findings,
    ))
}

async fn assign(
    call: &Call,
    pods: &Served,
    binding: &Value,
    dry_run: bool,
) -> Result<(), ApiError> {
    let node = value::str_or_empty(binding, &["target", "name"]);
    let at = GroupResource::new("", "pods");
    let at_binding = GroupResource::new("", "pods/binding");
    let name = meta::name(binding);
    let now = call.server.storage.clock.now();
    store::edit(
        &call.server.storage,
        &call.context(pods, dry_run),
        &at,
        &call.info.namespace,
        name,
        |pod| {
            let refused = |why: String| Err(ApiError::conflict(&at_binding, name, why));
            let (uid, revision) = (meta::uid(binding), meta::resource_version(binding));
            if !uid.is_empty() && uid != meta::uid(pod) {
                return Err(ApiError::conflict(
                    &at,
                    name,
                    format!(
                        "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                        meta::uid(pod)
                    ),
                ));
            }
            if !revision.is_empty() && revision != meta::resource_version(pod) {
                return Err(ApiError::conflict(
                    &at,
                    name,
                    format!(
                        "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {}",
                        meta::resource_version(pod)
                    ),
                ));
            }
            if meta::deletion_timestamp(pod).is_some() {
                return refused(format!(
                    "pod {name} is being deleted, cannot be assigned to a host"
                ));
            }
            let present = value::str_or_empty(pod, &["spec", "nodeName"]);
            if !present.is_empty() {
                return refused(format!(
                    "pod {name} is already assigned to node {present:?}"
                ));
            }
            if !value::items(pod, &["spec", "schedulingGates"]).is_empty() {
                return refused(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            let mut pod = pod.clone();
            value::set(&mut pod, &["spec", "nodeName"], node);
            value::remove(&mut pod, &["status", "nominatedNodeName"]);
            for field in ["annotations", "labels"] {
                for (key, text) in value::get_object(binding, &["metadata", field]).into_iter().flatten() {
                    value::set(&mut pod, &["metadata", field, key], text.clone());
                }
            }
            set_condition(&mut pod, "PodScheduled", "True", "", "", now);
            Ok(pod)
        },
    )
    .await?;
    Ok(())
}
