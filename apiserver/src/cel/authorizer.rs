//! `authorizer`: expressions may ask what somebody may do (Kubernetes' `authz` library).
//!
//! Evaluation does no I/O, and authorizers may. So an expression that needs a decision which nobody has made yet ends
//! with [`EvalError::Pending`]; the caller finds it out, adds it to the [`Decisions`], and evaluates again. A request
//! asks each question once, like upstream's caching authorizer.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use keelson_machinery::meta::names;

use super::error::EvalError;
use super::eval::Scope;
use super::functions::{Row, Run};
use super::types::Type;
use super::value::{Opaque, Value};
use crate::request::UserInfo;

/// Name of the type of `authorizer`.
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
/// Name of the type of a question about a path.
pub const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
/// Name of the type of a question about a group, still without its resource.
pub const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
/// Name of the type of a question about a resource.
pub const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
/// Name of the type of an answer.
pub const DECISION: &str = "kubernetes.authorization.Decision";

/// Somebody, or the user of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The user of the request.
    #[default]
    Requester,
    /// A service account, by namespace and name.
    ServiceAccount(String, String),
}

impl Subject {
    /// The user this is.
    pub fn user(&self, requester: &UserInfo) -> UserInfo {
        match self {
            Subject::Requester => requester.clone(),
            Subject::ServiceAccount(namespace, name) => UserInfo {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".to_string(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_string(),
                ],
                ..UserInfo::default()
            },
        }
    }
}

/// A question to the authorizers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are those of a request's attributes
pub struct Check {
    pub subject: Subject,
    /// A path that is no resource; the rest but the verb is empty then.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
    pub verb: String,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// What went wrong when it was asked; empty when nothing did.
    pub error: String,
}

/// The answers found so far.
pub type Decisions = HashMap<Check, Decided>;

/// `authorizer` as a value.
pub fn authorizer_value<'a>() -> Value<'a> {
    Value::opaque(Step {
        kind: AUTHORIZER,
        check: Check::default(),
    })
}

/// `authorizer.requestResource` as a value.
pub fn resource_value<'a>(check: Check) -> Value<'a> {
    Value::opaque(Step {
        kind: RESOURCE_CHECK,
        check,
    })
}

/// A question in the making.
#[derive(PartialEq)]
struct Step {
    kind: &'static str,
    check: Check,
}

