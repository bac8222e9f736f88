//! Policies and their bindings, followed from the store and compiled once
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/generic`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keelson_machinery::catalog::parse_api_version;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value as Json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::conditions::Conditions;
use super::expressions::{self, Known, Variable};
use crate::admission::AdmissionRequest;
use crate::admission::webhook::matching::{self, Rule, Seen, Selector};
use crate::cel::{Environment, Program, Type};
use crate::extensions::conversion as custom;
use crate::objects::{self, Objects};
use crate::reader::Change;
use crate::registry::{Table, conversion};

/// How long a request waits for the policies to be read at a start.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// Of which requests a policy or binding is about (`MatchResources`).
pub struct Scope {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    equivalent: bool,
    namespace_selector: Selector,
    object_selector: Selector,
}

impl Scope {
    fn read(resources: &Json) -> Scope {
        Scope {
            rules: Rule::read_all(value::items(resources, &["resourceRules"])),
            excluded: Rule::read_all(value::items(resources, &["excludeResourceRules"])),
            equivalent: value::str_or_empty(resources, &["matchPolicy"]) != "Exact",
            namespace_selector: matching::selector(resources.get("namespaceSelector")),
            object_selector: matching::selector(resources.get("objectSelector")),
        }
    }

    /// As what a request is seen; `None` when it is not of this scope.
    pub async fn sees(
        &self,
        request: &AdmissionRequest,
        table: &Table,
        objects: &Objects,
    ) -> Result<Option<Seen>, ApiError> {
        let namespace =
            matching::selects_namespace(&self.namespace_selector, request, objects).await;
        if matches!(namespace, Ok(false)) {
            return Ok(None);
        }
        let object = matching::selects_object(&self.object_selector, request);
        if matches!(object, Ok(false)) {
            return Ok(None);
        }
        if matching::seen_by(&self.excluded, self.equivalent, request, table)?.is_some() {
            return Ok(None);
        }
        let seen = if self.rules.is_empty() {
            Some(Seen {
                resource: matching::resource_of(request),
                kind: matching::kind_of(request),
            })
        } else {
            matching::seen_by(&self.rules, self.equivalent, request, table)?
        };
        if seen.is_some() {
            namespace?;
            object?;
        }
        Ok(seen)
    }
}

/// `paramKind`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamKind {
    /// `group/version`.
    pub api_version: String,
    /// Kind.
    pub kind: String,
}

impl ParamKind {
    /// Reads `spec.paramKind`.
    pub fn read(spec: &Json) -> Option<ParamKind> {
        let of = spec.get("paramKind").filter(|of| of.is_object())?;
        Some(ParamKind {
            api_version: value::str_or_empty(of, &["apiVersion"]).to_string(),
            kind: value::str_or_empty(of, &["kind"]).to_string(),
        })
    }
}

/// A rule of a validating policy.
pub struct Validation {
    /// Its expression.
    pub expression: String,
    /// The same, compiled.
    pub program: Result<Program, String>,
    /// `message`; empty when unset.
    pub message: String,
    /// `messageExpression`, compiled.
    pub message_program: Option<Result<Program, String>>,
    /// `reason`; empty when unset.
    pub reason: String,
}

/// An audit annotation of a validating policy.
pub struct Annotation {
    /// Its key.
    pub key: String,
    /// Its expression.
    pub expression: String,
    /// The same, compiled.
    pub program: Result<Program, String>,
}

/// A step of a mutating policy.
pub struct Mutation {
    /// `JSONPatch`, or else `ApplyConfiguration`.
    pub json_patch: bool,
    /// Its expression.
    pub expression: String,
    /// The same, compiled.
    pub program: Result<Program, String>,
}

/// A policy.
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Which requests it is about; `None` for a broken policy.
    pub scope: Option<Scope>,
    /// Failures are ignored.
    pub ignore_failures: bool,
    /// Kind of the parameters.
    pub param_kind: Option<ParamKind>,
    /// What leaves requests out.
    pub conditions: Conditions,
    /// Named expressions.
    pub variables: Vec<Variable>,
    /// What must hold (validating).
    pub validations: Vec<Validation>,
    /// What is noted (validating).
    pub annotations: Vec<Annotation>,
    /// What is changed (mutating).
    pub mutations: Vec<Mutation>,
    /// Whether it wants to run again (mutating).
    pub reinvoke: bool,
}

/// The compiled variables of a policy, and what later expressions may name. `each` sees every variable's result.
pub fn compile_variables(
    spec: &Json,
    known: &Known,
    mut each: impl FnMut(usize, &Result<Program, String>),
) -> (Vec<Variable>, Vec<(String, Type)>) {
    let mut variables = Vec::new();
    let mut types: Vec<(String, Type)> = Vec::new();
    for (index, variable) in value::items(spec, &["variables"]).iter().enumerate() {
        let env = expressions::with_variables(expressions::environment(known, true), &types);
        let source = value::str_or_empty(variable, &["expression"]);
        let program = expressions::compile(source, &env, &[]);
        each(index, &program);
        let name = value::str_or_empty(variable, &["name"]).to_string();
        let of = program
            .as_ref()
            .map_or(Type::Dyn, |program| program.output().clone());
        types.push((name.clone(), of));
        variables.push(Variable { name, program });
    }
    (variables, types)
}

/// What the expressions of a policy may name: with and without `authorizer`.
pub fn environments(known: &Known, variables: &[(String, Type)]) -> (Environment, Environment) {
    let of = |with_authorizer| {
        expressions::with_variables(expressions::environment(known, with_authorizer), variables)
    };
    (of(true), of(false))
}

impl Policy {
    fn read(object: &Json) -> Policy {
        let empty = Json::Null;
        let spec = object.get("spec").unwrap_or(&empty);
        let text = |of: &Json, member: &str| value::str_or_empty(of, &[member]).to_string();
        let param_kind = ParamKind::read(spec);
        let known = Known::nothing(param_kind.is_some());
        let (variables, types) = compile_variables(spec, &known, |_, _| {});
        let (env, plain) = environments(&known, &types);
        let patches = expressions::with_patches(env.clone());
        let validations = value::items(spec, &["validations"])
            .iter()
            .map(|of| {
                let message = text(of, "messageExpression");
                Validation {
                    program: expressions::compile(&text(of, "expression"), &env, &[Type::Bool]),
                    expression: text(of, "expression"),
                    message: text(of, "message"),
                    message_program: (!message.is_empty())
                        .then(|| expressions::compile(&message, &plain, &[Type::String])),
                    reason: text(of, "reason"),
                }
            })
            .collect();
        let annotations = value::items(spec, &["auditAnnotations"])
            .iter()
            .map(|of| Annotation {
                key: text(of, "key"),
                program: expressions::compile(
                    text(of, "valueExpression").trim(),
                    &env,
                    &[Type::String, Type::Null],
                ),
                expression: text(of, "valueExpression"),
            })
            .collect();
        let mutations = value::items(spec, &["mutations"])
            .iter()
            .map(|of| {
                let json_patch = text(of, "patchType") == "JSONPatch";
                let (member, wanted) = mutation_output(json_patch);
                let expression = value::str_or_empty(of, &[member, "expression"]).to_string();
                Mutation {
                    json_patch,
                    program: expressions::compile(&expression, &patches, &[wanted]),
                    expression,
                }
            })
            .collect();
        Policy {
            name: meta::name(object).to_string(),
            scope: spec
                .get("matchConstraints")
                .filter(|of| of.is_object())
                .map(Scope::read),
            ignore_failures: text(spec, "failurePolicy") == "Ignore",
            param_kind,
            conditions: Conditions::compile(value::items(spec, &["matchConditions"]), &env),
            variables,
            validations,
            annotations,
            mutations,
            reinvoke: text(spec, "reinvocationPolicy") == "IfNeeded",
        }
    }
}

/// Where the expression of a mutation stands, and what it must give.
pub fn mutation_output(json_patch: bool) -> (&'static str, Type) {
    match json_patch {
        true => ("jsonPatch", Type::list(expressions::json_patch_type())),
        false => ("applyConfiguration", expressions::built("Object")),
    }
}

/// A binding of a policy.
pub struct Binding {
    /// Its name.
    pub name: String,
    /// The policy's name.
    pub policy: String,
    /// Which of the policy's requests it is about; `None` for all.
    pub scope: Option<Scope>,
    /// `validationActions`.
    pub actions: Vec<String>,
    param_ref: Option<Json>,
}

impl Binding {
    fn read(object: &Json) -> Binding {
        Binding {
            name: meta::name(object).to_string(),
            policy: value::str_or_empty(object, &["spec", "policyName"]).to_string(),
            scope: value::get(object, &["spec", "matchResources"])
                .filter(|of| of.is_object())
                .map(Scope::read),
            actions: value::items(object, &["spec", "validationActions"])
                .iter()
                .filter_map(Json::as_str)
                .map(str::to_string)
                .collect(),
            param_ref: value::get(object, &["spec", "paramRef"])
                .filter(|of| of.is_object())
                .cloned(),
        }
    }
}

/// A policy with its bindings.
#[derive(Clone)]
pub struct Bound {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Its bindings.
    pub bindings: Vec<Arc<Binding>>,
}

/// All policies of one kind with their bindings, by name; policies without bindings are left out.
pub struct Policies {
    current: ArcSwap<Vec<Bound>>,
    synced: watch::Receiver<bool>,
}

impl Policies {
    /// Follows `policies` and `bindings`, two resources of `admissionregistration.k8s.io`.
    pub fn follow(
        objects: Objects,
        [policies, bindings]: [&str; 2],
        shutdown: CancellationToken,
    ) -> Arc<Policies> {
        let (sender, synced) = watch::channel(false);
        let all = Arc::new(Policies {
            current: ArcSwap::default(),
            synced,
        });
        let of = |name: &str| GroupResource::new("admissionregistration.k8s.io", name);
        let resources = vec![of(policies), of(bindings)];
        let target = all.clone();
        tokio::spawn(async move {
            let mut policies: BTreeMap<String, Arc<Policy>> = BTreeMap::new();
            let mut bindings: BTreeMap<String, Arc<Binding>> = BTreeMap::new();
            let apply = move |index, change| {
                match (index, change) {
                    (0, Change::Applied(object)) => {
                        let policy = Policy::read(&object);
                        policies.insert(policy.name.clone(), Arc::new(policy));
                    }
                    (0, Change::Deleted(object)) => drop(policies.remove(meta::name(&object))),
                    (_, Change::Applied(object)) => {
                        let binding = Binding::read(&object);
                        bindings.insert(binding.name.clone(), Arc::new(binding));
                    }
                    (_, Change::Deleted(object)) => drop(bindings.remove(meta::name(&object))),
                    (_, Change::Synced) => {}
                }
                let bound = policies.values().filter_map(|policy| {
                    let of: Vec<_> = bindings
                        .values()
                        .filter(|binding| binding.policy == policy.name)
                        .cloned()
                        .collect();
                    (!of.is_empty()).then(|| Bound {
                        policy: policy.clone(),
                        bindings: of,
                    })
                });
                target.current.store(Arc::new(bound.collect()));
            };
            objects::follow(objects, resources, sender, shutdown, apply).await;
        });
        all
    }

    /// The policies at this moment.
    ///
    /// # Errors
    /// 403 when they are not known yet.
    pub async fn current(&self, request: &AdmissionRequest) -> Result<Arc<Vec<Bound>>, ApiError> {
        if !*self.synced.borrow() {
            let mut synced = self.synced.clone();
            let ready = tokio::time::timeout(READY_LIMIT, synced.wait_for(|synced| *synced)).await;
            if !matches!(ready, Ok(Ok(_))) {
                return Err(request.forbidden("not yet ready to handle request"));
            }
        }
        Ok(self.current.load_full())
    }
}

/// The parameters with which a policy is evaluated for one binding: once with none when it takes none
/// (upstream `CollectParams`). The error is one of configuration.
pub async fn params(
    policy: &Policy,
    binding: &Binding,
    namespace: &str,
    table: &Table,
    objects: &Objects,
) -> Result<Vec<Option<Arc<Json>>>, String> {
    let Some(kind) = &policy.param_kind else {
        return Ok(vec![None]);
    };
    let (group, version) = parse_api_version(&kind.api_version).unwrap_or(("", ""));
    let row = table.catalog().kind(group, version, &kind.kind);
    let served = row
        .and_then(|row| table.get(&row.group, &row.version, &row.resource))
        .ok_or_else(|| {
            format!(
                "failed to find resource referenced by paramKind: '{}, Kind={}'",
                kind.api_version, kind.kind
            )
        })?;
    let Some(wanted) = &binding.param_ref else {
        return Ok(vec![None]);
    };
    let text = |member: &str| value::str_or_empty(wanted, &[member]);
    let from = text("namespace");
    let namespace = match (served.row.namespaced, from, namespace) {
        (false, "", _) => "",
        (false, _, _) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into(),
            );
        }
        (true, "", "") => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "", own) => own,
        (true, given, _) => given,
    };
    let at = served.storage_resource();
    let read = |error: ApiError| error.message;
    let found: Vec<Arc<Json>> = match (text("name"), wanted.get("selector")) {
        ("", None) => return Err("one of name or selector must be provided".into()),
        ("", selector) => {
            let selector = matching::selector(selector)?;
            let within = served.row.namespaced.then_some(namespace);
            let all = objects
                .list(&at.group, &at.resource, within)
                .await
                .map_err(read)?;
            all.into_iter()
                .filter(|object| selector.matches(meta::labels(object)))
                .collect()
        }
        (name, _) => objects
            .find(&at.group, &at.resource, namespace, name)
            .await
            .map_err(read)?
            .into_iter()
            .collect(),
    };
    if found.is_empty() && text("parameterNotFoundAction") == "Deny" {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".into(),
        );
    }
    let mut params = Vec::with_capacity(found.len());
    for object in found {
        let object = if served.custom.is_some() {
            let converted = custom::to_working(served, Json::clone(&object)).await;
            Arc::new(converted.map_err(read)?)
        } else if served.is_storage_version() {
            object
        } else {
            Arc::new(conversion::from_storage(served, Json::clone(&object)).map_err(read)?)
        };
        params.push(Some(object));
    }
    Ok(params)
}
