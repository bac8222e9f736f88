//! Which fields the field selectors of each resource may name, as data (upstream's `ToSelectableFields` and
//! `AddFieldLabelConversionFunc` per kind), and the way from selectors to a [`Selection`].

use std::borrow::Cow;
use std::sync::Arc;

use keelson_machinery::selector::{FieldSelector, LabelSelector};

use super::types::{CacheSpec, Entry, FieldSpec, Selection};
use crate::reader::GroupResource;

/// (group, resource, [(label, paths, default)]). Without paths: a label that is accepted and has no value.
type Row = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static [&'static str], &'static str)],
);

const BUILTIN: &[Row] = &[
    (
        "",
        "pods",
        &[
            ("spec.nodeName", &["spec.nodeName"], ""),
            ("spec.restartPolicy", &["spec.restartPolicy"], ""),
            ("spec.schedulerName", &["spec.schedulerName"], ""),
            ("spec.serviceAccountName", &["spec.serviceAccountName"], ""),
            ("spec.hostNetwork", &["spec.hostNetwork"], "false"),
            ("status.phase", &["status.phase"], ""),
            ("status.podIP", &["status.podIP"], ""),
            ("status.podIPs", &[], ""),
            (
                "status.nominatedNodeName",
                &["status.nominatedNodeName"],
                "",
            ),
        ],
    ),
    ("", "events", EVENT),
    ("events.k8s.io", "events", EVENT),
    ("", "namespaces", &[("status.phase", &["status.phase"], "")]),
    (
        "",
        "nodes",
        &[("spec.unschedulable", &["spec.unschedulable"], "false")],
    ),
    (
        "",
        "replicationcontrollers",
        &[("status.replicas", &["status.replicas"], "0")],
    ),
    ("", "secrets", &[("type", &["type"], "")]),
    (
        "",
        "services",
        &[
            ("spec.clusterIP", &["spec.clusterIP"], ""),
            ("spec.type", &["spec.type"], ""),
        ],
    ),
    (
        "apps",
        "replicasets",
        &[("status.replicas", &["status.replicas"], "0")],
    ),
    (
        "batch",
        "jobs",
        &[("status.successful", &["status.succeeded"], "0")],
    ),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        &[("spec.signerName", &["spec.signerName"], "")],
    ),
    (
        "certificates.k8s.io",
        "clustertrustbundles",
        &[("spec.signerName", &["spec.signerName"], "")],
    ),
    (
        "certificates.k8s.io",
        "podcertificaterequests",
        &[
            ("spec.signerName", &["spec.signerName"], ""),
            ("spec.podName", &["spec.podName"], ""),
            ("spec.nodeName", &["spec.nodeName"], ""),
        ],
    ),
    (
        "resource.k8s.io",
        "resourceslices",
        &[
            ("spec.nodeName", &["spec.nodeName"], ""),
            ("spec.driver", &["spec.driver"], ""),
        ],
    ),
    (
        "coordination.k8s.io",
        "leasecandidates",
        &[("spec.leaseName", &["spec.leaseName"], "")],
    ),
];

const EVENT: &[(&str, &[&str], &str)] = &[
    ("involvedObject.kind", &["involvedObject.kind"], ""),
    (
        "involvedObject.namespace",
        &["involvedObject.namespace"],
        "",
    ),
    ("involvedObject.name", &["involvedObject.name"], ""),
    ("involvedObject.uid", &["involvedObject.uid"], ""),
    (
        "involvedObject.apiVersion",
        &["involvedObject.apiVersion"],
        "",
    ),
    (
        "involvedObject.resourceVersion",
        &["involvedObject.resourceVersion"],
        "",
    ),
    (
        "involvedObject.fieldPath",
        &["involvedObject.fieldPath"],
        "",
    ),
    ("reason", &["reason"], ""),
    ("reportingComponent", &["reportingComponent"], ""),
    ("source", &["source.component", "reportingComponent"], ""),
    ("type", &["type"], ""),
];

/// Fields by which watchers are found, where many watchers each want a few of many objects.
const INDEXED: &[(&str, &str, &str)] = &[
    ("", "pods", "spec.nodeName"),
    ("resource.k8s.io", "resourceslices", "spec.nodeName"),
];

