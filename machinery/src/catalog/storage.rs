//! Where each resource is stored and as what, and the priorities by which discovery orders groups and versions.

use std::cmp::Ordering;

/// Where and in which version the objects of a resource are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageFacts {
    /// Below `/registry/`, without slashes at the ends: `pods`, `services/specs`,
    /// `apiextensions.k8s.io/customresourcedefinitions`. The key is
    /// `/registry/<prefix>/[<namespace>/]<name>`.
    pub prefix: String,
    /// Group of the stored objects.
    pub group: String,
    /// Version of the stored objects.
    pub version: String,
    /// Kind of the stored objects.
    pub kind: String,
}

impl StorageFacts {
    /// The facts of a built-in resource, the same for all its served versions.
    pub fn builtin(group: &str, resource: &str, kind: &str) -> StorageFacts {
        // Both groups' events are one resource, stored as core's (AddCohabitatingResources).
        let stored_group = match (group, resource) {
            ("events.k8s.io", "events") => "",
            _ => group,
        };
        StorageFacts {
            prefix: prefix(stored_group, resource),
            group: stored_group.to_string(),
            version: storage_version(stored_group, resource).to_string(),
            kind: kind.to_string(),
        }
    }

    /// The facts of a custom resource.
    pub fn custom(group: &str, storage_version: &str, resource: &str, kind: &str) -> StorageFacts {
        StorageFacts {
            prefix: format!("{group}/{resource}"),
            group: group.to_string(),
            version: storage_version.to_string(),
            kind: kind.to_string(),
        }
    }

    /// The etcd key of an object, or of all objects (of a namespace) when parts are left out; those end in a slash.
    pub fn key(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut key = format!("/registry/{}/", self.prefix);
        if let Some(namespace) = namespace {
            key.push_str(namespace);
            key.push('/');
        }
        if let Some(name) = name {
            key.push_str(name);
        }
        key
    }
}

/// `kubeapiserver.SpecialDefaultResourcePrefixes`; the two delegated servers (apiextensions, aggregator) put the
/// group in front, the main server does not.
fn prefix(group: &str, resource: &str) -> String {
    match (group, resource) {
        ("", "replicationcontrollers") => "controllers".to_string(),
        ("", "endpoints") => "services/endpoints".to_string(),
        ("", "nodes") => "minions".to_string(),
        ("", "services") => "services/specs".to_string(),
        ("networking.k8s.io", "ingresses") => "ingress".to_string(),
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", _) => format!("{group}/{resource}"),
        _ => resource.to_string(),
    }
}

/// The version written to the store: overrides of `NewStorageFactoryConfigEffectiveVersion`, else the group's first
/// version in the scheme's order that the previous release already knew.
fn storage_version(group: &str, resource: &str) -> &'static str {
    match (group, resource) {
        ("coordination.k8s.io", "leasecandidates")
        | (
            "admissionregistration.k8s.io",
            "mutatingadmissionpolicies" | "mutatingadmissionpolicybindings",
        )
        | ("certificates.k8s.io", "clustertrustbundles" | "podcertificaterequests")
        | ("storagemigration.k8s.io", _) => "v1beta1",
        ("resource.k8s.io", "devicetaintrules" | "resourcepoolstatusrequests") => "v1alpha3",
        ("scheduling.k8s.io", "workloads" | "podgroups") => "v1alpha2",
        ("internal.apiserver.k8s.io", _) => "v1alpha1",
        ("autoscaling", _) => "v2",
        _ => "v1",
    }
}

/// Priority of the group and of the version within it, as upstream's APIServices have them
/// (`DefaultGenericAPIServicePriorities`, `apiVersionPriorities`); higher comes first. Others, such as those of
/// custom resources, get 1000 and 100.
pub fn priority(group: &str, version: &str) -> (i32, i32) {
    match (group, version) {
        ("", "v1") => (18000, 1),
        ("apps", "v1") => (17800, 15),
        ("events.k8s.io", "v1") => (17750, 15),
        ("authentication.k8s.io", "v1") => (17700, 15),
        ("authorization.k8s.io", "v1") => (17600, 15),
        ("autoscaling", "v1") => (17500, 15),
        ("autoscaling", "v2") => (17500, 30),
        ("batch", "v1") => (17400, 15),
        ("certificates.k8s.io", "v1") => (17300, 15),
        ("certificates.k8s.io", "v1beta1") => (17300, 9),
        ("certificates.k8s.io", "v1alpha1") => (17300, 1),
        ("networking.k8s.io", "v1") => (17200, 15),
        ("networking.k8s.io", "v1beta1") => (17200, 9),
        ("policy", "v1") => (17100, 15),
        ("rbac.authorization.k8s.io", "v1") => (17000, 15),
        ("storage.k8s.io", "v1") => (16800, 15),
        ("storage.k8s.io", "v1beta1") => (16800, 9),
        ("storage.k8s.io", "v1alpha1") => (16800, 1),
        ("apiextensions.k8s.io", "v1") => (16700, 15),
        ("admissionregistration.k8s.io", "v1") => (16700, 15),
        ("admissionregistration.k8s.io", "v1beta1") => (16700, 12),
        ("admissionregistration.k8s.io", "v1alpha1") => (16700, 9),
        ("scheduling.k8s.io", "v1") => (16600, 15),
        ("scheduling.k8s.io", "v1alpha2") => (16600, 2),
        ("coordination.k8s.io", "v1") => (16500, 15),
        ("coordination.k8s.io", "v1beta1") => (16500, 13),
        ("coordination.k8s.io", "v1alpha2") => (16500, 12),
        ("node.k8s.io", "v1") => (16300, 15),
        ("discovery.k8s.io", "v1") => (16200, 15),
        ("resource.k8s.io", "v1") => (16200, 21),
        ("resource.k8s.io", "v1beta2") => (16200, 15),
        ("resource.k8s.io", "v1beta1") => (16200, 9),
        ("resource.k8s.io", "v1alpha3") => (16200, 1),
        ("flowcontrol.apiserver.k8s.io", "v1") => (16100, 21),
        ("internal.apiserver.k8s.io", "v1alpha1") => (16000, 9),
        ("storagemigration.k8s.io", "v1beta1") => (15800, 9),
        // The aggregator registers itself with its own priorities.
        ("apiregistration.k8s.io", "v1") => (20000, 100),
        _ => (1000, 100),
    }
}

/// Kubernetes' order of version names (`version.CompareKubeAwareVersionStrings`): `v2 > v1 > v2beta1 > v1beta2 >
/// v1alpha1 >` anything else, the latter alphabetically.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// Stability (GA 2, beta 1, alpha 0), major, minor.
fn parse_version(text: &str) -> Option<(u8, u64, u64)> {
    let rest = text.strip_prefix('v')?;
    let number = |s: &str| -> Option<u64> {
        (!s.starts_with('0')).then_some(())?;
        s.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        s.parse().ok()
    };
    for (word, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, number(major)?, number(minor)?));
        }
    }
    Some((2, number(rest)?, 0))
}
