//! What the status of a ValidatingAdmissionPolicy says of its expressions when the types of its resources are known
//! (upstream controller `validatingadmissionpolicy-status`). It changes nothing of what the policy does.
//!
//! The check lives in the server, not among the controllers, for only the server knows expressions; it writes the
//! status through the API like any client.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use http::Method;
use keelson_machinery::catalog::parse_api_version;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::schema::{Cardinality, Field, Kind, Schema, Type as SchemaType};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value as Json};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::definition::{ParamKind, compile_variables};
use super::expressions::{self, Known};
use crate::admission::webhook::matching::Gvk;
use crate::cel::{ObjectType, Program, Type, escape, types};
use crate::loopback::Loopback;
use crate::objects::{self, Objects};
use crate::reader::Change;
use crate::registry::Table;

/// The most types that one policy is checked for (upstream `maxTypesToCheck`).
const MAX_TYPES: usize = 10;
/// How many policies may wait for their check; what does not fit is checked when the policy changes again.
const QUEUE: usize = 1024;
/// How often a status is written again after it failed.
const ATTEMPTS: usize = 5;

/// A built-in type as expressions see it.
struct BuiltIn(&'static SchemaType);

impl fmt::Debug for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl ObjectType for BuiltIn {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn field(&self, name: &str) -> Option<Type> {
        if self.0.has_type_meta() && matches!(name, "kind" | "apiVersion") {
            return Some(Type::String);
        }
        let plain = escape::unescape(name)?;
        let field = self.0.field(&plain)?;
        Some(of_field(field))
    }
}

fn of_field(field: &'static Field) -> Type {
    let one = match field.kind {
        Kind::String | Kind::Quantity | Kind::Duration => Type::String,
        Kind::Bool => Type::Bool,
        Kind::Int32 | Kind::Int64 => Type::Int,
        Kind::Double => Type::Double,
        Kind::Bytes => Type::Bytes,
        Kind::Time | Kind::MicroTime => Type::Timestamp,
        Kind::Message(of) => Type::Object(Arc::new(BuiltIn(of))),
        Kind::IntOrString => types::INT_OR_STRING,
        _ => Type::Dyn,
    };
    match field.cardinality {
        Cardinality::Optional => one,
        Cardinality::Repeated => Type::list(one),
        Cardinality::Map => Type::map(Type::String, one),
    }
}

/// A type of a custom resource: a part of its OpenAPI schema.
#[derive(Debug)]
struct Custom {
    name: String,
    schema: Json,
    root: bool,
}

impl ObjectType for Custom {
    fn name(&self) -> &str {
        &self.name
    }

    fn field(&self, name: &str) -> Option<Type> {
        if self.root {
            match name {
                "kind" | "apiVersion" => return Some(Type::String),
                "metadata" => {
                    let of = Schema::builtin()
                        .lookup("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")?;
                    return Some(Type::Object(Arc::new(BuiltIn(of))));
                }
                _ => {}
            }
        }
        let plain = escape::unescape(name)?;
        let of = value::get(&self.schema, &["properties"])?.get(&plain)?;
        Some(of_schema(of, &format!("{}.{name}", self.name), false))
    }
}

fn of_schema(schema: &Json, name: &str, root: bool) -> Type {
    let flag = |name: &str| value::get_bool(schema, &[name]).unwrap_or(false);
    if flag("x-kubernetes-int-or-string") {
        return types::INT_OR_STRING;
    }
    let object = || {
        Type::Object(Arc::new(Custom {
            name: name.to_string(),
            schema: schema.clone(),
            root: root || flag("x-kubernetes-embedded-resource"),
        }))
    };
    match value::str_or_empty(schema, &["type"]) {
        "object" if schema.get("properties").is_some() || root => object(),
        "object" => match schema.get("additionalProperties") {
            Some(of) if of.is_object() => {
                Type::map(Type::String, of_schema(of, &format!("{name}.@elem"), false))
            }
            _ => Type::Dyn,
        },
        "array" => match schema.get("items") {
            Some(of) => Type::list(of_schema(of, &format!("{name}.@idx"), false)),
            None => Type::Dyn,
        },
        "string" => match value::str_or_empty(schema, &["format"]) {
            "byte" => Type::Bytes,
            "date" | "date-time" => Type::Timestamp,
            "duration" => Type::Duration,
            _ => Type::String,
        },
        "boolean" => Type::Bool,
        "integer" => Type::Int,
        "number" => Type::Double,
        _ => Type::Dyn,
    }
}

/// The type of a kind, if it is known.
async fn type_of(kind: &Gvk, table: &Table, objects: &Objects) -> Result<Option<Type>, ApiError> {
    if let Some(of) = Schema::builtin().lookup_kind(&kind.group, &kind.version, &kind.kind) {
        return Ok(Some(Type::Object(Arc::new(BuiltIn(of)))));
    }
    let Some(row) = table.catalog().kind(&kind.group, &kind.version, &kind.kind) else {
        return Ok(None);
    };
    let name = format!("{}.{}", row.resource, row.group);
    let definition = objects
        .find(
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "",
            &name,
        )
        .await?;
    let versions = definition
        .as_deref()
        .map(|definition| value::items(definition, &["spec", "versions"]))
        .unwrap_or_default();
    Ok(versions
        .iter()
        .find(|version| value::str_or_empty(version, &["name"]) == kind.version)
        .and_then(|version| value::get(version, &["schema", "openAPIV3Schema"]))
        .map(|schema| of_schema(schema, &kind.kind, true)))
}

/// The kinds of a policy's rules, as far as they name them (upstream `typesToCheck`).
fn kinds_to_check(spec: &Json, table: &Table) -> BTreeSet<(String, String, String)> {
    let mut kinds = BTreeSet::new();
    for rule in value::items(spec, &["matchConstraints", "resourceRules"]) {
        let texts = |member: &str| -> Vec<&str> {
            value::items(rule, &[member])
                .iter()
                .filter_map(Json::as_str)
                .collect()
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups
            .iter()
            .chain(&versions)
            .any(|text| text.contains('*'))
        {
            continue;
        }
        let resources = texts("resources");
        for group in &groups {
            for version in &versions {
                for resource in resources.iter().filter(|r| !r.contains(['*', '/'])) {
                    if kinds.len() >= MAX_TYPES {
                        return kinds;
                    }
                    if let Some(served) = table.get(group, version, resource) {
                        let row = &served.row;
                        kinds.insert((row.group.clone(), row.version.clone(), row.kind.clone()));
                    }
                }
            }
        }
    }
    kinds
}

/// The warnings for a policy, as its status has them.
pub async fn warnings(
    policy: &Json,
    table: &Table,
    objects: &Objects,
) -> Result<Vec<Json>, ApiError> {
    let empty = Json::Null;
    let spec = policy.get("spec").unwrap_or(&empty);
    let mut known = Vec::new();
    for (group, version, kind) in kinds_to_check(spec, table) {
        let kind = Gvk {
            group,
            version,
            kind,
        };
        if let Some(of) = type_of(&kind, table, objects).await? {
            known.push((kind, of));
        }
    }
    let params = match ParamKind::read(spec) {
        None => None,
        Some(of) => {
            let (group, version) = parse_api_version(&of.api_version).unwrap_or_default();
            let kind = Gvk {
                group: group.to_string(),
                version: version.to_string(),
                kind: of.kind,
            };
            Some(type_of(&kind, table, objects).await?.unwrap_or(Type::Dyn))
        }
    };
    let mut found = Vec::new();
    let mut check = |path: String, source: &str| {
        let mut messages = Vec::new();
        for (kind, object) in &known {
            let known = Known {
                object: object.clone(),
                params: params.clone(),
            };
            let (_, variables) = compile_variables(spec, &known, |_, _| {});
            // `authorizer.requestResource` is not known here, as upstream has it.
            let env =
                expressions::with_variables(expressions::environment(&known, true), &variables);
            if let Err(error) = Program::compile(source, &env) {
                let version = match kind.group.as_str() {
                    "" => format!("/{}", kind.version),
                    group => format!("{group}/{}", kind.version),
                };
                messages.push(format!("{version}, Kind={}: {error}\n", kind.kind));
            }
        }
        if !messages.is_empty() {
            found.push(json!({"fieldRef": path, "warning": messages.join("\n")}));
        }
    };
    for (index, rule) in value::items(spec, &["validations"]).iter().enumerate() {
        for member in ["expression", "messageExpression"] {
            let source = value::str_or_empty(rule, &[member]);
            if !source.is_empty() || member == "expression" {
                check(format!("spec.validations[{index}].{member}"), source);
            }
        }
    }
    Ok(found)
}

/// Checks every policy whose generation is newer than its status, until `shutdown`.
pub async fn run(objects: Objects, client: Arc<Loopback>, shutdown: CancellationToken) {
    let (sender, mut waiting) = mpsc::channel::<Arc<Json>>(QUEUE);
    let resource = GroupResource::new(
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
    );
    let (synced, _keep) = watch::channel(false);
    let apply = move |_, change| {
        if let Change::Applied(policy) = change {
            let observed = value::get_i64(&policy, &["status", "observedGeneration"]).unwrap_or(0);
            if meta::generation(&policy) > observed && sender.try_send(policy).is_err() {
                tracing::warn!("too many policies wait for their type check");
            }
        }
    };
    let following = objects::follow(
        objects.clone(),
        vec![resource],
        synced,
        shutdown.clone(),
        apply,
    );
    let checking = async {
        while let Some(policy) = waiting.recv().await {
            let name = meta::name(&policy).to_string();
            for attempt in 1..=ATTEMPTS {
                match update_status(&policy, &objects, &client).await {
                    Ok(()) => break,
                    Err(error) if error.is_not_found() => break,
                    Err(error) => {
                        tracing::debug!(policy = %name, %error, attempt, "the status of a policy was not written");
                        let pause = std::time::Duration::from_millis(100 * attempt as u64);
                        if shutdown
                            .run_until_cancelled(tokio::time::sleep(pause))
                            .await
                            .is_none()
                        {
                            return;
                        }
                    }
                }
            }
        }
    };
    tokio::join!(following, checking);
}

async fn update_status(
    policy: &Json,
    objects: &Objects,
    client: &Loopback,
) -> Result<(), ApiError> {
    let table = client.0.registry.table();
    let warnings = warnings(policy, &table, objects).await?;
    let path = format!(
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{}/status",
        meta::name(policy)
    );
    let mut current = client.request(Method::GET, &path, None).await?;
    // Somebody else may have checked it meanwhile, or it has changed and comes again.
    if meta::generation(&current) != meta::generation(policy)
        || value::get_i64(&current, &["status", "observedGeneration"])
            >= Some(meta::generation(policy))
    {
        return Ok(());
    }
    let mut checking = json!({});
    if !warnings.is_empty() {
        checking["expressionWarnings"] = Json::from(warnings);
    }
    value::set(&mut current, &["status", "typeChecking"], checking);
    value::set(
        &mut current,
        &["status", "observedGeneration"],
        meta::generation(policy),
    );
    client.request(Method::PUT, &path, Some(&current)).await?;
    Ok(())
}
