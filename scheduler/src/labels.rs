//! Label and node selectors compiled once per pod, so that matching a node or a pod is a few map lookups.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector as ApiNodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What a [`Requirement`] asks of the value under its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The value is one of these.
    In(Vec<String>),
    /// The key is absent or the value is none of these.
    NotIn(Vec<String>),
    /// The key is present.
    Exists,
    /// The key is absent.
    DoesNotExist,
    /// The value is an integer above this one.
    Gt(i64),
    /// The value is an integer below this one.
    Lt(i64),
    /// Written in a way that can match nothing (unknown operator, missing values).
    Never,
}

/// One key and what is asked of its value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label (or field) looked at.
    pub key: String,
    /// What is asked.
    pub operator: Operator,
}

impl Requirement {
    /// Whether `value`, the value under this requirement's key if there is one, satisfies it.
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Operator::NotIn(values) => value.is_none_or(|v| !values.iter().any(|w| w == v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(bound) => value
                .and_then(|v| v.parse::<i64>().ok())
                .is_some_and(|v| v > *bound),
            Operator::Lt(bound) => value
                .and_then(|v| v.parse::<i64>().ok())
                .is_some_and(|v| v < *bound),
            Operator::Never => false,
        }
    }

    /// Whether `labels` satisfy it.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.key).map(String::as_str))
    }

    fn equals(key: &str, value: &str) -> Self {
        Requirement {
            key: key.to_owned(),
            operator: Operator::In(vec![value.to_owned()]),
        }
    }

    fn from_node_requirement(requirement: &NodeSelectorRequirement) -> Self {
        let values = requirement.values.clone().unwrap_or_default();
        let operator = match (requirement.operator.as_str(), values.as_slice()) {
            ("In", [_, ..]) => Operator::In(values),
            ("NotIn", [_, ..]) => Operator::NotIn(values),
            ("Exists", []) => Operator::Exists,
            ("DoesNotExist", []) => Operator::DoesNotExist,
            ("Gt", [bound]) => bound.parse().map_or(Operator::Never, Operator::Gt),
            ("Lt", [bound]) => bound.parse().map_or(Operator::Never, Operator::Lt),
            _ => Operator::Never,
        };
        Requirement {
            key: requirement.key.clone(),
            operator,
        }
    }
}

/// A compiled `metav1.LabelSelector`: all requirements must hold; `Nothing` is the absent selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Matches no object (an absent selector).
    Nothing,
    /// Matches objects that satisfy all requirements; with none, every object.
    All(Vec<Requirement>),
}

impl Selector {
    /// Compiles an API selector. Absent selects nothing, empty selects everything
    /// (`metav1.LabelSelectorAsSelector`). A malformed requirement matches nothing.
    pub fn from_api(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else {
            return Selector::Nothing;
        };
        let mut requirements: Vec<Requirement> = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::equals(key, value));
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            let operator = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Operator::In(values),
                ("NotIn", false) => Operator::NotIn(values),
                ("Exists", true) => Operator::Exists,
                ("DoesNotExist", true) => Operator::DoesNotExist,
                _ => Operator::Never,
            };
            requirements.push(Requirement {
                key: expression.key.clone(),
                operator,
            });
        }
        Selector::All(requirements)
    }

    /// Selects the objects that carry all of `labels`.
    pub fn from_labels(labels: &Labels) -> Self {
        Selector::All(
            labels
                .iter()
                .map(|(k, v)| Requirement::equals(k, v))
                .collect(),
        )
    }

    /// Narrows the selector: what it selected must also satisfy `other`.
    pub fn and(self, other: Selector) -> Self {
        match (self, other) {
            (Selector::All(mut a), Selector::All(b)) => {
                for requirement in b {
                    if !a.contains(&requirement) {
                        a.push(requirement);
                    }
                }
                Selector::All(a)
            }
            _ => Selector::Nothing,
        }
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        matches!(self, Selector::All(requirements) if requirements.is_empty())
    }

    /// Whether `labels` are selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Selector::Nothing => false,
            Selector::All(requirements) => requirements.iter().all(|r| r.matches(labels)),
        }
    }
}

