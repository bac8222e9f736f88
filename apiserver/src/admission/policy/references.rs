//! Who writes a policy or binding must be able to read the parameters that it refers to: a policy's answers would tell
//! them otherwise (upstream `pkg/registry/admissionregistration/*/authz.go`, which stands in the registry; here the
//! plugin asks, at the same moment).

use keelson_machinery::catalog::parse_api_version;
use keelson_machinery::meta::{self, GroupKind};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value as Json};

use super::PolicyPlugins;
use super::definition::ParamKind;
use crate::admission::{AdmissionRequest, Operation};
use crate::authz::{Attributes, Decision, MASTERS};
use crate::request::{RequestInfo, UserInfo};

/// Checks a create or update of a policy or binding.
pub(super) async fn check(
    shared: &PolicyPlugins,
    request: &AdmissionRequest,
) -> Result<(), ApiError> {
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    let (Some(object), true, true) = (
        &request.object,
        writes,
        request.request.subresource.is_empty(),
    ) else {
        return Ok(());
    };
    if request.user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    let old = request.old_object.as_deref();
    let found = match request.kind.as_str() {
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            of_policy(shared, request, object, old).await
        }
        "ValidatingAdmissionPolicyBinding" => {
            of_binding(shared, request, object, old, "validatingadmissionpolicies").await?
        }
        "MutatingAdmissionPolicyBinding" => {
            of_binding(shared, request, object, old, "mutatingadmissionpolicies").await?
        }
        _ => None,
    };
    match found {
        None => Ok(()),
        Some((member, why)) => Err(ApiError::invalid(
            &GroupKind::new(request.kind_group.as_str(), request.kind.as_str()),
            meta::name(object),
            vec![FieldError::forbidden(&Path::new("spec").child(member), why)],
        )),
    }
}

/// Group, version and resource of a kind of parameters; `*` for what cannot be found out.
fn target(shared: &PolicyPlugins, kind: Option<&ParamKind>) -> RequestInfo {
    let any = || "*".to_string();
    let mut info = RequestInfo {
        is_resource: true,
        verb: "get".to_string(),
        group: any(),
        version: any(),
        resource: any(),
        namespace: any(),
        name: any(),
        ..RequestInfo::default()
    };
    if let Some(kind) = kind
        && let Some((group, version)) = parse_api_version(&kind.api_version)
    {
        info.group = group.to_string();
        info.version = version.to_string();
        let table = shared.registry.table();
        if let Some(row) = table.catalog().kind(group, version, &kind.kind) {
            info.resource.clone_from(&row.resource);
        }
    }
    info
}

async fn allowed(shared: &PolicyPlugins, user: &UserInfo, info: &RequestInfo) -> bool {
    let attributes = Attributes {
        user,
        request: info,
    };
    matches!(
        shared.authorizer.authorize(&attributes).await,
        Decision::Allow(_)
    )
}

/// A user as Go prints it.
fn shown(user: &UserInfo) -> String {
    let extra: Vec<String> = user
        .extra
        .iter()
        .map(|(key, values)| format!("{key}:[{}]", values.join(" ")))
        .collect();
    format!(
        "&{{{} {} [{}] map[{}]}}",
        user.name,
        user.uid,
        user.groups.join(" "),
        extra.join(" ")
    )
}

type Refused = Option<(&'static str, String)>;

async fn of_policy(
    shared: &PolicyPlugins,
    request: &AdmissionRequest,
    object: &Json,
    old: Option<&Json>,
) -> Refused {
    let kind_of = |object: &Json| object.get("spec").and_then(ParamKind::read);
    let kind = kind_of(object)?;
    if old.and_then(kind_of).as_ref() == Some(&kind) {
        return None;
    }
    let info = target(shared, Some(&kind));
    if allowed(shared, &request.user, &info).await {
        return None;
    }
    Some((
        "paramKind",
        format!(
            "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            shown(&request.user),
            kind.kind,
            kind.api_version
        ),
    ))
}

async fn of_binding(
    shared: &PolicyPlugins,
    request: &AdmissionRequest,
    object: &Json,
    old: Option<&Json>,
    policies: &str,
) -> Result<Refused, ApiError> {
    let spec = |object: &Json, member: &str| value::get(object, &["spec", member]).cloned();
    let Some(wanted) = spec(object, "paramRef").filter(Json::is_object) else {
        return Ok(None);
    };
    let unchanged = old.is_some_and(|old| {
        ["paramRef", "policyName"]
            .iter()
            .all(|member| spec(old, member) == spec(object, member))
    });
    if unchanged {
        return Ok(None);
    }
    let policy = value::str_or_empty(object, &["spec", "policyName"]);
    let policy = shared
        .objects
        .find("admissionregistration.k8s.io", policies, "", policy)
        .await?;
    let kind = policy
        .as_deref()
        .and_then(|policy| policy.get("spec"))
        .and_then(ParamKind::read);
    let mut info = target(shared, kind.as_ref());
    for (member, at) in [("name", &mut info.name), ("namespace", &mut info.namespace)] {
        let given = value::str_or_empty(&wanted, &[member]);
        if !given.is_empty() {
            *at = given.to_string();
        }
    }
    if allowed(shared, &request.user, &info).await {
        return Ok(None);
    }
    let why = format!(
        "user {} does not have \"get\" permission on the object referenced by paramRef",
        shown(&request.user)
    );
    Ok(Some(("paramRef", why)))
}
