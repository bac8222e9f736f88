//! Role-based access control. Roles and bindings are followed as they change and kept in an index by subject: what a
//! request costs depends on the bindings of its user and groups, not on how many there are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::text::quote;
use keelson_machinery::value::{self, Value};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::rules::Rule;
use super::{Attributes, Authorizer, Decision, ResolvedRules, RuleResolver};
use crate::authn::serviceaccount;
use crate::objects::{Objects, follow};
use crate::reader::{Change, GroupResource};
use crate::request::UserInfo;

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";

const RESOURCES: [&str; 4] = [
    "roles",
    "clusterroles",
    "rolebindings",
    "clusterrolebindings",
];

/// What a binding points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`; anything else grants nothing.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl RoleRef {
    /// Of a RoleBinding or ClusterRoleBinding.
    pub fn of(binding: &Value) -> Self {
        let text = |field: &str| value::str_or_empty(binding, &["roleRef", field]).to_owned();
        RoleRef {
            kind: text("kind"),
            name: text("name"),
        }
    }
}

/// Whom a binding names, as requests carry it: service accounts are users with a fixed form of name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

struct Binding {
    role: RoleRef,
    /// The subjects, each with the words that describe it.
    subjects: Vec<(Subject, String)>,
}

/// Namespace (empty for cluster-wide) and name.
type Key = (String, String);

/// Everything in force, ready for questions.
#[derive(Default)]
pub struct Index {
    roles: HashMap<Key, Arc<[Rule]>>,
    bindings: HashMap<Key, Arc<Binding>>,
    /// Per namespace and subject: the bindings, by name.
    by_subject: HashMap<String, HashMap<Subject, BTreeMap<String, Arc<Binding>>>>,
}

impl Index {
    fn set_role(&mut self, role: &Value) {
        self.roles.insert(key(role), Rule::all_of(role).into());
    }

    fn set_binding(&mut self, object: &Value) {
        self.remove_binding(object);
        let (namespace, name) = key(object);
        let subjects = value::items(object, &["subjects"])
            .iter()
            .filter_map(|subject| subject_of(subject, &namespace))
            .collect();
        let binding = Arc::new(Binding {
            role: RoleRef::of(object),
            subjects,
        });
        let here = self.by_subject.entry(namespace.clone()).or_default();
        for (subject, _) in &binding.subjects {
            here.entry(subject.clone())
                .or_default()
                .insert(name.clone(), binding.clone());
        }
        self.bindings.insert((namespace, name), binding);
    }

    fn remove_binding(&mut self, object: &Value) {
        let (namespace, name) = key(object);
        let Some(binding) = self.bindings.remove(&(namespace.clone(), name.clone())) else {
            return;
        };
        let Some(here) = self.by_subject.get_mut(&namespace) else {
            return;
        };
        for (subject, _) in &binding.subjects {
            if let Some(bindings) = here.get_mut(subject) {
                bindings.remove(&name);
                if bindings.is_empty() {
                    here.remove(subject);
                }
            }
        }
        if here.is_empty() {
            self.by_subject.remove(&namespace);
        }
    }

    /// Takes in a change of the resource at `index` of [`RESOURCES`].
    fn apply(&mut self, index: usize, change: Change) {
        match (RESOURCES[index], change) {
            ("roles" | "clusterroles", Change::Applied(role)) => self.set_role(&role),
            ("roles" | "clusterroles", Change::Deleted(role)) => {
                drop(self.roles.remove(&key(&role)))
            }
            (_, Change::Applied(binding)) => self.set_binding(&binding),
            (_, Change::Deleted(binding)) => self.remove_binding(&binding),
            (_, Change::Synced) => {}
        }
    }

    /// The rules of a role that a binding in `namespace` (empty: cluster-wide) points to, or what is wrong with it.
    pub fn role_rules(&self, role: &RoleRef, namespace: &str) -> Result<Arc<[Rule]>, MissingRole> {
        let at = match role.kind.as_str() {
            "Role" => namespace,
            "ClusterRole" => "",
            _ => return Err(MissingRole::Kind(role.kind.clone())),
        };
        let found = self.roles.get(&(at.to_owned(), role.name.clone()));
        found.cloned().ok_or_else(|| {
            MissingRole::NotFound(
                GroupResource::new(GROUP, role.kind.to_ascii_lowercase()),
                role.name.clone(),
            )
        })
    }

