//! In which order groups and versions stand in discovery, and so which one a client prefers: the priorities that the
//! server's own group versions are registered with (upstream `DefaultGenericAPIServicePriorities` and
//! `cmd/kube-apiserver/app/aggregator.go`), and the order that follows of all.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use keelson_machinery::catalog::Group;

use super::{GROUP, Table};

/// Group, its priority, and its versions with theirs.
type Row = (&'static str, i64, &'static [(&'static str, i64)]);

/// What is registered at start.
const OWN: [Row; 23] = [
    ("", 18000, &[("v1", 1)]),
    ("apps", 17800, &[("v1", 15)]),
    ("events.k8s.io", 17750, &[("v1", 15)]),
    ("authentication.k8s.io", 17700, &[("v1", 15)]),
    ("authorization.k8s.io", 17600, &[("v1", 15)]),
    ("autoscaling", 17500, &[("v1", 15), ("v2", 30)]),
    ("batch", 17400, &[("v1", 15)]),
    (
        "certificates.k8s.io",
        17300,
        &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)],
    ),
    ("networking.k8s.io", 17200, &[("v1", 15), ("v1beta1", 9)]),
    ("policy", 17100, &[("v1", 15)]),
    ("rbac.authorization.k8s.io", 17000, &[("v1", 15)]),
    ("storage.k8s.io", 16800, &[("v1", 15), ("v1beta1", 9)]),
    ("apiextensions.k8s.io", 16700, &[("v1", 15)]),
    (
        "admissionregistration.k8s.io",
        16700,
        &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)],
    ),
    ("scheduling.k8s.io", 16600, &[("v1", 15), ("v1alpha2", 2)]),
    (
        "coordination.k8s.io",
        16500,
        &[("v1", 15), ("v1beta1", 13), ("v1alpha2", 12)],
    ),
    ("node.k8s.io", 16300, &[("v1", 15)]),
    ("discovery.k8s.io", 16200, &[("v1", 15)]),
    (
        "resource.k8s.io",
        16200,
        &[("v1", 21), ("v1beta2", 15), ("v1beta1", 9), ("v1alpha3", 1)],
    ),
    ("flowcontrol.apiserver.k8s.io", 16100, &[("v1", 21)]),
    ("internal.apiserver.k8s.io", 16000, &[("v1alpha1", 9)]),
    ("storagemigration.k8s.io", 15800, &[("v1beta1", 9)]),
    // Never registered, and always first.
    (GROUP, 20000, &[("v1", 15)]),
];

/// Of group versions of custom resources (upstream `crdRegistrationController`).
pub const CUSTOM: (i64, i64) = (1000, 100);

/// The priorities of a group version of this server's own.
pub fn own(group: &str, version: &str) -> Option<(i64, i64)> {
    let (_, group_priority, versions) = OWN.iter().find(|(name, _, _)| *name == group)?;
    let (_, priority) = versions.iter().find(|(name, _)| *name == version)?;
    Some((*group_priority, *priority))
}

/// `local` group versions and those of other servers, in order.
pub(super) fn merge(local: Vec<Group>, table: &Table) -> Vec<Group> {
    // By group: the priority, and the versions with theirs.
    let mut groups: BTreeMap<String, (i64, Vec<(i64, String)>)> = BTreeMap::new();
    let mut add = |group: &str, version: &str| {
        let key = (group.to_owned(), version.to_owned());
        let (of_group, of_version) = match table.get(&key) {
            Some(service) => (service.group_priority, service.version_priority),
            None => own(group, version).unwrap_or(CUSTOM),
        };
        let known = groups.entry(group.to_owned()).or_default();
        known.0 = known.0.max(of_group);
        if !known.1.iter().any(|(_, known)| known == version) {
            known.1.push((of_version, version.to_owned()));
        }
    };
    for group in &local {
        for version in &group.versions {
            add(&group.name, version);
        }
    }
    for service in table.values().filter(|service| service.target.is_some()) {
        add(&service.group, &service.version);
    }
    let mut sorted: Vec<_> = groups.into_iter().collect();
    sorted.sort_by_key(|(name, (priority, _))| (Reverse(*priority), name.clone()));
    sorted
        .into_iter()
        .map(|(name, (_, mut versions))| {
            versions.sort_by(|(a, one), (b, other)| {
                b.cmp(a).then_with(|| compare_versions(other, one))
            });
            Group {
                name,
                versions: versions.into_iter().map(|(_, version)| version).collect(),
            }
        })
        .collect()
}

