//! `scale`: replicas and selector of a workload as an `autoscaling/v1` Scale.

use std::sync::Arc;

use async_trait::async_trait;
use http::StatusCode;
use keelson_machinery::apply::path::PathElement;
use keelson_machinery::apply::scale::{SCALE_API_VERSION, ScaleFields};
use keelson_machinery::meta::{self, GroupKind};
use keelson_machinery::schema::{Schema, Type};
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::decode_kind;
use crate::admission::Operation;
use crate::body::{RequestBody, Response};
use crate::codec::Output;
use crate::extensions::definition::Version;
use crate::extensions::{Custom, strategy};
use crate::filters::method_not_allowed;
use crate::registry::store::{self, Change};
use crate::registry::{Served, conversion};
use crate::verbs::call::{Admission, read_body};
use crate::verbs::managers::Tracker;
use crate::verbs::options::WriteOptions;
use crate::verbs::patch::{Patch, PatchType, Target};
use crate::verbs::{Call, respond, update};

fn scale_type() -> Result<&'static Type, ApiError> {
    Schema::builtin()
        .lookup("io.k8s.api.autoscaling.v1.Scale")
        .ok_or_else(|| ApiError::internal("the type table has no Scale"))
}

/// Answers get, update and patch.
pub async fn scale(call: &mut Call, body: RequestBody) -> Result<Response, ApiError> {
    let output = call.output()?;
    match call.info.verb.as_str() {
        "get" => {
            let object = crate::verbs::get::read(call).await?.object(&call.served)?;
            let scale = match &call.served.custom {
                Some(custom) => {
                    let (scale, found) = scale_of_custom(custom, &object)?;
                    if !found {
                        let path = replicas_path(&call.served).join(".");
                        return Err(ApiError::internal(format!(
                            "the spec replicas field \".{path}\" does not exist"
                        )));
                    }
                    scale
                }
                None => scale_of(&call.served, &object)?,
            };
            answer(call, &output, &scale)
        }
        "update" => {
            let body = read_body(body).await?;
            let options = WriteOptions::read(&call.query, "UpdateOptions", false)?;
            let wanted = decode_kind(
                call,
                &body,
                "autoscaling",
                "v1",
                "Scale",
                options.field_validation,
            )?;
            update::check_name(call, &wanted)?;
            write(call, &output, &options, Wanted::Object(wanted)).await
        }
        "patch" => {
            let kind = PatchType::of(call)?;
            let body = read_body(body).await?;
            let options =
                WriteOptions::read(&call.query, "PatchOptions", kind == PatchType::Apply)?;
            let patch = Patch::read(kind, &body, options.field_validation)?;
            write(call, &output, &options, Wanted::Patch(patch)).await
        }
        _ => Err(method_not_allowed()),
    }
}

fn answer(call: &mut Call, output: &Output, scale: &Value) -> Result<Response, ApiError> {
    respond::other_kind(call, output, StatusCode::OK, scale, scale_type()?)
}

/// The Scale of a workload (upstream `scaleFromDeployment` and its siblings).
fn scale_of(served: &Served, object: &Value) -> Result<Value, ApiError> {
    if let Some(custom) = &served.custom {
        return scale_of_custom(custom, object).map(|(scale, _)| scale);
    }
    let selector = if served.row.resource == "replicationcontrollers" {
        LabelSelector::from_set(value::get_object(object, &["spec", "selector"]))
    } else {
        LabelSelector::from_value(value::get(object, &["spec", "selector"]))
            .map_err(ApiError::internal)?
    };
    let replicas = |path: &[&str]| value::get_i64(object, path).unwrap_or(0);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata_of(object),
        "spec": {"replicas": replicas(&["spec", "replicas"])},
        "status": {
            "replicas": replicas(&["status", "replicas"]),
            "selector": selector.to_string(),
        },
    });
    keelson_machinery::schema::normalize(&mut scale, scale_type()?);
    Ok(scale)
}

fn metadata_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(found) = value::get(object, &["metadata", field]) {
            metadata[field] = found.clone();
        }
    }
    metadata
}

/// The Scale of a custom resource, and whether the object says how many are wanted (upstream
/// `scaleFromCustomResource`).
fn scale_of_custom(custom: &Custom, object: &Value) -> Result<(Value, bool), ApiError> {
    let paths = custom
        .version()
        .and_then(|version| version.scale())
        .ok_or_else(ApiError::no_such_resource)?;
    let number = |path: &str| strategy::number_at(object, path).map_err(ApiError::internal);
    let wanted = number(&paths.spec_replicas_path)?;
    let present = number(&paths.status_replicas_path)?;
    let selector = match paths.label_selector_path.as_deref() {
        None | Some("") => None,
        Some(path) => strategy::text_at(object, path).map_err(ApiError::internal)?,
    };
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata_of(object),
        "spec": {"replicas": wanted.unwrap_or(0)},
        "status": {"replicas": present.unwrap_or(0), "selector": selector.unwrap_or_default()},
    });
    keelson_machinery::schema::normalize(&mut scale, scale_type()?);
    Ok((scale, wanted.is_some()))
}

/// The path of the wanted number in a custom resource.
fn replicas_path(served: &Served) -> Vec<&str> {
    let custom = served.custom.as_ref();
    let scale = custom
        .and_then(|custom| custom.version())
        .and_then(|version| version.scale());
    match scale {
        Some(scale) => strategy::path_of(&scale.spec_replicas_path),
        None => vec!["spec", "replicas"],
    }
}

enum Wanted {
    Object(Value),
    Patch(Patch),
}

