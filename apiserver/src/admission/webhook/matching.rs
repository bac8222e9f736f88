//! Which requests a webhook or policy is about: rules, selectors, and equivalent resources
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/predicates`).

use keelson_machinery::meta;
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use crate::admission::{AdmissionRequest, Operation};
use crate::objects::Objects;
use crate::registry::Table;

/// A resource in one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Gvr {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural name.
    pub resource: String,
}

/// A kind in one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Gvk {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Name of the kind.
    pub kind: String,
}

/// As what a webhook or policy sees a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The resource that its rule names.
    pub resource: Gvr,
    /// The kind of the objects.
    pub kind: Gvk,
}

/// The resource that a request names.
pub fn resource_of(request: &AdmissionRequest) -> Gvr {
    Gvr {
        group: request.request.group.clone(),
        version: request.request.version.clone(),
        resource: request.request.resource.clone(),
    }
}

/// The kind of the objects in a request.
pub fn kind_of(request: &AdmissionRequest) -> Gvk {
    Gvk {
        group: request.kind_group.clone(),
        version: request.kind_version.clone(),
        kind: request.kind.clone(),
    }
}

/// Whether a request changes the configuration of admission itself, which webhooks and policies never see: nobody
/// could repair a broken one otherwise (upstream `IsExemptAdmissionConfigurationResource`).
pub fn is_exempt(request: &AdmissionRequest) -> bool {
    request.kind_group == "admissionregistration.k8s.io"
        && matches!(
            request.kind.as_str(),
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

/// One rule (`RuleWithOperations`, `NamedRuleWithOperations`).
#[derive(Clone, Debug, Default)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: String,
}

fn texts(value: &Value, member: &str) -> Vec<String> {
    value::items(value, &[member])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_string)
        .collect()
}

impl Rule {
    /// Reads a rule.
    pub fn read(rule: &Value) -> Rule {
        Rule {
            operations: texts(rule, "operations"),
            groups: texts(rule, "apiGroups"),
            versions: texts(rule, "apiVersions"),
            resources: texts(rule, "resources"),
            names: texts(rule, "resourceNames"),
            scope: value::str_or_empty(rule, &["scope"]).to_string(),
        }
    }

    /// Reads a list of rules.
    pub fn read_all(rules: &[Value]) -> Vec<Rule> {
        rules.iter().map(Rule::read).collect()
    }

    /// Whether the rule is about the request as one for `resource`.
    pub fn matches(&self, request: &AdmissionRequest, resource: &Gvr) -> bool {
        let listed =
            |list: &[String], one: &str| list.iter().any(|item| item == "*" || item == one);
        let subresource = &request.request.subresource;
        let namespaces = resource.group.is_empty() && resource.resource == "namespaces";
        // A namespace is in no namespace, although its requests name one.
        let cluster_wide = namespaces || request.request.namespace.is_empty();
        let scope = match self.scope.as_str() {
            "" | "*" => true,
            "Namespaced" => !cluster_wide,
            "Cluster" => cluster_wide,
            _ => false,
        };
        scope
            && listed(&self.operations, request.operation.as_str())
            && listed(&self.groups, &resource.group)
            && listed(&self.versions, &resource.version)
            && self.resources.iter().any(|item| {
                let (of, sub) = item.split_once('/').unwrap_or((item, ""));
                (of == "*" || of == resource.resource) && (sub == "*" || sub == subresource)
            })
            && (self.names.is_empty() || self.names.contains(&request.request.name))
    }
}

/// The first rule that is about the request, or with `equivalent` about the same objects under another name or
/// version: as what it is seen.
pub fn seen_by(
    rules: &[Rule],
    equivalent: bool,
    request: &AdmissionRequest,
    table: &Table,
) -> Result<Option<Seen>, ApiError> {
    let own = resource_of(request);
    if rules.iter().any(|rule| rule.matches(request, &own)) {
        return Ok(Some(Seen {
            resource: own,
            kind: kind_of(request),
        }));
    }
    if !equivalent {
        return Ok(None);
    }
    let others = equivalents(request, &own, table);
    for rule in rules {
        for seen in &others {
            if rule.matches(request, &seen.resource) {
                return Ok(Some(seen.clone()));
            }
        }
    }
    Ok(None)
}

/// The other names and versions of a request's resource that have the subresource too.
fn equivalents(request: &AdmissionRequest, own: &Gvr, table: &Table) -> Vec<Seen> {
    let Some(served) = table.get(&own.group, &own.version, &own.resource) else {
        return Vec::new();
    };
    let storage = &served.row.storage.group;
    let mut found = Vec::new();
    for row in table.catalog().rows() {
        if row.resource != own.resource
            || row.storage.group != *storage
            || (row.group == own.group && row.version == own.version)
        {
            continue;
        }
        let kind = match request.request.subresource.as_str() {
            "" => Some(Gvk {
                group: row.group.clone(),
                version: row.version.clone(),
                kind: row.kind.clone(),
            }),
            name => row.subresource(name).map(|sub| Gvk {
                group: sub.group.clone(),
                version: sub.version.clone(),
                kind: sub.kind.clone(),
            }),
        };
        found.extend(kind.map(|kind| Seen {
            resource: Gvr {
                group: row.group.clone(),
                version: row.version.clone(),
                resource: row.resource.clone(),
            },
            kind,
        }));
    }
    found
}

/// A selector of a configuration; one that cannot be read is an error when it is needed.
pub type Selector = Result<LabelSelector, String>;

/// Reads a `metav1.LabelSelector`.
pub fn selector(of: Option<&Value>) -> Selector {
    LabelSelector::from_value(of).map_err(|error| error.to_string())
}

/// Whether the namespace of a request is selected. Requests outside of namespaces always are.
pub async fn selects_namespace(
    selector: &Selector,
    request: &AdmissionRequest,
    objects: &Objects,
) -> Result<bool, ApiError> {
    let info = &request.request;
    let namespaces = info.resource == "namespaces";
    if info.namespace.is_empty() && !namespaces {
        return Ok(true);
    }
    let selector = selector.as_ref().map_err(ApiError::internal)?;
    if selector.is_everything() {
        return Ok(true);
    }
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    if namespaces && info.subresource.is_empty() && writes {
        // What is stored does not have these labels yet.
        let labels = request.object.as_ref().and_then(meta::labels);
        return Ok(selector.matches(labels));
    }
    let namespace = objects.get("", "namespaces", "", &info.namespace).await?;
    Ok(selector.matches(meta::labels(&namespace)))
}

/// Whether the object of a request is selected, as it was or as it will be.
pub fn selects_object(selector: &Selector, request: &AdmissionRequest) -> Result<bool, ApiError> {
    let selector = selector.as_ref().map_err(ApiError::internal)?;
    if selector.is_everything() {
        return Ok(true);
    }
    let selects = |object: Option<&Value>| {
        object.is_some_and(|object| {
            object.get("metadata").is_some() && selector.matches(meta::labels(object))
        })
    };
    Ok(selects(request.object.as_ref()) || selects(request.old_object.as_deref()))
}
