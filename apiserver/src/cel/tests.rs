//! Expressions and what becomes of them, in `tests/cases.txt`: an expression, `=>`, and its value, or `!` and part of its
//! error, or `?` and part of what is wrong with it before it is evaluated.

use std::sync::Arc;

use keelson_machinery::value::Value as Json;
use serde_json::json;

use super::authorizer::{Check, Decided, authorizer_value, resource_value};
use super::*;

fn object() -> Json {
    json!({
        "metadata": {"name": "n", "namespace": "ns", "labels": {"a": "1", "b-c": "2"}},
        "spec": {
            "replicas": 3, "ratio": 0.5, "on": true, "none": null, "tags": ["x", "y", "z"],
            "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j:2"}],
        },
    })
}

fn typed() -> (Json, Type) {
    let item = Members::object("Item", [("name", Type::String), ("port", Type::Int)]);
    let of = Members::object(
        "Self",
        [
            ("replicas", Type::Int),
            ("ratio", Type::Double),
            ("at", Type::Timestamp),
            ("wait", Type::Duration),
            ("blob", Type::Bytes),
            ("items", Type::list(item)),
            ("labels", Type::map(Type::String, Type::String)),
            ("__namespace__", Type::String),
            ("a__dash__b", Type::Int),
            ("missing", Type::String),
            ("either", types::INT_OR_STRING),
        ],
    );
    let json = json!({
        "replicas": 3, "ratio": 2, "at": "2026-01-02T03:04:05Z", "wait": "90s", "blob": "aGk=",
        "items": [{"name": "a", "port": 1}], "labels": {"k": "v"}, "namespace": "ns", "a-b": 7, "either": "50%",
    });
    (json, of)
}

struct World<'a>(Vec<(&'static str, Value<'a>)>);

impl<'a> Variables<'a> for World<'a> {
    fn variable(&self, name: &str, budget: &mut Budget) -> Option<Result<Value<'a>, EvalError>> {
        self.0.variable(name, budget)
    }

    fn decision(&self, check: &Check) -> Option<Decided> {
        (check.verb != "unknown").then(|| Decided {
            allowed: check.resource == "pods" && check.namespace == "ns",
            reason: format!("{} {}", check.verb, check.resource),
            error: String::new(),
        })
    }
}

fn environment(of: Type) -> Environment {
    Environment::new()
        .with("object", Type::Dyn)
        .with("self", of)
        .with("authorizer", Type::Opaque(authorizer::AUTHORIZER))
        .with(
            "authorizer.requestResource",
            Type::Opaque(authorizer::RESOURCE_CHECK),
        )
        .with("maybe", Type::optional(Type::Int))
        .with_messages(|name| {
            (name == "JSONPatch")
                .then(|| Members::object("JSONPatch", [("op", Type::String), ("value", Type::Dyn)]))
        })
}

