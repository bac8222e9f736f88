//! What expressions of policies and match conditions may name, and what they are given
//! (`k8s.io/apiserver/pkg/admission/plugin/cel`).

use std::cell::RefCell;
use std::collections::HashMap;

use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value as Json;

use crate::authz::{Attributes, Authorizer, Decision};
use crate::cel::authorizer::{
    AUTHORIZER, Check, Decided, Decisions, RESOURCE_CHECK, authorizer_value, resource_value,
};
use crate::cel::{
    Budget, Environment, EvalError, Members, Program, Type, Value, Variables, authorizer,
};
use crate::request::{RequestInfo, UserInfo};

/// What upstream says when the expressions of a policy cost too much together.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The types of `object` and `params` where they are known (type checking), else [`Type::Dyn`].
pub struct Known {
    /// Of `object` and `oldObject`.
    pub object: Type,
    /// Of `params`; `None` when the policy has none.
    pub params: Option<Type>,
}

impl Known {
    /// Nothing is known; `params` says whether there are any.
    pub fn nothing(params: bool) -> Known {
        Known {
            object: Type::Dyn,
            params: params.then_some(Type::Dyn),
        }
    }
}

/// The variables of expressions; `with_authorizer` for those that may ask about rights.
pub fn environment(known: &Known, with_authorizer: bool) -> Environment {
    let mut env = Environment::new()
        .with("object", known.object.clone())
        .with("oldObject", known.object.clone())
        .with("namespaceObject", namespace_type())
        .with("request", request_type());
    if let Some(params) = &known.params {
        env = env.with("params", params.clone());
    }
    if with_authorizer {
        env = env
            .with("authorizer", Type::Opaque(AUTHORIZER))
            .with("authorizer.requestResource", Type::Opaque(RESOURCE_CHECK));
    }
    env
}

/// The same with `variables` of the policy, as far as they are compiled.
pub fn with_variables(mut env: Environment, variables: &[(String, Type)]) -> Environment {
    let fields = variables
        .iter()
        .map(|(name, of)| (name.clone(), of.clone()))
        .collect();
    env = env.with("variables", Members::named("kubernetes.variables", fields));
    for (name, of) in variables {
        env = env.with(&format!("variables.{name}"), of.clone());
    }
    env
}

/// An object that is built by an expression; its members may be anything.
#[derive(Debug)]
struct Built(String);

impl crate::cel::ObjectType for Built {
    fn name(&self) -> &str {
        &self.0
    }

    fn field(&self, _: &str) -> Option<Type> {
        Some(Type::Dyn)
    }
}

/// The type of an object that is built: `Object`, `Object.spec`, ...
pub fn built(name: &str) -> Type {
    Type::Object(std::sync::Arc::new(Built(name.to_string())))
}

/// `JSONPatch`.
pub fn json_patch_type() -> Type {
    Members::object(
        "JSONPatch",
        [
            ("op", Type::String),
            ("path", Type::String),
            ("from", Type::String),
            ("value", Type::Dyn),
        ],
    )
}

/// The same with the types that mutations build.
pub fn with_patches(env: Environment) -> Environment {
    env.with_messages(|name| match name {
        "JSONPatch" => Some(json_patch_type()),
        "Object" => Some(built(name)),
        _ => name.starts_with("Object.").then(|| built(name)),
    })
}

/// Compiles an expression that must give one of `wanted`, or anything when that is empty. The error is worded as
/// upstream's `CompileCELExpression` does.
pub fn compile(source: &str, env: &Environment, wanted: &[Type]) -> Result<Program, String> {
    let program =
        Program::compile(source, env).map_err(|error| format!("compilation failed: {error}"))?;
    let output = program.output();
    if wanted.is_empty() || wanted.iter().any(|of| of.is_exactly(output)) {
        return Ok(program);
    }
    let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    Err(match names.as_slice() {
        [one] => format!("must evaluate to {one} but got {output}"),
        all => format!(
            "must evaluate to one of [{}] but got {output}",
            all.join(" ")
        ),
    })
}

fn string_list() -> Type {
    Type::list(Type::String)
}

