//! PodSecurity: namespaces say by labels how much their Pods may (`k8s.io/pod-security-admission`).

mod checks;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use async_trait::async_trait;
use keelson_machinery::meta::{self, GroupKind};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::{AdmissionRequest, Operation, Plugin};
use crate::objects::Objects;
use checks::{Level, Subject, describe, violations};

/// How many Pods are looked at when a namespace becomes stricter.
const MAX_PODS_CHECKED: usize = 3000;

/// A level, and the version of the standards it is meant in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LevelVersion {
    level: Level,
    /// The minor version; `u32::MAX` for `latest`.
    minor: u32,
}

impl std::fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            u32::MAX => write!(f, "{level}:latest"),
            minor => write!(f, "{level}:v1.{minor}"),
        }
    }
}

/// What a namespace demands (`api.Policy`). Audit annotations are not written yet, so that mode is only checked for
/// valid labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: LevelVersion,
    warn: LevelVersion,
}

fn parse_level(text: &str) -> Result<Level, &'static str> {
    match text {
        "privileged" => Ok(Level::Privileged),
        "baseline" => Ok(Level::Baseline),
        "restricted" => Ok(Level::Restricted),
        _ => Err("must be one of privileged, baseline, restricted"),
    }
}

fn parse_version(text: &str) -> Result<u32, &'static str> {
    let minor = text.strip_prefix("v1.").filter(|minor| {
        minor.bytes().all(|b| b.is_ascii_digit()) && (*minor == "0" || !minor.starts_with('0'))
    });
    match (text, minor.and_then(|minor| minor.parse().ok())) {
        ("latest", _) => Ok(u32::MAX),
        (_, Some(minor)) => Ok(minor),
        _ => Err("must be \"latest\" or \"v1.x\""),
    }
}

/// The policy of a namespace, and what is wrong with its labels (`PolicyToEvaluate`). What cannot be read counts as the
/// strictest when enforced, and as nothing when it is only warned of.
fn policy_of(namespace: &Value) -> (Policy, Vec<FieldError>) {
    let mut errors = Vec::new();
    let mut read = |mode: &str, unreadable: Level| {
        let mut error = |key: String, text: &str, why: &str| {
            errors.push(FieldError::invalid(
                &Path::new("metadata").child("labels").key(&key),
                text,
                why,
            ))
        };
        let key = format!("pod-security.kubernetes.io/{mode}");
        let level = meta::label(namespace, &key).map(|text| {
            parse_level(text).map_err(|why| {
                error(key.clone(), text, why);
                unreadable
            })
        });
        let key = format!("pod-security.kubernetes.io/{mode}-version");
        let version = meta::label(namespace, &key).map(|text| {
            parse_version(text).unwrap_or_else(|why| {
                error(key.clone(), text, why);
                u32::MAX
            })
        });
        (level, version)
    };
    let (enforce_level, enforce_version) = read("enforce", Level::Restricted);
    read("audit", Level::Privileged);
    let (warn_level, warn_version) = read("warn", Level::Privileged);
    let settle = |level: Option<Result<Level, Level>>| {
        level.map_or(Level::Privileged, |level| {
            level.unwrap_or_else(|unreadable| unreadable)
        })
    };
    let enforce = LevelVersion {
        level: settle(enforce_level),
        minor: enforce_version.unwrap_or(u32::MAX),
    };
    let mut warn = LevelVersion {
        level: settle(warn_level),
        minor: warn_version.unwrap_or(u32::MAX),
    };
    // What is enforced is warned of too, for controllers, whose Pods would be refused later and out of sight.
    if warn_level.is_none() && matches!(enforce_level, Some(Ok(level)) if level > warn.level) {
        warn.level = enforce.level;
        if warn_version.is_none() {
            warn.minor = enforce.minor;
        }
    }
    (Policy { enforce, warn }, errors)
}

fn found(pod: &Value, policy: LevelVersion) -> Option<Vec<checks::Violation>> {
    let all = violations(
        &Subject {
            pod,
            minor: policy.minor,
        },
        policy.level,
    );
    (policy.level != Level::Privileged && !all.is_empty()).then_some(all)
}

/// The plugin.
pub(super) struct PodSecurity {
    pub(super) objects: Objects,
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let info = &request.request;
        match (
            info.group.as_str(),
            info.resource.as_str(),
            info.subresource.as_str(),
        ) {
            ("", "namespaces", "") => self.namespace(request).await,
            (
                "",
                "pods",
                "exec" | "attach" | "binding" | "eviction" | "log" | "portforward" | "proxy"
                | "status",
            ) => Ok(()),
            ("", "pods", _) => self.pod(request).await,
            ("", "podtemplates", "") => self.template(request, &[]).await,
            ("", "replicationcontrollers", "")
            | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets", "")
            | ("batch", "jobs", "") => self.template(request, &["spec"]).await,
            ("batch", "cronjobs", "") => {
                self.template(request, &["spec", "jobTemplate", "spec"])
                    .await
            }
            _ => Ok(()),
        }
    }
}

