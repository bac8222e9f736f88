//! What a pod's failure means for its job, and when enough indexes have succeeded (`podFailurePolicy`, `successPolicy`).

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::Pod;

use super::indexes;
use crate::common::{name, namespace};

/// What the first matching rule says.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Counts towards the limit, as without a rule.
    Count,
    /// Counts for nothing.
    Ignore,
    /// The whole job fails, for this reason.
    FailJob(String),
    /// The pod's index fails.
    FailIndex,
}

/// Judges a failed pod.
pub fn judge(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec
        .pod_failure_policy
        .as_ref()
        .map(|p| p.rules.as_slice())
        .unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let Some(why) = matches(rule, pod, index) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailJob" => Verdict::FailJob(why),
            "FailIndex" => Verdict::FailIndex,
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod, index: usize) -> Option<String> {
    let status = pod.status.as_ref()?;
    let title = format!("{}/{}", namespace(&pod.metadata), name(&pod.metadata));
    if let Some(codes) = &rule.on_exit_codes {
        let statuses = status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten());
        for container in statuses {
            if codes
                .container_name
                .as_ref()
                .is_some_and(|n| *n != container.name)
            {
                continue;
            }
            let code = container
                .state
                .as_ref()
                .and_then(|s| s.terminated.as_ref())
                .map_or(0, |t| t.exit_code);
            let hit = match codes.operator.as_str() {
                "In" => codes.values.contains(&code),
                "NotIn" => !codes.values.contains(&code),
                _ => false,
            };
            if code != 0 && hit {
                return Some(format!(
                    "Container {} for pod {title} failed with exit code {code} matching {} rule at index {index}",
                    container.name, rule.action
                ));
            }
        }
        return None;
    }
    for pattern in rule.on_pod_conditions.iter().flatten() {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let hit = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == pattern.type_ && c.status == wanted);
        if hit {
            return Some(format!(
                "Pod {title} has condition {} matching {} rule at index {index}",
                pattern.type_, rule.action
            ));
        }
    }
    None
}

/// The message of the first success rule that the succeeded indexes fulfil.
pub fn succeeded(spec: &JobSpec, done: &BTreeSet<i32>) -> Option<String> {
    let completions = spec.completions.unwrap_or(0);
    let rules = &spec.success_policy.as_ref()?.rules;
    rules.iter().enumerate().find_map(|(index, rule)| {
        let (wanted, have) = match &rule.succeeded_indexes {
            Some(text) => {
                let set = indexes::parse(text, completions);
                let have = set.intersection(done).count();
                (Some(set.len()), have)
            }
            None => (None, done.len()),
        };
        let enough = match rule.succeeded_count {
            Some(count) => have >= usize::try_from(count).unwrap_or(usize::MAX),
            None => wanted.is_some_and(|n| have == n),
        };
        enough.then(|| format!("Matched rules at index {index}"))
    })
}