impl Opaque for Step {
    fn type_of(&self) -> Type {
        Type::Opaque(self.kind)
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(PartialEq)]
struct Answer(Decided);

impl Opaque for Answer {
    fn type_of(&self) -> Type {
        Type::Opaque(DECISION)
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

const RESOURCE_STEP: &[&str] = &["resource.(string) -> resource"];

/// What an authorization check costs (upstream's `CostEstimator`: 350,000).
const CHECK_COST: u64 = 350_000;

/// The functions.
pub const ROWS: &[Row] = &[
    ("path", &["authorizer.(string) -> path"], path as Run),
    ("group", &["authorizer.(string) -> group"], group),
    (
        "serviceAccount",
        &["authorizer.(string, string) -> authorizer"],
        service_account,
    ),
    ("resource", &["group.(string) -> resource"], resource),
    ("subresource", RESOURCE_STEP, |_, args| {
        step(args, RESOURCE_CHECK, RESOURCE_CHECK, |check, text| {
            check.subresource = text;
            Ok(())
        })
    }),
    ("namespace", RESOURCE_STEP, |_, args| {
        step(args, RESOURCE_CHECK, RESOURCE_CHECK, |check, text| {
            check.namespace = text;
            Ok(())
        })
    }),
    ("name", RESOURCE_STEP, |_, args| {
        step(args, RESOURCE_CHECK, RESOURCE_CHECK, |check, text| {
            check.name = text;
            Ok(())
        })
    }),
    ("fieldSelector", RESOURCE_STEP, |_, args| {
        step(args, RESOURCE_CHECK, RESOURCE_CHECK, |check, text| {
            check.field_selector = text;
            Ok(())
        })
    }),
    ("labelSelector", RESOURCE_STEP, |_, args| {
        step(args, RESOURCE_CHECK, RESOURCE_CHECK, |check, text| {
            check.label_selector = text;
            Ok(())
        })
    }),
    (
        "check",
        &["path.(string) -> decision", "resource.(string) -> decision"],
        check,
    ),
    ("allowed", &["decision.() -> bool"], |_, args| {
        answer(args).map(|decided| Value::Bool(decided.allowed))
    }),
    ("reason", &["decision.() -> string"], |_, args| {
        answer(args).map(|decided| Value::text(decided.reason.clone()))
    }),
    ("errored", &["decision.() -> bool"], |_, args| {
        answer(args).map(|decided| Value::Bool(!decided.error.is_empty()))
    }),
    ("error", &["decision.() -> string"], |_, args| {
        answer(args).map(|decided| Value::text(decided.error.clone()))
    }),
];

fn of<'v>(args: &'v [Value<'_>], kinds: &[&str]) -> Result<&'v Step, EvalError> {
    let Some(Value::Opaque(opaque)) = args.first() else {
        return Err(EvalError::no_such_overload());
    };
    opaque
        .as_any()
        .downcast_ref::<Step>()
        .filter(|step| kinds.contains(&step.kind))
        .ok_or_else(EvalError::no_such_overload)
}

fn answer<'v>(args: &'v [Value<'_>]) -> Result<&'v Decided, EvalError> {
    let Some(Value::Opaque(opaque)) = args.first() else {
        return Err(EvalError::no_such_overload());
    };
    let answer: Option<&Answer> = opaque.as_any().downcast_ref();
    answer
        .map(|answer| &answer.0)
        .ok_or_else(EvalError::no_such_overload)
}

fn word(args: &[Value<'_>], index: usize) -> Result<String, EvalError> {
    match args.get(index) {
        Some(Value::String(text)) => Ok(text.to_string()),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn step<'a>(
    args: &[Value<'a>],
    from: &'static str,
    to: &'static str,
    change: impl FnOnce(&mut Check, String) -> Result<(), EvalError>,
) -> Result<Value<'a>, EvalError> {
    let mut check = of(args, &[from])?.check.clone();
    change(&mut check, word(args, 1)?)?;
    Ok(Value::Opaque(Arc::new(Step { kind: to, check })))
}

fn path<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    step(args, AUTHORIZER, PATH_CHECK, |check, path| {
        if path.trim().is_empty() {
            return Err(EvalError::message("path must not be empty"));
        }
        check.path = path;
        Ok(())
    })
}

fn group<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    step(args, AUTHORIZER, GROUP_CHECK, |check, group| {
        check.group = group;
        Ok(())
    })
}

fn service_account<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let name = word(args, 2)?;
    step(args, AUTHORIZER, AUTHORIZER, |check, namespace| {
        if !names::name_is_dns_subdomain(&name, false).is_empty() {
            return Err(EvalError::message("Invalid service account name"));
        }
        if !names::name_is_dns_label(&namespace, false).is_empty() {
            return Err(EvalError::message("Invalid service account namespace"));
        }
        check.subject = Subject::ServiceAccount(namespace, name);
        Ok(())
    })
}

fn resource<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    step(args, GROUP_CHECK, RESOURCE_CHECK, |check, resource| {
        if resource.trim().is_empty() {
            return Err(EvalError::message("resource must not be empty"));
        }
        check.resource = resource;
        Ok(())
    })
}

fn check<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let mut check = of(args, &[PATH_CHECK, RESOURCE_CHECK])?.check.clone();
    check.verb = word(args, 1)?;
    scope.charge(CHECK_COST)?;
    match scope.decision(&check) {
        Some(decided) => Ok(Value::opaque(Answer(decided))),
        None => Err(EvalError::Pending(Box::new(check))),
    }
}
