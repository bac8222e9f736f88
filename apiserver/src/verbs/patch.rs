//! `patch`: JSON patch, merge patch, strategic merge patch and server-side apply, made again on the state that won a
//! conflict.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use keelson_machinery::codec::{self as machinery_codec, Strictness};
use keelson_machinery::meta::{self, GroupKind};
use keelson_machinery::patch as patches;
use keelson_machinery::schema::Type;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::status::{ApiError, Reason};
use keelson_machinery::value::{self, Value};

use super::call::{Call, set_defaults};
use super::options::WriteOptions;
use super::update::{Writer, answer, run};
use crate::body::Response;
use crate::codec::body::{FieldValidation, set_type_meta};
use crate::registry::store::{Change, ensure_namespace};
use crate::registry::{Served, conversion};

/// The kinds of patch that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own.
    Strategic,
    /// Server-side apply, in YAML.
    Apply,
}

const ACCEPTED: [(&str, PatchType); 4] = [
    ("application/json-patch+json", PatchType::Json),
    ("application/merge-patch+json", PatchType::Merge),
    (
        "application/strategic-merge-patch+json",
        PatchType::Strategic,
    ),
    ("application/apply-patch+yaml", PatchType::Apply),
];

impl PatchType {
    /// By the content type of the request.
    pub fn of(headers: &http::HeaderMap) -> Result<PatchType, ApiError> {
        let content_type = headers
            .get(http::header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default();
        ACCEPTED
            .iter()
            .find(|(name, _)| *name == content_type)
            .map(|(_, found)| *found)
            .ok_or_else(|| {
                let names: Vec<&str> = ACCEPTED.iter().map(|(name, _)| *name).collect();
                ApiError::unsupported_media_type(&names)
            })
    }
}

/// A patch as the client sent it.
pub struct Patch {
    kind: PatchType,
    document: Value,
    strict: Vec<String>,
    validation: FieldValidation,
}

impl Patch {
    /// Parses the body.
    pub fn read(
        kind: PatchType,
        body: &Bytes,
        validation: FieldValidation,
    ) -> Result<Patch, ApiError> {
        let decoded = match kind {
            PatchType::Apply => machinery_codec::yaml::decode_any(body, Strictness::Strict),
            _ => machinery_codec::json::decode_any(body, Strictness::Strict),
        };
        let (document, strict) = decoded.map_err(|error| {
            ApiError::bad_request(match kind {
                PatchType::Strategic => error.to_string(),
                PatchType::Json | PatchType::Merge => format!("error decoding patch: {error}"),
                PatchType::Apply => format!("error decoding YAML: {error}"),
            })
        })?;
        let mut strict: Vec<String> = strict.iter().map(ToString::to_string).collect();
        if kind == PatchType::Json {
            strict.extend(patches::json_patch_strict_errors(&document));
        }
        Ok(Patch {
            kind,
            document,
            strict,
            validation,
        })
    }

    /// Whether this is a configuration to apply.
    pub fn is_apply(&self) -> bool {
        self.kind == PatchType::Apply
    }

    /// Server-side apply (upstream `applyPatcher`): `merge` makes the next state from the configuration, which must be
    /// of this kind; duplicate fields become `warnings` or an error.
    pub fn merged(
        &self,
        kind: &str,
        api_version: &str,
        of: &'static Type,
        warnings: &mut Vec<String>,
        merge: impl FnOnce(&Value) -> Result<Value, ApiError>,
    ) -> Result<Value, ApiError> {
        let config = &self.document;
        let text = |name: &str| value::str_or_empty(config, &[name]);
        if text("kind") != kind || text("apiVersion") != api_version {
            return Err(ApiError::bad_request(format!(
                "invalid object type: {}, Kind={}",
                text("apiVersion"),
                text("kind")
            )));
        }
        let applied = merge(config)?;
        if !self.strict.is_empty() {
            let why = self.strict.join(", ");
            match self.validation {
                FieldValidation::Strict => {
                    return Err(ApiError::bad_request(format!(
                        "error strict decoding YAML: {why}"
                    )));
                }
                FieldValidation::Warn => warnings.push(why),
                FieldValidation::Ignore => {}
            }
        }
        let (mut applied, _) =
            machinery_codec::json::decode_value(&applied, of, Strictness::Lenient).map_err(
                |why| {
                    ApiError::new(
                        500,
                        Reason::Unknown,
                        format!("failed to convert new typed object to object: {why}"),
                    )
                },
            )?;
        set_type_meta(&mut applied, kind, api_version);
        Ok(applied)
    }