/// `BuildRequestType`.
fn request_type() -> Type {
    let gvk = Members::object(
        "kubernetes.GroupVersionKind",
        [
            ("group", Type::String),
            ("version", Type::String),
            ("kind", Type::String),
        ],
    );
    let gvr = Members::object(
        "kubernetes.GroupVersionResource",
        [
            ("group", Type::String),
            ("version", Type::String),
            ("resource", Type::String),
        ],
    );
    let user = Members::object(
        "kubernetes.UserInfo",
        [
            ("username", Type::String),
            ("uid", Type::String),
            ("groups", string_list()),
            ("extra", Type::map(Type::String, string_list())),
        ],
    );
    Members::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", gvk.clone()),
            ("resource", gvr.clone()),
            ("subResource", Type::String),
            ("requestKind", gvk),
            ("requestResource", gvr),
            ("requestSubResource", Type::String),
            ("name", Type::String),
            // A reserved word: members may be named so, and are escaped nevertheless.
            ("namespace", Type::String),
            ("__namespace__", Type::String),
            ("operation", Type::String),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
}

/// `BuildNamespaceType`.
fn namespace_type() -> Type {
    let texts = || Type::map(Type::String, Type::String);
    let metadata = Members::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", Type::String),
            ("generateName", Type::String),
            ("namespace", Type::String),
            ("__namespace__", Type::String),
            ("labels", texts()),
            ("annotations", texts()),
            ("UID", Type::String),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", Type::String),
            ("finalizers", string_list()),
        ],
    );
    let condition = Members::object(
        "kubernetes.NamespaceCondition",
        [
            ("status", Type::String),
            ("type", Type::String),
            ("lastTransitionTime", Type::Timestamp),
            ("message", Type::String),
            ("reason", Type::String),
        ],
    );
    Members::object(
        "kubernetes.Namespace",
        [
            ("metadata", metadata),
            (
                "spec",
                Members::object("kubernetes.NamespaceSpec", [("finalizers", string_list())]),
            ),
            (
                "status",
                Members::object(
                    "kubernetes.NamespaceStatus",
                    [
                        ("conditions", Type::list(condition)),
                        ("phase", Type::String),
                    ],
                ),
            ),
        ],
    )
}

/// What expressions see of a Namespace (`CreateNamespaceObject`): not who manages or owns it.
pub fn shown_namespace(namespace: &Json) -> Json {
    let mut shown = namespace.clone();
    for member in ["managedFields", "ownerReferences"] {
        keelson_machinery::meta::remove(&mut shown, member);
    }
    shown
}

/// A variable of a policy.
pub struct Variable {
    /// Its name below `variables`.
    pub name: String,
    /// Its expression, or why it has none.
    pub program: Result<Program, String>,
}

/// What the expressions of one policy or webhook are given for one request.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The new object.
    pub object: Option<&'a Json>,
    /// The stored object.
    pub old_object: Option<&'a Json>,
    /// The parameters.
    pub params: Option<&'a Json>,
    /// The namespace of the request.
    pub namespace: Option<&'a Json>,
    /// The request.
    pub request: &'a Json,
    /// What the request itself asks for, as a question to the authorizers.
    pub resource: &'a Check,
    /// Variables of the policy.
    pub variables: &'a [Variable],
}

/// Inputs with the decisions found so far and the variables evaluated so far.
pub struct Activation<'a> {
    inputs: Inputs<'a>,
    decisions: &'a Decisions,
    made: RefCell<HashMap<&'a str, Result<Value<'a>, EvalError>>>,
}

impl<'a> Activation<'a> {
    /// Nothing is evaluated yet.
    pub fn new(inputs: Inputs<'a>, decisions: &'a Decisions) -> Activation<'a> {
        Activation {
            inputs,
            decisions,
            made: RefCell::default(),
        }
    }
}

fn given<'a>(json: Option<&'a Json>) -> Result<Value<'a>, EvalError> {
    json.map_or(Ok(Value::Null), |json| Value::from_json(json, &Type::Dyn))
}