    /// Calls `visit` with all rules in force for `user` in `namespace`, and where they come from, until it breaks.
    /// Returns the bindings' roles that could not be found.
    fn visit<B>(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&Rule, &dyn Fn() -> String) -> std::ops::ControlFlow<B>,
    ) -> Result<B, Vec<MissingRole>> {
        let mut missing = Vec::new();
        let subjects: Vec<Subject> = std::iter::once(Subject::User(user.name.clone()))
            .chain(user.groups.iter().cloned().map(Subject::Group))
            .collect();
        let scopes = std::iter::once("").chain((!namespace.is_empty()).then_some(namespace));
        for scope in scopes {
            let Some(here) = self.by_subject.get(scope) else {
                continue;
            };
            for (subject, (name, binding)) in subjects.iter().flat_map(|subject| {
                here.get(subject)
                    .into_iter()
                    .flatten()
                    .map(move |one| (subject, one))
            }) {
                let rules = match self.role_rules(&binding.role, scope) {
                    Ok(rules) => rules,
                    Err(error) => {
                        missing.push(error);
                        continue;
                    }
                };
                let source = || {
                    let words = binding
                        .subjects
                        .iter()
                        .find(|(one, _)| one == subject)
                        .map_or("", |(_, words)| words);
                    let binding_name = if scope.is_empty() {
                        format!("ClusterRoleBinding {}", quote(name))
                    } else {
                        format!("RoleBinding {}", quote(&format!("{name}/{scope}")))
                    };
                    format!(
                        "{binding_name} of {} {} to {words}",
                        binding.role.kind,
                        quote(&binding.role.name)
                    )
                };
                for rule in rules.iter() {
                    if let std::ops::ControlFlow::Break(result) = visit(rule, &source) {
                        return Ok(result);
                    }
                }
            }
        }
        Err(missing)
    }

    /// All rules in force for `user` in `namespace`, and the roles that could not be found.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<MissingRole>) {
        let mut rules = Vec::new();
        let missing = self.visit::<()>(user, namespace, |rule, _| {
            rules.push(rule.clone());
            std::ops::ControlFlow::Continue(())
        });
        (rules, missing.err().unwrap_or_default())
    }

    /// Decides.
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let allowed = self.visit(
            attributes.user,
            &attributes.request.namespace,
            |rule, source| {
                if rule.allows(attributes.request) {
                    std::ops::ControlFlow::Break(format!("RBAC: allowed by {}", source()))
                } else {
                    std::ops::ControlFlow::Continue(())
                }
            },
        );
        match allowed {
            Ok(reason) => Decision::Allow(reason),
            Err(missing) if missing.is_empty() => Decision::NoOpinion(String::new()),
            Err(missing) => Decision::NoOpinion(format!("RBAC: {}", aggregate(&missing))),
        }
    }
}

/// A binding's role that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingRole {
    /// No such role.
    #[error("{0} {name} not found", name = quote(.1))]
    NotFound(GroupResource, String),
    /// Not a kind of role.
    #[error("unsupported role reference kind: {kind}", kind = quote(.0))]
    Kind(String),
}

/// Errors as Go's aggregate prints them: one as it is, several in brackets, each once.
pub(super) fn aggregate(errors: &[MissingRole]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 {
        texts.remove(0)
    } else {
        format!("[{}]", texts.join(", "))
    }
}

fn key(object: &Value) -> Key {
    (
        meta::namespace(object).to_owned(),
        meta::name(object).to_owned(),
    )
}

/// A binding's subject; `None` for one that can match nobody.
fn subject_of(subject: &Value, binding_namespace: &str) -> Option<(Subject, String)> {
    let text = |field: &str| value::str_or_empty(subject, &[field]);
    let (kind, name) = (text("kind"), text("name"));
    let found = match kind {
        "User" => Subject::User(name.to_owned()),
        "Group" => Subject::Group(name.to_owned()),
        "ServiceAccount" => {
            let namespace = Some(text("namespace"))
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or(binding_namespace);
            if namespace.is_empty() {
                return None;
            }
            return Some((
                Subject::User(serviceaccount::username(namespace, name)),
                format!("{kind} {}", quote(&format!("{name}/{namespace}"))),
            ));
        }
        _ => return None,
    };
    Some((found, format!("{kind} {}", quote(name))))
}

/// The RBAC authorizer.
pub struct Rbac {
    index: RwLock<Index>,
    synced: watch::Receiver<bool>,
}

impl Rbac {
    /// Begins to follow roles and bindings; until they are known ([`Self::synced`]) nothing is allowed.
    pub fn start(objects: Objects, shutdown: CancellationToken) -> Arc<Self> {
        let (sender, synced) = watch::channel(false);
        let rbac = Arc::new(Rbac {
            index: RwLock::default(),
            synced,
        });
        let resources = RESOURCES
            .iter()
            .map(|resource| GroupResource::new(GROUP, *resource))
            .collect();
        let target = rbac.clone();
        tokio::spawn(follow(
            objects,
            resources,
            sender,
            shutdown,
            move |index, change| target.index.write().apply(index, change),
        ));
        rbac
    }

    /// Returns once the present roles and bindings are known; `false` when they never will be (shutdown).
    pub async fn synced(&self) -> bool {
        self.synced.clone().wait_for(|synced| *synced).await.is_ok()
    }

    /// All rules in force for `user` in `namespace`, and the roles that could not be found.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<MissingRole>) {
        self.index.read().rules_for(user, namespace)
    }

    /// The rules of the role that a binding in `namespace` points to.
    pub fn role_rules(&self, role: &RoleRef, namespace: &str) -> Result<Arc<[Rule]>, MissingRole> {
        self.index.read().role_rules(role, namespace)
    }

    /// An authorizer with these objects and no others, for tests and for tools that explain policies.
    pub fn fixed<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut index = Index::default();
        for object in objects {
            match value::str_or_empty(object, &["kind"]) {
                "Role" | "ClusterRole" => index.set_role(object),
                _ => index.set_binding(object),
            }
        }
        let (_, synced) = watch::channel(true);
        Rbac {
            index: RwLock::new(index),
            synced,
        }
    }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        self.index.read().authorize(attributes)
    }
}

impl RuleResolver for Rbac {
    fn resolve(&self, user: &UserInfo, namespace: &str) -> ResolvedRules {
        let (rules, missing) = self.rules_for(user, namespace);
        let errors = if missing.is_empty() {
            Vec::new()
        } else {
            vec![aggregate(&missing)]
        };
        ResolvedRules {
            rules,
            incomplete: false,
            errors,
        }
    }
}