/// One term of a node selector: expressions over labels and over fields (only `metadata.name`), all of which must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTerm {
    expressions: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    /// Compiles an API term.
    pub fn from_api(term: &NodeSelectorTerm) -> Self {
        NodeTerm {
            expressions: term
                .match_expressions
                .iter()
                .flatten()
                .map(Requirement::from_node_requirement)
                .collect(),
            fields: term
                .match_fields
                .iter()
                .flatten()
                .map(Requirement::from_node_requirement)
                .collect(),
        }
    }

    /// Whether the node matches. A term without any requirement matches no node (`nodeaffinity.isEmptyNodeSelectorTerm`).
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        !self.is_empty()
            && self.expressions.iter().all(|r| r.matches(labels))
            && self
                .fields
                .iter()
                .all(|r| r.matches_value((r.key == "metadata.name").then_some(name)))
    }

    /// Whether the term asks nothing.
    pub fn is_empty(&self) -> bool {
        self.expressions.is_empty() && self.fields.is_empty()
    }

    /// The node names this term is confined to by `metadata.name` requirements; `None` when it is not confined.
    pub fn node_names(&self) -> Option<Vec<&str>> {
        let mut names: Option<Vec<&str>> = None;
        for field in &self.fields {
            if let (true, Operator::In(values)) = (field.key == "metadata.name", &field.operator) {
                names = Some(match names {
                    None => values.iter().map(String::as_str).collect(),
                    Some(seen) => seen
                        .into_iter()
                        .filter(|n| values.iter().any(|v| v == n))
                        .collect(),
                });
            }
        }
        names
    }
}

/// A compiled `v1.NodeSelector`: any one term suffices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSelector {
    /// The alternatives.
    pub terms: Vec<NodeTerm>,
}

impl NodeSelector {
    /// Compiles an API node selector.
    pub fn from_api(selector: &ApiNodeSelector) -> Self {
        NodeSelector {
            terms: selector
                .node_selector_terms
                .iter()
                .map(NodeTerm::from_api)
                .collect(),
        }
    }

    /// Whether a node matches any term.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.terms.iter().any(|t| t.matches(name, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn label_selectors() {
        let cases = [
            (json!(null), &[("a", "1")][..], false),
            (json!({}), &[("a", "1")], true),
            (json!({"matchLabels": {"a": "1"}}), &[("a", "1")], true),
            (json!({"matchLabels": {"a": "1"}}), &[("a", "2")], false),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}),
                &[],
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}),
                &[("a", "1")],
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
                &[("a", "")],
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}),
                &[("a", "")],
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}),
                &[("a", "")],
                false,
            ),
        ];
        for (selector, have, want) in cases {
            let api: Option<LabelSelector> = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(
                Selector::from_api(api.as_ref()).matches(&labels(have)),
                want,
                "{selector} on {have:?}"
            );
        }
    }

    #[test]
    fn node_selectors() {
        let cases = [
            (json!({"nodeSelectorTerms": []}), false),
            (json!({"nodeSelectorTerms": [{}]}), false),
            (
                json!({"nodeSelectorTerms": [{}, {"matchExpressions": [{"key": "n", "operator": "Gt", "values": ["4"]}]}]}),
                true,
            ),
            (
                json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "n", "operator": "Lt", "values": ["5"]}]}]}),
                false,
            ),
            (
                json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "n", "operator": "Gt", "values": ["x"]}]}]}),
                false,
            ),
            (
                json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}),
                true,
            ),
            (
                json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}]}),
                false,
            ),
        ];
        for (selector, want) in cases {
            let api: ApiNodeSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(
                NodeSelector::from_api(&api).matches("n1", &labels(&[("n", "5")])),
                want,
                "{selector}"
            );
        }
    }
}
