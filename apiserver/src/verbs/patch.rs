//! `patch`: JSON patch, merge patch, strategic merge patch and server-side apply, made again on the state that won a
//! conflict.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use keelson_machinery::codec::{self as machinery_codec, StrictError, Strictness};
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
use crate::extensions::Custom;
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
    /// By the content type of the request. Strategic merge needs a type of the type table.
    pub fn of(call: &Call) -> Result<PatchType, ApiError> {
        let typed = call.served.custom.is_none() || call.info.subresource == "scale";
        let accepted = || {
            let all = ACCEPTED.iter();
            all.filter(move |(_, kind)| typed || *kind != PatchType::Strategic)
        };
        let content_type = call
            .parts
            .headers
            .get(http::header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default();
        accepted()
            .find(|(name, _)| *name == content_type)
            .map(|(_, found)| *found)
            .ok_or_else(|| {
                let names: Vec<&str> = accepted().map(|(name, _)| *name).collect();
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
        of: Target<'_>,
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
        let decoded = of.decode(&applied, Strictness::Lenient);
        let (mut applied, _) = decoded.map_err(|why| {
            ApiError::new(
                500,
                Reason::Unknown,
                format!("failed to convert new typed object to object: {why}"),
            )
        })?;
        set_type_meta(&mut applied, kind, api_version);
        Ok(applied)
    }

    /// Applies the patch to an object of `of` and checks the result. Unknown fields become `warnings` or an error.
    pub fn apply(
        &self,
        current: &Value,
        of: Target<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        let (current, document) = (current.clone(), &self.document);
        let patched = match self.kind {
            PatchType::Json => patches::json_patch(current, document),
            PatchType::Merge => patches::merge_patch(current, document),
            PatchType::Strategic if let Target::Type(of) = of => {
                patches::strategic_merge_patch(current, document.clone(), of)
            }
            PatchType::Strategic | PatchType::Apply => {
                return Err(ApiError::unsupported_media_type(
                    &ACCEPTED[..3]
                        .iter()
                        .map(|(name, _)| *name)
                        .collect::<Vec<_>>(),
                ));
            }
        }?;
        let strictness = match self.validation {
            FieldValidation::Ignore => Strictness::Lenient,
            FieldValidation::Warn | FieldValidation::Strict => Strictness::Strict,
        };
        let decoded = of.decode(&patched, strictness);
        let (decoded, mut strict) = decoded
            .map(|(value, strict)| {
                (
                    value,
                    strict.iter().map(ToString::to_string).collect::<Vec<_>>(),
                )
            })
            .map_err(|e| refused(&patched, &e))?;
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

/// What a patched object is.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// Of a type of the type table.
    Type(&'static Type),
    /// A custom resource.
    Custom(&'a Custom),
}

impl<'a> Target<'a> {
    /// The objects of a resource.
    pub fn of(served: &'a Served) -> Target<'a> {
        match &served.custom {
            Some(custom) => Target::Custom(custom),
            None => Target::Type(served.object_type),
        }
    }

    /// Brings a value into the form of the target; what it does not know is dropped, and told.
    fn decode(
        self,
        value: &Value,
        strictness: Strictness,
    ) -> Result<(Value, Vec<StrictError>), String> {
        match self {
            Target::Type(of) => machinery_codec::json::decode_value(value, of, strictness)
                .map_err(|e| e.to_string()),
            Target::Custom(custom) => {
                let mut object = value.clone();
                let strict = custom.coerce(&mut object, strictness)?;
                Ok((object, strict))
            }
        }
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
    let kind = PatchType::of(call)?;
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
            Target::of(served),
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
            .apply(&shown, Target::of(served), &mut warnings)?;
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