impl<'a> Variables<'a> for Activation<'a> {
    fn variable(&self, name: &str, budget: &mut Budget) -> Option<Result<Value<'a>, EvalError>> {
        let inputs = &self.inputs;
        Some(match name {
            "object" => given(inputs.object),
            "oldObject" => given(inputs.old_object),
            "params" => given(inputs.params),
            "namespaceObject" => given(inputs.namespace),
            "request" => given(Some(inputs.request)),
            "authorizer" => Ok(authorizer_value()),
            "authorizer.requestResource" => Ok(resource_value(inputs.resource.clone())),
            _ => {
                let name = name.strip_prefix("variables.")?;
                if let Some(made) = self.made.borrow().get(name) {
                    return Some(made.clone());
                }
                let variable = inputs.variables.iter().find(|v| v.name == name)?;
                let made = match &variable.program {
                    Err(why) => Err(EvalError::message(format!(
                        "composited variable {name:?} fails to compile: {why}"
                    ))),
                    Ok(program) => program.evaluate(self, budget).map_err(|error| {
                        if error.is_final() {
                            return error;
                        }
                        EvalError::message(format!(
                            "composited variable {name:?} fails to evaluate: {error}"
                        ))
                    }),
                };
                let result = made.clone();
                self.made.borrow_mut().insert(&variable.name, made);
                result
            }
        })
    }

    fn decision(&self, check: &Check) -> Option<Decided> {
        self.decisions.get(check).cloned()
    }
}

/// Why an expression of a policy has no value.
#[derive(Debug)]
pub enum Failed {
    /// It failed, in upstream's words.
    Expression(String),
    /// All expressions together cost too much.
    Budget,
    /// A decision must be found out first.
    Pending(Box<Check>),
}

/// Evaluates one expression with upstream's words for what goes wrong.
pub fn evaluate<'a>(
    source: &str,
    program: &Result<Program, String>,
    activation: &Activation<'a>,
    budget: &mut Budget,
) -> Result<Value<'a>, Failed> {
    let program = match program {
        Ok(program) => program,
        Err(why) => return Err(Failed::Expression(format!("compilation error: {why}"))),
    };
    match program.evaluate(activation, budget) {
        Ok(value) => Ok(value),
        Err(EvalError::Pending(check)) => Err(Failed::Pending(check)),
        Err(EvalError::Cost) if budget.left() == 0 => Err(Failed::Budget),
        Err(error) => Err(Failed::Expression(format!(
            "expression '{source}' resulted in error: {error}"
        ))),
    }
}

/// The most questions that one evaluation may ask; the budget allows fewer.
const MAX_CHECKS: usize = 100;

/// Runs an evaluation until all the decisions that it needs are found out.
pub async fn with_decisions<T>(
    authorizers: &dyn Authorizer,
    requester: &UserInfo,
    decisions: &mut Decisions,
    mut run: impl FnMut(&Decisions) -> Result<T, Box<Check>>,
) -> Result<T, ApiError> {
    for _ in 0..MAX_CHECKS {
        let check = match run(decisions) {
            Ok(value) => return Ok(value),
            Err(check) => check,
        };
        let decided = ask(authorizers, requester, &check).await;
        decisions.insert(*check, decided);
    }
    Err(ApiError::internal(
        "an expression asked for too many authorization decisions",
    ))
}

async fn ask(authorizers: &dyn Authorizer, requester: &UserInfo, check: &Check) -> Decided {
    let user = check.subject.user(requester);
    let request = if check.path.is_empty() {
        RequestInfo {
            is_resource: true,
            verb: check.verb.clone(),
            group: check.group.clone(),
            version: "*".to_string(),
            resource: check.resource.clone(),
            subresource: check.subresource.clone(),
            namespace: check.namespace.clone(),
            name: check.name.clone(),
            field_selector: check.field_selector.clone(),
            ..RequestInfo::default()
        }
    } else {
        RequestInfo {
            path: check.path.clone(),
            verb: check.verb.clone(),
            ..RequestInfo::default()
        }
    };
    let attributes = Attributes {
        user: &user,
        request: &request,
    };
    let (allowed, reason) = match authorizers.authorize(&attributes).await {
        Decision::Allow(reason) => (true, reason),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => (false, reason),
    };
    Decided {
        allowed,
        reason,
        error: String::new(),
    }
}

/// What a request asks for, as a question to the authorizers.
pub fn resource_check(request: &crate::admission::AdmissionRequest) -> Check {
    let info = &request.request;
    Check {
        subject: authorizer::Subject::Requester,
        group: info.group.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        ..Check::default()
    }
}
