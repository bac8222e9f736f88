//! FlowSchemas and PriorityLevelConfigurations as the server acts on them, and which of them a request belongs to
//! (upstream `k8s.io/apiserver/pkg/util/flowcontrol`, `rule.go`). No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_machinery::meta;
use keelson_machinery::value::{self, Value};

use super::defaults;
use crate::request::{RequestInfo, UserInfo};

/// The level that takes whatever nothing else takes.
pub const CATCH_ALL: &str = "catch-all";
/// The level without limits.
pub const EXEMPT: &str = "exempt";

/// What tells flows of one schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinguisher {
    /// Who asks.
    User,
    /// The namespace that is asked for.
    Namespace,
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Clone, Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster: bool,
}

#[derive(Clone, Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

#[derive(Clone, Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

/// A FlowSchema.
#[derive(Clone, Debug)]
pub struct Schema {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; empty until the stored object has been read.
    pub uid: String,
    /// The priority level that it leads to.
    pub level: String,
    /// What its flows differ in; `None`: all is one flow.
    pub by: Option<Distinguisher>,
    precedence: i64,
    rules: Vec<Rule>,
}

/// How requests of a level wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queuing {
    /// Number of queues.
    pub queues: usize,
    /// How many of them a flow may use.
    pub hand: usize,
    /// How many requests a queue holds.
    pub length: usize,
}

/// A PriorityLevelConfiguration.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelSpec {
    /// `metadata.uid`; empty until the stored object has been read.
    pub uid: String,
    /// Never limited.
    pub exempt: bool,
    /// Its part of the server's concurrency.
    pub shares: u64,
    /// How much of its part others may use, in percent.
    pub lendable: u64,
    /// How much more than its part it may use, in percent of it; `None`: as much as others lend.
    pub borrowing: Option<u64>,
    /// `None`: what cannot run at once is refused.
    pub queuing: Option<Queuing>,
}

/// All of them at one moment.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// In the order in which they are asked.
    schemas: Vec<Arc<Schema>>,
    levels: BTreeMap<String, LevelSpec>,
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    let items = value::items(value, &[field]).iter();
    items
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}

fn text(value: &Value, path: &[&str]) -> String {
    value::str_or_empty(value, path).to_owned()
}

fn number(value: &Value, path: &[&str]) -> Option<u64> {
    value::get_i64(value, path).and_then(|number| u64::try_from(number).ok())
}

impl Subject {
    fn read(value: &Value) -> Option<Subject> {
        Some(match value::get_str(value, &["kind"])? {
            "User" => Subject::User(text(value, &["user", "name"])),
            "Group" => Subject::Group(text(value, &["group", "name"])),
            "ServiceAccount" => Subject::ServiceAccount {
                namespace: text(value, &["serviceAccount", "namespace"]),
                name: text(value, &["serviceAccount", "name"]),
            },
            _ => return None,
        })
    }

    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.groups.contains(name),
            Subject::ServiceAccount { namespace, name } => {
                let account = user
                    .name
                    .strip_prefix("system:serviceaccount:")
                    .and_then(|rest| rest.strip_prefix(namespace.as_str()))
                    .and_then(|rest| rest.strip_prefix(':'));
                account.is_some_and(|account| name == "*" || account == name)
            }
        }
    }
}

/// Whether a list names `one`, or everything.
fn lists(list: &[String], one: &str) -> bool {
    list.iter().any(|item| item == one) || matches!(list, [all] if all == "*")
}

