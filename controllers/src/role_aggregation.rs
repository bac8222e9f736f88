//! ClusterRoles that are made of others: those with an aggregation rule get the rules of all that it selects (upstream
//! `clusterroleaggregation`).

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::workqueue::WorkQueue;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::common::{Selector, labels, name};
use crate::error::{Error, ignore_not_found, is_conflict};
use crate::{Context, synced};

/// The rules of an aggregating role, in the order of its selectors and of the selected roles' names, each once; `None` for a role that
/// aggregates nothing or has these rules already.
///
/// # Errors
/// A selector that is none.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Option<Vec<PolicyRule>>, String> {
    let Some(rule) = &role.aggregation_rule else {
        return Ok(None);
    };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let selector = Selector::new(selector)?;
        let mut selected: Vec<_> = all
            .iter()
            .filter(|r| selector.matches(labels(&r.metadata)))
            .filter(|r| name(&r.metadata) != name(&role.metadata))
            .collect();
        selected.sort_by_key(|r| name(&r.metadata));
        for rule in selected.iter().flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Ok((rules != role.rules.clone().unwrap_or_default()).then_some(rules))
}

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let roles = context.informers.informer::<ClusterRole>();
    let queue: Arc<WorkQueue<ObjectKey>> =
        WorkQueue::new("cluster_role_aggregator", &context.metrics);
    roles.on_event({
        let (queue, roles) = (queue.clone(), roles.clone());
        // Any role may be a part of any aggregating one; of those there are few.
        move |event| {
            queue.add(ObjectKey::of(&event.object().metadata));
            for role in roles.store().list() {
                if role.aggregation_rule.is_some() {
                    queue.add(ObjectKey::of(&role.metadata));
                }
            }
        }
    });
    synced!(roles);
    let client = context.client("clusterrole-aggregation-controller");
    Controller::new("clusterrole-aggregation-controller", queue)
        .workers(5)
        .run(context.shutdown.clone(), move |key: ObjectKey| {
            let (client, roles) = (client.clone(), roles.clone());
            async move {
                let Some(role) = roles.store().get(&key) else {
                    return Ok(Action::Done);
                };
                let all = roles.store().list();
                let Some(rules) = plan(&role, &all).map_err(Error::Object)? else {
                    return Ok(Action::Done);
                };
                let api: Api<ClusterRole> = Api::all(client);
                let patch = Patch::Merge(json!({
                    "metadata": {"resourceVersion": role.metadata.resource_version},
                    "rules": rules,
                }));
                match api.patch(&key.name, &PatchParams::default(), &patch).await {
                    Err(error) if is_conflict(&error) => Ok(Action::Retry),
                    result => ignore_not_found(result).map(|()| Action::Done),
                }
            }
        })
        .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn roles_are_put_together() {
        let role = |own: &str, extra: Value, verbs: &[&str]| -> Arc<ClusterRole> {
            let rules: Vec<Value> = verbs
                .iter()
                .map(|v| json!({"verbs": [v], "apiGroups": [""], "resources": ["pods"]}))
                .collect();
            let mut value = json!({"metadata": {"name": own}, "rules": rules});
            for (key, field) in extra.as_object().unwrap() {
                value[key] = field.clone();
            }
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let part = |own: &str, verbs: &[&str]| {
            let extra = json!({"metadata": {"name": own, "labels": {"to": "view"}}});
            role(own, extra, verbs)
        };
        let whole = |verbs: &[&str]| {
            let extra = json!({"metadata": {"name": "view", "labels": {"to": "view"}},
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}, {"matchLabels": {"to": "x"}}]}});
            role("view", extra, verbs)
        };
        let parts = [part("b", &["watch", "get"]), part("a", &["get", "list"])];
        let check =
            |whole: &Arc<ClusterRole>, parts: &[Arc<ClusterRole>], want: Option<&[&str]>| {
                let mut all = parts.to_vec();
                all.extend([whole.clone(), role("other", json!({}), &["delete"])]);
                let got = plan(whole, &all).unwrap();
                let got: Option<Vec<&str>> = got
                    .as_ref()
                    .map(|rules| rules.iter().map(|r| r.verbs[0].as_str()).collect());
                assert_eq!(got.as_deref(), want);
            };
        check(&whole(&[]), &parts, Some(&["get", "list", "watch"]));
        check(&whole(&["get", "list", "watch"]), &parts, None);
        check(&whole(&["get"]), &[], Some(&[]));
        // One that aggregates nothing keeps its rules.
        check(&parts[0], &parts, None);
    }
}