    /// Applies the patch to an object of `of` and checks the result. Unknown fields become `warnings` or an error.
    pub fn apply(
        &self,
        current: &Value,
        of: &'static Type,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        let (current, document) = (current.clone(), &self.document);
        let patched = match self.kind {
            PatchType::Json => patches::json_patch(current, document),
            PatchType::Merge => patches::merge_patch(current, document),
            PatchType::Strategic => patches::strategic_merge_patch(current, document.clone(), of),
            PatchType::Apply => {
                return Err(ApiError::unsupported_media_type(
                    &ACCEPTED[..3]
                        .iter()
                        .map(|(name, _)| *name)
                        .collect::<Vec<_>>(),
                ));
            }
        }?;
        let (decoded, mut strict) = machinery_codec::json::decode_value(
            &patched,
            of,
            match self.validation {
                FieldValidation::Ignore => Strictness::Lenient,
                FieldValidation::Warn | FieldValidation::Strict => Strictness::Strict,
            },
        )
        .map(|(value, strict)| {
            (
                value,
                strict.iter().map(ToString::to_string).collect::<Vec<_>>(),
            )
        })
        .map_err(|e| refused(&patched, &e.to_string()))?;
        if self.validation != FieldValidation::Ignore {
            let mut all = self.strict.clone();
            all.append(&mut strict);
            if self.validation == FieldValidation::Strict && !all.is_empty() {
                return Err(refused(
                    &patched,
                    &format!("strict decoding error: {}", all.join(", ")),
                ));
            }
            warnings.extend(all);
        }
        Ok(decoded)
    }
}

/// What upstream says of a patch whose result does not decode.
fn refused(patched: &Value, why: &str) -> ApiError {
    ApiError::invalid(
        &GroupKind::default(),
        "",
        vec![FieldError::invalid(
            &Path::new("patch"),
            patched.to_string(),
            why,
        )],
    )
}

/// Applies a patch to the object that the call names.
pub async fn patch(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let kind = PatchType::of(&call.parts.headers)?;
    let output = call.output()?;
    let options = WriteOptions::read(&call.query, "PatchOptions", kind == PatchType::Apply)?;
    let patch = Patch::read(kind, body, options.field_validation)?;
    let mut change = Patching {
        writer: Writer::new(call, &options),
        patch,
        served: call.served.clone(),
        name: call.info.name.clone(),
        namespace: call.namespace().to_string(),
        force: value::get_bool(&options.object, &["force"]).unwrap_or(false),
    };
    let allow_create = kind == PatchType::Apply && call.info.subresource.is_empty();
    let updated = run(call, &options, allow_create, &mut change).await?;
    call.warnings.extend(change.writer.into_warnings());
    answer(call, &output, updated)
}

struct Patching {
    writer: Writer,
    patch: Patch,
    served: Arc<Served>,
    name: String,
    namespace: String,
    force: bool,
}

impl Patching {
    /// The next state by server-side apply.
    fn applied(&mut self, current: Option<&Value>) -> Result<Value, ApiError> {
        let served = &self.served;
        let shown = current
            .map(|current| conversion::from_storage(served, current.clone()))
            .transpose()?;
        let mut warnings = Vec::new();
        let tracker = &self.writer.tracker;
        let applied = self.patch.merged(
            &served.row.kind,
            &served.api_version(),
            served.object_type,
            &mut warnings,
            |config| tracker.apply(shown.as_ref(), config, self.force),
        )?;
        for warning in warnings {
            self.writer.warn(warning);
        }
        if current.is_none() && !meta::uid(&applied).is_empty() {
            return Err(ApiError::conflict(
                &served.group_resource(),
                &self.name,
                format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    meta::uid(&applied)
                ),
            ));
        }
        let mut object = conversion::to_storage(served, applied)?;
        set_defaults(served, &mut object);
        ensure_namespace(&self.namespace, &mut object)?;
        let name = meta::name(&object);
        if name.is_empty() {
            meta::set(&mut object, "name", self.name.clone());
        } else if name != self.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.name
            )));
        }
        Ok(object)
    }
}

#[async_trait]
impl Change for Patching {
    async fn apply(&mut self, current: Option<&Arc<Value>>) -> Result<Value, ApiError> {
        if self.patch.kind == PatchType::Apply {
            let object = self.applied(current.map(|current| &**current))?;
            return self.writer.admit(object, current).await;
        }
        let Some(current) = current else {
            return Err(ApiError::not_found(
                &self.served.group_resource(),
                &self.name,
            ));
        };
        let served = &self.served;
        let shown = conversion::from_storage(served, Value::clone(current))?;
        let mut warnings = Vec::new();
        let mut patched = self
            .patch
            .apply(&shown, served.object_type, &mut warnings)?;
        for warning in warnings {
            self.writer.warn(warning);
        }
        check_type_meta(served, &patched)?;
        set_type_meta(&mut patched, &served.row.kind, &served.api_version());
        let mut object = conversion::to_storage(served, patched)?;
        set_defaults(served, &mut object);
        ensure_namespace(&self.namespace, &mut object)?;
        // Renaming by patch is an error of the metadata rules, a wrong namespace one of the request.
        if meta::name(&object).is_empty() {
            meta::set(&mut object, "name", self.name.clone());
        }
        self.writer.tracker.track(&mut object, Some(current))?;
        self.writer.admit(object, Some(current)).await
    }

    async fn validate(
        &mut self,
        object: &Value,
        current: Option<&Arc<Value>>,
    ) -> Result<(), ApiError> {
        self.writer.validate(object, current).await
    }

    fn warn(&mut self, warning: String) {
        self.writer.warn(warning);
    }
}

/// A patch cannot turn an object into another kind.
fn check_type_meta(served: &Served, patched: &Value) -> Result<(), ApiError> {
    use keelson_machinery::value::str_or_empty;
    let (kind, version) = (
        str_or_empty(patched, &["kind"]),
        str_or_empty(patched, &["apiVersion"]),
    );
    let wanted = served.api_version();
    if (!kind.is_empty() && kind != served.row.kind) || (!version.is_empty() && version != wanted) {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: the patch changes kind or apiVersion",
            served.row.kind
        )));
    }
    Ok(())
}