/// Labels that stand for others: (group asked, resource, label, the label it stands for).
const ALIASES: &[(&str, &str, &str, &str)] = &[
    ("", "pods", "spec.host", "spec.nodeName"),
    (
        "events.k8s.io",
        "events",
        "regarding.kind",
        "involvedObject.kind",
    ),
    (
        "events.k8s.io",
        "events",
        "regarding.namespace",
        "involvedObject.namespace",
    ),
    (
        "events.k8s.io",
        "events",
        "regarding.name",
        "involvedObject.name",
    ),
    (
        "events.k8s.io",
        "events",
        "regarding.uid",
        "involvedObject.uid",
    ),
    (
        "events.k8s.io",
        "events",
        "regarding.apiVersion",
        "involvedObject.apiVersion",
    ),
    (
        "events.k8s.io",
        "events",
        "regarding.resourceVersion",
        "involvedObject.resourceVersion",
    ),
    (
        "events.k8s.io",
        "events",
        "regarding.fieldPath",
        "involvedObject.fieldPath",
    ),
    (
        "events.k8s.io",
        "events",
        "reportingController",
        "reportingComponent",
    ),
];

/// Labels that stay internal: the store has them, the conversion of the version asked for does not let them through.
const HIDDEN: &[(&str, &str, &[&str])] =
    &[("events.k8s.io", "events", &["source", "reportingComponent"])];

/// The selectable fields of a built-in resource; empty for one that has only `metadata.name` and
/// `metadata.namespace`.
pub fn builtin(resource: &GroupResource) -> Arc<[FieldSpec]> {
    let row = BUILTIN
        .iter()
        .find(|(group, name, _)| *group == resource.group && *name == resource.resource);
    let fields = row.map_or(&[][..], |(_, _, fields)| *fields);
    let spec = |(label, paths, default): &(&str, &[&str], &str)| FieldSpec {
        label: (*label).into(),
        paths: paths
            .iter()
            .map(|path| path.split('.').map(Arc::from).collect())
            .collect(),
        default: (*default).into(),
        indexed: INDEXED.contains(&(&resource.group, &resource.resource, label)),
    };
    fields.iter().map(spec).collect()
}

/// A selectable field of a custom resource, from the `jsonPath` of `spec.versions[].selectableFields[]`
/// (`.spec.color`).
pub fn custom(json_path: &str) -> FieldSpec {
    let label = json_path.trim_start_matches('.');
    FieldSpec {
        label: label.into(),
        paths: vec![label.split('.').map(Arc::from).collect()],
        default: "".into(),
        indexed: false,
    }
}

/// Where a requirement of a field selector finds its value.
enum Source {
    Name,
    Namespace,
    Field(usize),
}

impl Source {
    fn of<'a>(&self, entry: &'a Entry) -> &'a str {
        match self {
            Source::Name => entry.name(),
            Source::Namespace => entry.namespace(),
            Source::Field(at) => entry.facts().field(*at).unwrap_or(""),
        }
    }
}

impl Selection {
    /// The selection a list or watch asks for. `asked` is the group of the request, which matters for events.
    /// The error is upstream's text for a label the resource does not know, to be sent as a bad request.
    pub fn new(
        spec: &CacheSpec,
        asked: &str,
        namespace: Option<&str>,
        labels: &LabelSelector,
        fields: &FieldSelector,
    ) -> Result<Self, String> {
        let mut selection = Selection {
            namespace: namespace.filter(|n| !n.is_empty()).map(str::to_owned),
            ..Selection::default()
        };
        // (source, negated, value)
        let mut conditions = Vec::new();
        for requirement in fields.requirements() {
            let source = source(spec, asked, &requirement.field)?;
            if !requirement.negated {
                let value = requirement.value.clone();
                match &source {
                    Source::Name => selection.name = Some(value),
                    Source::Namespace if spec.namespaced && selection.namespace.is_none() => {
                        selection.namespace = Some(value).filter(|v| !v.is_empty());
                    }
                    Source::Field(at) if spec.fields[*at].indexed => {
                        selection.indexed = Some(value);
                    }
                    Source::Namespace | Source::Field(_) => {}
                }
            }
            conditions.push((source, requirement.negated, requirement.value.clone()));
        }
        if conditions.is_empty() && labels.is_everything() {
            return Ok(selection);
        }
        let labels = labels.clone();
        selection.predicate = Some(Arc::new(move |entry: &Entry| {
            conditions
                .iter()
                .all(|(source, negated, value)| (source.of(entry) == value) != *negated)
                && labels.matches_by(|key| entry.facts().label(key))
        }));
        Ok(selection)
    }
}