impl PodSecurity {
    async fn policy(&self, request: &AdmissionRequest) -> Result<Policy, ApiError> {
        let name = &request.request.namespace;
        let namespace = self.objects.find("", "namespaces", "", name).await?;
        let namespace = namespace
            .ok_or_else(|| ApiError::internal(format!("failed to lookup namespace {name:?}")))?;
        Ok(policy_of(&namespace).0)
    }

    async fn pod(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let policy = self.policy(request).await?;
        let Some(pod) = &request.object else {
            return Ok(());
        };
        if request.operation == Operation::Update
            && request
                .old_object
                .as_deref()
                .is_some_and(|old| !significant(pod, old))
        {
            return Ok(());
        }
        if let Some(all) = found(pod, policy.enforce) {
            return Err(request.forbidden(format!(
                "violates PodSecurity \"{}\": {}",
                policy.enforce,
                describe(&all)
            )));
        }
        if let Some(all) = found(pod, policy.warn) {
            request.warnings.push(format!(
                "would violate PodSecurity \"{}\": {}",
                policy.warn,
                describe(&all)
            ));
        }
        Ok(())
    }

    /// Controllers are never refused; their Pods will be.
    async fn template(
        &self,
        request: &mut AdmissionRequest,
        path: &[&str],
    ) -> Result<(), ApiError> {
        let policy = self.policy(request).await?;
        let Some(template) = request
            .object
            .as_ref()
            .and_then(|object| value::get(object, &[path, &["template"]].concat()))
        else {
            return Ok(());
        };
        if let Some(all) = found(template, policy.warn) {
            request.warnings.push(format!(
                "would violate PodSecurity \"{}\": {}",
                policy.warn,
                describe(&all)
            ));
        }
        Ok(())
    }

    async fn namespace(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some(namespace) = &request.object else {
            return Ok(());
        };
        let (new, errors) = policy_of(namespace);
        let invalid = |errors| {
            Err(ApiError::invalid(
                &GroupKind::new("", "Namespace"),
                meta::name(namespace),
                errors,
            ))
        };
        let Some(old) = request
            .old_object
            .as_deref()
            .filter(|_| request.operation == Operation::Update)
        else {
            return if errors.is_empty() {
                Ok(())
            } else {
                invalid(errors)
            };
        };
        let (old, old_errors) = policy_of(old);
        if !errors.is_empty() && errors != old_errors {
            return invalid(errors);
        }
        let relaxed =
            new.enforce.minor == old.enforce.minor && new.enforce.level <= old.enforce.level;
        if new.enforce == old.enforce || new.enforce.level == Level::Privileged || relaxed {
            return Ok(());
        }
        let name = meta::name(namespace).to_owned();
        let pods = self.objects.list("", "pods", Some(&name)).await?;
        request
            .warnings
            .extend(existing_pods(&name, &pods, new.enforce));
        Ok(())
    }
}

/// Whether an update changes what the policy looks at: images, or the set of containers (`isSignificantPodUpdate`).
fn significant(pod: &Value, old: &Value) -> bool {
    let images = |pod: &Value, list: &str| -> Vec<String> {
        value::items(pod, &["spec", list])
            .iter()
            .map(|container| value::str_or_empty(container, &["image"]).to_owned())
            .collect()
    };
    let ephemeral = |pod: &Value| -> BTreeMap<String, String> {
        let text =
            |container: &Value, field: &str| value::str_or_empty(container, &[field]).to_owned();
        value::items(pod, &["spec", "ephemeralContainers"])
            .iter()
            .map(|container| (text(container, "name"), text(container, "image")))
            .collect()
    };
    let (new_ephemeral, old_ephemeral) = (ephemeral(pod), ephemeral(old));
    ["containers", "initContainers"]
        .iter()
        .any(|list| images(pod, list) != images(old, list))
        || new_ephemeral
            .iter()
            .any(|(name, image)| old_ephemeral.get(name) != Some(image))
}

/// Warnings for the Pods that a stricter namespace would not take any more.
fn existing_pods(
    namespace: &str,
    pods: &[std::sync::Arc<Value>],
    enforce: LevelVersion,
) -> Vec<String> {
    let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in pods.iter().take(MAX_PODS_CHECKED) {
        if let Some(all) = found(pod, enforce) {
            let reasons: Vec<&str> = all
                .iter()
                .map(|violation| violation.reason.as_str())
                .collect();
            by_reason
                .entry(reasons.join(", "))
                .or_default()
                .push(meta::name(pod));
        }
    }
    let mut warnings = Vec::new();
    if pods.len() > MAX_PODS_CHECKED {
        warnings.push(format!("new PodSecurity enforce level only checked against the first {MAX_PODS_CHECKED} of {} existing pods", pods.len()));
    }
    if !by_reason.is_empty() {
        warnings.push(format!("existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""));
    }
    let mut lines: Vec<String> = by_reason
        .into_iter()
        .map(|(reason, names)| {
            let first = names.iter().min().copied().unwrap_or_default();
            match names.len() {
                1 => format!("{first}: {reason}"),
                2 => format!("{first} (and 1 other pod): {reason}"),
                many => format!("{first} (and {} other pods): {reason}", many - 1),
            }
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    warnings
}