impl Rule {
    fn read(value: &Value) -> Rule {
        Rule {
            subjects: value::items(value, &["subjects"])
                .iter()
                .filter_map(Subject::read)
                .collect(),
            resources: value::items(value, &["resourceRules"])
                .iter()
                .map(|rule| ResourceRule {
                    verbs: texts(rule, "verbs"),
                    groups: texts(rule, "apiGroups"),
                    resources: texts(rule, "resources"),
                    namespaces: texts(rule, "namespaces"),
                    cluster: value::get_bool(rule, &["clusterScope"]) == Some(true),
                })
                .collect(),
            paths: value::items(value, &["nonResourceRules"])
                .iter()
                .map(|rule| PathRule {
                    verbs: texts(rule, "verbs"),
                    paths: texts(rule, "nonResourceURLs"),
                })
                .collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|subject| subject.is(user)) {
            return false;
        }
        if !info.is_resource {
            return self.paths.iter().any(|rule| rule.matches(info));
        }
        self.resources.iter().any(|rule| rule.matches(info))
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = if info.subresource.is_empty() {
            lists(&self.resources, &info.resource)
        } else {
            lists(
                &self.resources,
                &format!("{}/{}", info.resource, info.subresource),
            )
        };
        resource
            && lists(&self.verbs, &info.verb)
            && lists(&self.groups, &info.group)
            && if info.namespace.is_empty() {
                self.cluster
            } else {
                lists(&self.namespaces, &info.namespace)
            }
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let covers = |rule: &String| {
            if rule == "*" || *rule == info.path {
                return true;
            }
            let prefix = rule.strip_suffix('*').unwrap_or(rule);
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            info.path
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        lists(&self.verbs, &info.verb) && self.paths.iter().any(covers)
    }
}

impl Settings {
    /// From the stored objects; what must be there and is not yet comes from [`defaults`].
    pub fn read<'a>(
        schemas: impl Iterator<Item = &'a Value>,
        levels: impl Iterator<Item = &'a Value>,
    ) -> Settings {
        let mut settings = Settings::default();
        for level in levels {
            settings.add_level(level);
        }
        for (name, level) in defaults::mandatory_levels() {
            if !settings.levels.contains_key(name) {
                settings.add_level(&level);
            }
        }
        let mut found: Vec<Schema> = schemas.map(Schema::read).collect();
        for (name, schema) in defaults::mandatory_schemas() {
            if !found.iter().any(|schema| schema.name == name) {
                found.push(Schema::read(&schema));
            }
        }
        // One that leads nowhere leads to no requests either.
        found.retain(|schema| settings.levels.contains_key(&schema.level));
        found.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        settings.schemas = found.into_iter().map(Arc::new).collect();
        settings
    }

    fn add_level(&mut self, level: &Value) {
        let exempt = value::get_str(level, &["spec", "type"]) == Some("Exempt");
        let part = if exempt { "exempt" } else { "limited" };
        let queuing = value::get(level, &["spec", "limited", "limitResponse", "queuing"]);
        let queues =
            value::get_str(level, &["spec", "limited", "limitResponse", "type"]) == Some("Queue");
        let count = |queuing: &Value, field: &str, default: u64| {
            let given = number(queuing, &[field]).unwrap_or(default).max(1);
            usize::try_from(given).unwrap_or(usize::MAX)
        };
        let spec = LevelSpec {
            uid: meta::uid(level).to_owned(),
            exempt,
            shares: number(level, &["spec", part, "nominalConcurrencyShares"])
                .unwrap_or(if exempt { 0 } else { 30 }),
            lendable: number(level, &["spec", part, "lendablePercent"])
                .unwrap_or(0)
                .min(100),
            borrowing: number(level, &["spec", part, "borrowingLimitPercent"]),
            queuing: queuing.filter(|_| queues).map(|queuing| {
                let queues = count(queuing, "queues", 64);
                Queuing {
                    queues,
                    hand: count(queuing, "handSize", 8).min(queues),
                    length: count(queuing, "queueLengthLimit", 50),
                }
            }),
        };
        self.levels.insert(meta::name(level).to_owned(), spec);
    }

    /// The levels, by name.
    pub fn levels(&self) -> &BTreeMap<String, LevelSpec> {
        &self.levels
    }

    /// The schema that a request belongs to.
    pub fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Option<&Arc<Schema>> {
        let matching = self
            .schemas
            .iter()
            .find(|schema| schema.rules.iter().any(|rule| rule.matches(user, info)));
        matching.or_else(|| self.schemas.last())
    }
}