fn source(spec: &CacheSpec, asked: &str, label: &str) -> Result<Source, String> {
    let resource = &spec.resource.resource;
    match label {
        "metadata.name" => return Ok(Source::Name),
        // Kinds with a list of their own and no namespace do not have it on that list.
        "metadata.namespace" if spec.namespaced || spec.fields.is_empty() => {
            return Ok(Source::Namespace);
        }
        _ => {}
    }
    let alias = ALIASES
        .iter()
        .find(|(group, of, alias, _)| *group == asked && of == resource && *alias == label);
    let hidden = HIDDEN
        .iter()
        .any(|(group, of, labels)| *group == asked && of == resource && labels.contains(&label));
    let internal: Cow<str> = alias.map_or(label, |(_, _, _, internal)| internal).into();
    // events.k8s.io knows the involved object by its own name only.
    let foreign =
        asked == "events.k8s.io" && alias.is_none() && label.starts_with("involvedObject.");
    let at = spec.fields.iter().position(|f| *f.label == *internal);
    match at {
        Some(at) if !hidden && !foreign => Ok(Source::Field(at)),
        _ if spec.fields.is_empty() => Err(format!(
            "\"{label}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        )),
        _ if resource == "jobs" => Err(format!("field label \"{label}\" not supported for Job")),
        _ => Err(format!("field label not supported: {label}")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use keelson_store::KeyValue;

    use super::*;
    use crate::cache::entry::Builder;
    use crate::cache::entry::tests::Json;

    fn spec(group: &str, resource: &str, namespaced: bool) -> CacheSpec {
        let resource = GroupResource::new(group, resource);
        CacheSpec {
            fields: builtin(&resource),
            resource,
            prefix: "/r/".into(),
            namespaced,
            codec: Arc::new(Json),
        }
    }

    fn select(
        spec: &CacheSpec,
        asked: &str,
        labels: &str,
        fields: &str,
    ) -> Result<Selection, String> {
        let labels = LabelSelector::parse(labels).unwrap();
        let fields = FieldSelector::parse(fields).unwrap();
        Selection::new(spec, asked, None, &labels, &fields)
    }

    #[test]
    fn selects() {
        let pods = spec("", "pods", true);
        let kv = KeyValue {
            key: "/r/ns/a".to_owned(),
            value: Bytes::from_static(
                br#"{"metadata":{"name":"a","labels":{"app":"x"}},"spec":{"nodeName":"n1"},"status":{"phase":"Running"}}"#,
            ),
            create_revision: 1,
            mod_revision: 1,
        };
        let builder = Builder::new(pods.clone());
        let entry = builder.entry(&kv).unwrap();
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=x", "", true),
            ("app!=x", "", false),
            ("!app", "", false),
            ("other notin (y)", "", true),
            ("", "metadata.name=a", true),
            ("", "metadata.name=b", false),
            ("", "metadata.name!=b,metadata.namespace=ns", true),
            ("", "metadata.namespace=other", false),
            ("", "spec.nodeName=n1", true),
            ("", "spec.host=n1", true),
            ("", "spec.nodeName!=n1", false),
            ("", "spec.nodeName=n1,spec.nodeName=n2", false),
            ("", "status.phase=Running,spec.hostNetwork=false", true),
            ("", "spec.hostNetwork=true", false),
            ("", "status.podIP=", true),
            ("app=x", "spec.nodeName=n2", false),
        ] {
            let selection = select(&pods, "", labels, fields).unwrap();
            let matches = selection.matches(&entry, builder.indexed());
            assert_eq!(matches, expected, "{labels} {fields}");
        }
    }

    #[test]
    fn knows_its_labels() {
        for (group, resource, namespaced, asked, field, error) in [
            (
                "",
                "pods",
                true,
                "",
                "spec.foo=a",
                "field label not supported: spec.foo",
            ),
            ("", "nodes", false, "", "spec.unschedulable=true", ""),
            (
                "",
                "nodes",
                false,
                "",
                "metadata.namespace=a",
                "field label not supported: metadata.namespace",
            ),
            ("", "configmaps", true, "", "metadata.namespace=a", ""),
            (
                "",
                "configmaps",
                true,
                "",
                "data.x=a",
                "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
            ("batch", "jobs", true, "batch", "status.successful=1", ""),
            (
                "batch",
                "jobs",
                true,
                "batch",
                "x=1",
                "field label \"x\" not supported for Job",
            ),
            ("", "events", true, "", "involvedObject.name=a,source=b", ""),
            (
                "",
                "events",
                true,
                "",
                "regarding.name=a",
                "field label not supported: regarding.name",
            ),
            (
                "",
                "events",
                true,
                "events.k8s.io",
                "regarding.name=a,reportingController=b",
                "",
            ),
            (
                "",
                "events",
                true,
                "events.k8s.io",
                "involvedObject.name=a",
                "field label not supported: involvedObject.name",
            ),
            (
                "",
                "namespaces",
                false,
                "",
                "name=a",
                "field label not supported: name",
            ),
            ("", "namespaces", false, "", "status.phase=Active", ""),
        ] {
            let spec = spec(group, resource, namespaced);
            let got = select(&spec, asked, "", field).err().unwrap_or_default();
            assert_eq!(got, error, "{resource} {field}");
        }
    }
}