#[test]
fn expressions() {
    let (object, (self_json, self_type)) = (object(), typed());
    let env = environment(self_type.clone());
    let world = World(vec![
        (
            "object",
            Value::from_json(&object, &Type::Dyn).expect("a value"),
        ),
        (
            "self",
            Value::from_json(&self_json, &self_type).expect("a value"),
        ),
        ("authorizer", authorizer_value()),
        (
            "authorizer.requestResource",
            resource_value(Check {
                resource: "pods".into(),
                namespace: "ns".into(),
                ..Check::default()
            }),
        ),
        ("maybe", Value::Optional(Some(Arc::new(Value::Int(1))))),
    ]);
    let mut findings = Vec::new();
    for (number, line) in include_str!("tests/cases.txt").lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (source, wanted) = line
            .split_once(" => ")
            .expect("an expression and its value");
        let source = source.trim();
        let got = match Program::compile(source, &env) {
            Err(error) => format!("? {error}"),
            Ok(program) => match program.evaluate(&world, &mut Budget::new(RUNTIME_BUDGET)) {
                Ok(value) => format!("{value:?}"),
                Err(error) => format!("! {error}"),
            },
        };
        let got = got.replace('\n', "\\n");
        let fits = match wanted.strip_prefix(['?', '!']) {
            Some(part) => got.starts_with(&wanted[..1]) && got.contains(part.trim()),
            None => got == wanted,
        };
        if !fits {
            findings.push(format!(
                "{}: {source}\n  wanted {wanted}\n  got    {got}",
                number + 1
            ));
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn evaluation_is_bounded() {
    let env = Environment::new();
    let loops = "[1,2,3,4,5,6,7,8,9,10]";
    let nested = format!(
        "{loops}.all(a, {loops}.all(b, {loops}.all(c, {loops}.all(d, {loops}.all(e, {loops}.all(f, a + b + c + d + e + f > 0))))))"
    );
    let growing = "[0,1,2,3,4,5,6,7,8,9].map(x, lists.range(100000)).size() > 0";
    for source in [
        nested.as_str(),
        growing,
        "lists.range(9223372036854775807).size() > 0",
    ] {
        let program = Program::compile(source, &env).expect("compiles");
        let mut budget = Budget::new(RUNTIME_BUDGET);
        let result = program.evaluate(&Vec::new(), &mut budget);
        assert_eq!(result.err(), Some(EvalError::Cost), "{source}");
        assert!(budget.left() >= RUNTIME_BUDGET - PER_CALL_LIMIT);
    }
    // A decided side does not hide that the budget is spent.
    let program = Program::compile(&format!("{nested} || true"), &env).expect("compiles");
    let result = program.evaluate(&Vec::new(), &mut Budget::new(RUNTIME_BUDGET));
    assert_eq!(result.err(), Some(EvalError::Cost));
    // Neither nesting nor length is without limit.
    for source in [
        "(".repeat(10_000),
        "!".repeat(99_999) + "true",
        "a.".repeat(20_000) + "b",
        "[".repeat(300) + &"]".repeat(300),
        "x".repeat(100_001),
    ] {
        assert!(Program::compile(&source, &env).is_err());
    }
    let long = vec!["true"; 5_000].join(" && ");
    let program = Program::compile(&long, &env).expect("long chains do not nest");
    let value = program.evaluate(&Vec::new(), &mut Budget::new(RUNTIME_BUDGET));
    assert!(matches!(value, Ok(Value::Bool(true))));
}

#[test]
fn values_in_values_are_bounded() {
    let env = environment(Type::Dyn);
    // Each step holds the one before twice: 2^60 parts in a few kilobytes.
    let steps = |pair: &str| {
        let mut source = "[1]".to_string();
        for step in 0..60 {
            let pair = pair.replace('v', &format!("v{step}"));
            source += &format!(".map(v{step}, dyn({pair}))");
        }
        source
    };
    let lists = steps("[v, v]");
    let maps = steps("{'a': v, 'b': v}");
    for source in [
        format!("{lists} == {lists}"),
        format!("{maps} == {maps}"),
        format!("[{lists}].indexOf({lists}) == 0"),
        format!("'%s'.format([{lists}]) == ''"),
        format!("'%s'.format([optional.of({maps})]) == ''"),
        format!("dyn({{'a': 1}})[{lists}] == 1"),
    ] {
        let program = Program::compile(&source, &env).expect("compiles");
        let result = program.evaluate(&Vec::new(), &mut Budget::new(PER_CALL_LIMIT / 10));
        assert!(result.is_err(), "{source}");
    }
    let program = Program::compile(&lists, &env).expect("compiles");
    let made = program.evaluate(&Vec::new(), &mut Budget::new(PER_CALL_LIMIT / 10));
    assert!(made.expect("a value").to_json().is_err());
    // Without `dyn` the types grow like the values.
    let typed = steps("{'a': {'b': v}, 'c': {'d': v}}").replace("dyn(", "(");
    let _ = Program::compile(&typed, &env);
}

#[test]
fn loops_cost_as_far_as_they_go() {
    let env = environment(Type::Dyn);
    let list = Json::from((0..200_000).map(Json::from).collect::<Vec<_>>());
    let object = json!({"list": list});
    let world = World(vec![(
        "object",
        Value::from_json(&object, &Type::Dyn).expect("a value"),
    )]);
    // The inner loop ends at its first item: it must not read the others.
    let source = "object.list.all(a, object.list.exists(b, true))";
    let program = Program::compile(source, &env).expect("compiles");
    let result = program.evaluate(&world, &mut Budget::new(PER_CALL_LIMIT / 10));
    assert_eq!(result.err(), Some(EvalError::Cost));
    // Expressions of regular expressions that come with the object are compiled a few times, not for each item.
    let source = "object.list.exists(a, 'x'.matches('\\\\w{300}' + string(a)))";
    let program = Program::compile(source, &env).expect("compiles");
    let result = program.evaluate(&world, &mut Budget::new(PER_CALL_LIMIT / 10));
    assert_eq!(result.err(), Some(EvalError::Cost));
}

#[test]
fn expressions_within_expressions_are_bounded() {
    /// Variables that name the next one: `v0` is `v1 + 1`, and so on.
    struct Chain(Program);
    impl<'a> Variables<'a> for Chain {
        fn variable(&self, _: &str, budget: &mut Budget) -> Option<Result<Value<'a>, EvalError>> {
            Some(self.0.evaluate(self, budget))
        }
    }
    let env = Environment::new().with("v", Type::Int);
    let chain = Chain(Program::compile("v + 1", &env).expect("compiles"));
    let result = chain.0.evaluate(&chain, &mut Budget::new(RUNTIME_BUDGET));
    let told = result.expect_err("no end").to_string();
    assert!(told.contains("recursion limit"), "{told}");
    // The tallest trees are evaluated where the stack is that of a thread of ours.
    let env = Environment::new();
    for source in [
        "1 + ".repeat(240) + "1",
        "[".repeat(90) + "[0].map(x, x)" + &"]".repeat(90),
        "[0]".to_string() + &".map(x, x)".repeat(200),
    ] {
        let program = Program::compile(&source, &env).expect("compiles");
        let result = program.evaluate(&Vec::new(), &mut Budget::new(RUNTIME_BUDGET));
        assert!(result.is_ok(), "{source}");
    }
}

#[test]
fn mistakes_told_are_bounded() {
    let env = Environment::new();
    for source in ["$".repeat(99_999), format!("[{}a]", "a,".repeat(49_000))] {
        let error = Program::compile(&source, &env).expect_err("mistakes");
        assert!(error.issues.len() <= 100);
        let told = error.to_string();
        assert!(told.len() < 1 << 20, "{}", told.len());
        assert!(told.ends_with("more errors were truncated"));
    }
}

#[test]
fn missing_decisions_are_asked_for() {
    let env = environment(Type::Dyn);
    let world = World(vec![("authorizer", authorizer_value())]);
    let source = "authorizer.serviceAccount('ns', 'sa').group('apps').resource('deployments').name('d').check('unknown').allowed() || true";
    let program = Program::compile(source, &env).expect("compiles");
    let result = program.evaluate(&world, &mut Budget::new(RUNTIME_BUDGET));
    let Err(EvalError::Pending(check)) = result else {
        panic!("{result:?}");
    };
    assert_eq!(
        (
            check.group.as_str(),
            check.resource.as_str(),
            check.name.as_str()
        ),
        ("apps", "deployments", "d")
    );
    assert_eq!(
        check.subject,
        authorizer::Subject::ServiceAccount("ns".into(), "sa".into())
    );
}