struct Scaling {
    admission: Admission,
    tracker: Tracker,
    wanted: Wanted,
    served: Arc<Served>,
    uid: Option<String>,
    force: bool,
}

/// The entries of a workload while its scale is written. Its replicas are in the same place in all versions that
/// upstream knows (`replicasPathInDeployment` and its siblings).
fn scale_fields(served: &Served, object: &Value) -> Result<ScaleFields, ApiError> {
    if let Some(custom) = &served.custom {
        let definition = &custom.definition;
        let path = |version: &Version| {
            let steps = strategy::path_of(&version.scale()?.spec_replicas_path);
            let steps = steps.into_iter().map(str::to_string);
            Some(steps.map(PathElement::field).collect())
        };
        let paths = definition.versions.iter().map(|version| {
            let api_version = format!("{}/{}", definition.group, version.name);
            (api_version, path(version))
        });
        return ScaleFields::new(object, &served.api_version(), paths.collect())
            .map_err(ApiError::internal);
    }
    let group = &served.row.group;
    let versions: &[&str] = match group.as_str() {
        "apps" => &["v1", "v1beta1", "v1beta2"],
        _ => &["v1"],
    };
    let replicas = ["spec", "replicas"].map(PathElement::field);
    let paths = versions
        .iter()
        .map(|version| {
            (
                keelson_machinery::catalog::api_version(group, version),
                Some(replicas.to_vec()),
            )
        })
        .collect();
    ScaleFields::new(object, &served.api_version(), paths).map_err(ApiError::internal)
}

async fn write(
    call: &mut Call,
    output: &Output,
    options: &WriteOptions,
    wanted: Wanted,
) -> Result<Response, ApiError> {
    let served = call.served.clone();
    let uid = match &wanted {
        Wanted::Object(scale) => Some(meta::uid(scale).to_string()).filter(|uid| !uid.is_empty()),
        Wanted::Patch(_) => None,
    };
    let mut change = Scaling {
        admission: Admission::new(
            call,
            Operation::Update,
            "Scale",
            options.object.clone(),
            options.dry_run,
        ),
        tracker: Tracker::new(call, options),
        wanted,
        served: served.clone(),
        uid,
        force: value::get_bool(&options.object, &["force"]).unwrap_or(false),
    };
    // The strategy sees a plain update of the workload: status stays, the generation grows.
    let mut context = call.context(&served, options.dry_run);
    context.subresource = "";
    let updated = store::update(
        &call.server.storage,
        &context,
        &call.group_resource(),
        call.namespace(),
        &call.info.name,
        false,
        &mut change,
    )
    .await?;
    call.warnings.extend(change.admission.into_warnings());
    let object = conversion::from_storage(&served, Value::clone(&updated.into_stored().object))?;
    let scale = scale_of(&served, &object)?;
    answer(call, output, &scale)
}

#[async_trait]
impl Change for Scaling {
    async fn apply(&mut self, current: Option<&Arc<Value>>) -> Result<Value, ApiError> {
        let Some(current) = current else {
            return Err(ApiError::internal("scaling does not create"));
        };
        let mut old = scale_of(&self.served, current)?;
        let fields = scale_fields(&self.served, current)?;
        fields.show(&mut old);
        let of = scale_type()?;
        let (tracker, force) = (&self.tracker, self.force);
        let mut warnings = Vec::new();
        let wanted = match &self.wanted {
            Wanted::Patch(patch) if patch.is_apply() => {
                let target = Target::Type(of);
                patch.merged(
                    "Scale",
                    SCALE_API_VERSION,
                    target,
                    &mut warnings,
                    |config| tracker.apply_scale(of, &old, config, force),
                )?
            }
            other => {
                let mut wanted = match other {
                    Wanted::Object(scale) => scale.clone(),
                    Wanted::Patch(patch) => patch.apply(&old, Target::Type(of), &mut warnings)?,
                };
                tracker.track_scale(of, &mut wanted, &old);
                wanted
            }
        };
        for warning in warnings {
            self.admission.warn(warning);
        }
        let old = Arc::new(old);
        let wanted = self.admission.admit(wanted, Some(old.clone())).await?;
        let replicas = value::get_i64(&wanted, &["spec", "replicas"]).unwrap_or(0);
        if replicas < 0 {
            return Err(ApiError::invalid(
                &GroupKind::new("autoscaling", "Scale"),
                meta::name(&wanted),
                vec![FieldError::invalid(
                    &Path::new("spec").child("replicas"),
                    replicas,
                    "must be greater than or equal to 0",
                )],
            ));
        }
        self.admission.validate(Some(&wanted), Some(old)).await?;
        let mut object = Value::clone(current);
        let path = replicas_path(&self.served);
        if !value::set(&mut object, &path, replicas) {
            return Err(ApiError::internal(format!(
                "value cannot be set because .{} is not a map[string]interface{{}}",
                path[..path.len().saturating_sub(1)].join(".")
            )));
        }
        fields
            .take_back(&wanted, &mut object)
            .map_err(ApiError::internal)?;
        let revision = meta::resource_version(&wanted);
        if revision.is_empty() {
            meta::remove(&mut object, "resourceVersion");
        } else {
            meta::set(&mut object, "resourceVersion", revision);
        }
        Ok(object)
    }

    async fn validate(&mut self, _: &Value, _: Option<&Arc<Value>>) -> Result<(), ApiError> {
        // Admission has seen the Scale; the workload itself is not the object of this request.
        Ok(())
    }

    fn warn(&mut self, warning: String) {
        self.admission.warn(warning);
    }

    fn expected_uid(&self) -> Option<String> {
        self.uid.clone()
    }
}