/// How mature a version is, by its name: `v2 > v1 > v2beta1 > v1beta2 > v1alpha1`, and anything else below, by the
/// alphabet from the end (upstream `version.CompareKubeAwareVersionStrings`).
pub fn compare_versions(one: &str, other: &str) -> Ordering {
    match (parse_version(one), parse_version(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => other.cmp(one),
    }
}

/// Stability, major and minor number.
fn parse_version(version: &str) -> Option<(u8, u32, u32)> {
    let rest = version.strip_prefix('v')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let number = |text: &str| {
        let plain = !text.is_empty() && !text.starts_with('0');
        plain.then(|| text.parse().ok()).flatten()
    };
    let major = number(&rest[..end])?;
    let suffix = &rest[end..];
    if suffix.is_empty() {
        return Some((2, major, 0));
    }
    for (word, stability) in [("beta", 1), ("alpha", 0)] {
        if let Some(minor) = suffix.strip_prefix(word) {
            return Some((stability, major, number(minor)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::aggregation::ApiService;

    #[test]
    fn versions_by_maturity() {
        let mut names = [
            "v1alpha1",
            "foo1",
            "v1",
            "v11beta2",
            "v2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "bar",
            "v1beta1x",
        ];
        names.sort_by(|a, b| compare_versions(b, a));
        let expected = [
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v1alpha1",
            "bar",
            "foo1",
            "v1beta1x",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn groups_of_all_servers_in_order() {
        let group = |name: &str, versions: &[&str]| Group {
            name: name.to_owned(),
            versions: versions
                .iter()
                .map(|version| (*version).to_owned())
                .collect(),
        };
        let service = |group: &str, version: &str, priorities: (i64, i64), remote: bool| {
            let service = ApiService {
                name: format!("{version}.{group}"),
                group: group.to_owned(),
                version: version.to_owned(),
                group_priority: priorities.0,
                version_priority: priorities.1,
                target: remote.then(|| super::super::Target {
                    namespace: String::new(),
                    name: String::new(),
                    port: 443,
                    tls: Err(String::new()),
                    object: Arc::default(),
                }),
                available: true,
            };
            ((group.to_owned(), version.to_owned()), Arc::new(service))
        };
        let table = Table::from([
            service("metrics.k8s.io", "v1beta1", (100, 100), true),
            service("early.example.com", "v1", (18500, 10), true),
            service("custom.example.com", "v2", (1000, 200), true),
            // Not served by anybody any more.
            service("gone.example.com", "v1", (1000, 100), false),
        ]);
        let local = vec![
            group("autoscaling", &["v1", "v2"]),
            group("", &["v1"]),
            group(GROUP, &["v1"]),
            group("custom.example.com", &["v1"]),
            group("another.example.com", &["v1beta1", "v1"]),
        ];
        let merged: Vec<String> = merge(local, &table)
            .iter()
            .map(|group| format!("{}:{}", group.name, group.versions.join(",")))
            .collect();
        assert_eq!(
            merged,
            [
                "apiregistration.k8s.io:v1",
                "early.example.com:v1",
                ":v1",
                "autoscaling:v2,v1",
                "another.example.com:v1,v1beta1",
                "custom.example.com:v2,v1",
                "metrics.k8s.io:v1beta1",
            ]
        );
    }
}
