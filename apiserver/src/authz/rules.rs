//! RBAC's policy rules: what one allows, and whether some rules grant all that others do
//! (`k8s.io/component-helpers/auth/rbac/validation`, `pkg/apis/rbac/v1` evaluation helpers).

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::text::quote_all;
use keelson_machinery::value::{self, Value};
use serde_json::{Map, json};

use crate::request::RequestInfo;

/// `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What may be done; `*` for everything.
    pub verbs: Vec<String>,
    /// In which API groups; `*` for all.
    pub api_groups: Vec<String>,
    /// With which resources (`pods`, `pods/log`, `*/scale`); `*` for all, subresources included.
    pub resources: Vec<String>,
    /// With which names; empty for all.
    pub resource_names: Vec<String>,
    /// With which paths outside the API; a trailing `*` stands for any rest.
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == wanted)
}

fn star_or(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

/// Whether the rule's `own` path takes in `path`.
fn url_covers(own: &str, path: &str) -> bool {
    own == path || (own.ends_with('*') && path.starts_with(own.trim_end_matches('*')))
}

impl Rule {
    /// From its wire form.
    pub fn from_value(rule: &Value) -> Self {
        let list = |field: &str| {
            value::items(rule, &[field])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        Rule {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    /// All rules of a Role or ClusterRole.
    pub fn all_of(role: &Value) -> Vec<Self> {
        value::items(role, &["rules"])
            .iter()
            .map(Self::from_value)
            .collect()
    }

    /// The wire form.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        out.insert("verbs".into(), json!(self.verbs));
        for (field, list) in [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                out.insert(field.into(), json!(list));
            }
        }
        Value::Object(out)
    }

    /// Whether this rule allows the request (`rbac.RuleAllows`).
    pub fn allows(&self, request: &RequestInfo) -> bool {
        if !star_or(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self
                .non_resource_urls
                .iter()
                .any(|url| url_covers(url, &request.path));
        }
        star_or(&self.api_groups, &request.group)
            && self
                .resources
                .iter()
                .any(|rule| resource_matches(rule, &request.resource, &request.subresource))
            && (self.resource_names.is_empty() || has(&self.resource_names, &request.name))
    }

    /// One rule for each combination of a verb with a group, resource and name, or with a path (`BreakdownRule`).
    fn break_down(&self) -> Vec<Rule> {
        let one = |text: &str| vec![text.to_owned()];
        let mut rules = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let base = Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        rules.push(base);
                    } else {
                        rules.extend(self.resource_names.iter().map(|name| Rule {
                            resource_names: one(name),
                            ..base.clone()
                        }));
                    }
                }
            }
        }
        for url in &self.non_resource_urls {
            rules.extend(self.verbs.iter().map(|verb| Rule {
                verbs: one(verb),
                non_resource_urls: one(url),
                ..Rule::default()
            }));
        }
        rules
    }

    /// Whether this rule grants all of `atom`, one of [`Self::break_down`].
    fn covers(&self, atom: &Rule) -> bool {
        let all = |own: &[String], wanted: &[String]| {
            has(own, "*") || wanted.iter().all(|one| has(own, one))
        };
        let resource = |wanted: &String| {
            has(&self.resources, "*")
                || has(&self.resources, wanted)
                || wanted
                    .split_once('/')
                    .is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
        };
        all(&self.verbs, &atom.verbs)
            && all(&self.api_groups, &atom.api_groups)
            && atom.resources.iter().all(resource)
            && atom.non_resource_urls.iter().all(|path| {
                self.non_resource_urls
                    .iter()
                    .any(|own| url_covers(own, path))
            })
            && (self.resource_names.is_empty()
                || (!atom.resource_names.is_empty()
                    && atom
                        .resource_names
                        .iter()
                        .all(|name| has(&self.resource_names, name))))
    }

    /// `rbacv1helpers.CompactString`.
    fn describe(&self) -> String {
        let parts: Vec<String> = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:[{}]", quote_all(list, " ")))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// Whether the resource of a rule takes in what is asked for.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    rule.split_once('/')
        .is_some_and(|(of, sub)| (of == "*" || of == resource) && sub == subresource)
}

/// What of `wanted` is not granted by `owned`, in smallest pieces; empty when all is (`validation.Covers`).
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let atoms = wanted.iter().flat_map(Rule::break_down);
    atoms
        .filter(|atom| !owned.iter().any(|own| own.covers(atom)))
        .collect()
}

/// The text that tells which rules are missing: pieces of one resource joined, sorted, one a line.
pub fn describe_missing(missing: &[Rule]) -> String {
    let mut simple: BTreeMap<(&str, &str, Option<&str>), Rule> = BTreeMap::new();
    let mut lines = BTreeSet::new();
    for rule in missing {
        match (
            rule.api_groups.as_slice(),
            rule.resources.as_slice(),
            rule.resource_names.as_slice(),
        ) {
            ([group], [resource], names @ ([] | [_])) => {
                let key = (
                    group.as_str(),
                    resource.as_str(),
                    names.first().map(String::as_str),
                );
                simple
                    .entry(key)
                    .and_modify(|known| known.verbs.extend(rule.verbs.iter().cloned()))
                    .or_insert_with(|| rule.clone());
            }
            _ => drop(lines.insert(rule.describe())),
        }
    }
    lines.extend(simple.values().map(Rule::describe));
    lines.into_iter().collect::<Vec<_>>().join("\n")
}