impl Schema {
    fn read(schema: &Value) -> Schema {
        let method = ["spec", "distinguisherMethod", "type"];
        Schema {
            name: meta::name(schema).to_owned(),
            uid: meta::uid(schema).to_owned(),
            level: text(schema, &["spec", "priorityLevelConfiguration", "name"]),
            by: match value::get_str(schema, &method) {
                Some("ByUser") => Some(Distinguisher::User),
                Some("ByNamespace") => Some(Distinguisher::Namespace),
                _ => None,
            },
            precedence: value::get_i64(schema, &["spec", "matchingPrecedence"]).unwrap_or(1000),
            rules: value::items(schema, &["spec", "rules"])
                .iter()
                .map(Rule::read)
                .collect(),
        }
    }

    /// What tells the request's flow from others of the schema.
    pub fn distinguish<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.by {
            None => "",
            Some(Distinguisher::User) => &user.name,
            Some(Distinguisher::Namespace) => &info.namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_belong_to_the_first_schema_that_matches() {
        let settings = {
            let (schemas, levels) = (defaults::schemas(), defaults::levels());
            Settings::read(schemas.iter(), levels.iter())
        };
        let user = |name: &str, group: &str| UserInfo {
            name: name.to_owned(),
            groups: vec![group.to_owned(), "system:authenticated".to_owned()],
            ..UserInfo::default()
        };
        let resource = |verb: &str, group: &str, resource: &str, namespace: &str| RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            ..RequestInfo::default()
        };
        let path = |path: &str| RequestInfo {
            verb: "get".to_owned(),
            path: path.to_owned(),
            ..RequestInfo::default()
        };
        let pods = || resource("list", "", "pods", "n");
        let leases =
            |namespace: &str| resource("update", "coordination.k8s.io", "leases", namespace);
        let mut node_status = resource("patch", "", "nodes", "");
        node_status.subresource = "status".to_owned();
        let account = "system:serviceaccount";
        let cases = [
            (user("a", "system:masters"), pods(), "exempt", "exempt", ""),
            (user("a", ""), path("/readyz"), "probes", "exempt", ""),
            (user("a", ""), path("/readyz/ping"), "probes", "exempt", ""),
            (
                user("a", ""),
                path("/readyzz"),
                "global-default",
                "global-default",
                "a",
            ),
            (
                user("system:kube-scheduler", ""),
                leases("kube-system"),
                "system-leader-election",
                "leader-election",
                "system:kube-scheduler",
            ),
            (
                user("system:kube-scheduler", ""),
                pods(),
                "kube-scheduler",
                "workload-high",
                "n",
            ),
            (
                user("system:node:n", "system:nodes"),
                node_status,
                "system-node-high",
                "node-high",
                "system:node:n",
            ),
            (
                user("system:node:n", "system:nodes"),
                leases("kube-node-lease"),
                "system-node-high",
                "node-high",
                "system:node:n",
            ),
            (
                user("system:node:n", "system:nodes"),
                pods(),
                "system-nodes",
                "system",
                "system:node:n",
            ),
            (
                user(
                    &format!("{account}:kube-system:x"),
                    "system:serviceaccounts",
                ),
                pods(),
                "kube-system-service-accounts",
                "workload-high",
                "n",
            ),
            (
                user(
                    &format!("{account}:kube-system2:x"),
                    "system:serviceaccounts",
                ),
                pods(),
                "service-accounts",
                "workload-low",
                "system:serviceaccount:kube-system2:x",
            ),
            (
                user("jane", ""),
                pods(),
                "global-default",
                "global-default",
                "jane",
            ),
        ];
        for (user, info, name, level, flow) in cases {
            let schema = settings.classify(&user, &info).expect("a schema");
            let found = (
                schema.name.as_str(),
                schema.level.as_str(),
                schema.distinguish(&user, &info),
            );
            assert_eq!(found, (name, level, flow), "{user:?} {info:?}");
        }
    }

    #[test]
    fn without_objects_everybody_is_served() {
        let settings = Settings::read([].iter(), [].iter());
        assert_eq!(
            settings.levels().keys().collect::<Vec<_>>(),
            [CATCH_ALL, EXEMPT]
        );
        let schema = settings.classify(&UserInfo::default(), &RequestInfo::default());
        assert_eq!(schema.expect("a schema").name, CATCH_ALL);
    }
}
