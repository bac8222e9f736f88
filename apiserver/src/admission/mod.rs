//! Admission: what a create, update, delete or connect must pass after authorization, in upstream's plugin order.
//!
//! First every plugin may change the object ([`Plugin::admit`]), then, when the object is final and valid, every plugin
//! may refuse it ([`Plugin::validate`]). [`plugins`] builds the list that a server runs.

mod bound_pod;
mod certificates;
mod limit_ranger;
mod namespace;
mod node;
pub mod notes;
mod pod;
mod pod_security;
pub mod policy;
mod reinvocation;
pub mod resource_quota;
mod service_account;
mod storage;
#[cfg(test)]
mod tests;
pub mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use crate::authz::Authorizer;
use crate::authz::escalation::EscalationCheck;
use crate::authz::rbac::Rbac;
use crate::objects::Objects;
use crate::request::{RequestInfo, UserInfo};

pub use notes::Notes;
pub use reinvocation::{Invocations, Reinvocation};

/// The kind of change (`k8s.io/apiserver/pkg/admission.Operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object, patches and status updates included.
    Update,
    /// A deletion.
    Delete,
    /// exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    /// Upstream's word for it, as webhooks and messages have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// Everything a plugin may look at, and the object that mutating plugins may change.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// The kind of change.
    pub operation: Operation,
    /// The request (group, version, resource, subresource, namespace, name).
    pub request: RequestInfo,
    /// Kind of the object in the request.
    pub kind: String,
    /// API group of that kind.
    pub kind_group: String,
    /// Version of that kind.
    pub kind_version: String,
    /// Who asks.
    pub user: UserInfo,
    /// The new object; `None` for deletes.
    pub object: Option<Value>,
    /// The stored object, for updates and deletes.
    pub old_object: Option<Arc<Value>>,
    /// The `CreateOptions`, `UpdateOptions` or `DeleteOptions` of the request.
    pub options: Value,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// Warnings for the client, sent as `Warning` headers.
    pub warnings: Vec<String>,
    /// Annotations for the audit log.
    pub annotations: BTreeMap<String, String>,
    /// Whether mutating plugins run again, and which.
    pub reinvocation: Reinvocation,
}

impl AdmissionRequest {
    /// Whether this is about `group`'s `resource` itself or its `subresource` (empty: the resource itself).
    pub fn is(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.request.resource == resource
            && self.request.group == group
            && self.request.subresource == subresource
    }

    /// The resource of the request.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.request.group.as_str(), self.request.resource.as_str())
    }

    /// Adds audit annotations; the first one under a key stays.
    pub fn annotate(&mut self, annotations: impl IntoIterator<Item = (String, String)>) {
        for (key, value) in annotations {
            self.annotations.entry(key).or_insert(value);
        }
    }

    /// The 403 of a plugin that refuses (`admission.NewForbidden`). Names are generated after admission, so that an
    /// object may have none yet.
    pub fn forbidden(&self, why: impl std::fmt::Display) -> ApiError {
        let candidates = [
            self.request.name.as_str(),
            self.object.as_ref().map_or("", meta::name),
            self.object.as_ref().map_or("", meta::generate_name),
            "Unknown",
        ];
        let name = candidates
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or_default();
        ApiError::forbidden(&self.group_resource(), name, why)
    }
}

/// One admission plugin.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's plugin name, as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;
    /// May change `request.object`; an error refuses the request.
    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let _ = request;
        Ok(())
    }
    /// Sees the final object; an error refuses the request.
    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let _ = request;
        Ok(())
    }
}

/// All plugins that upstream knows, in the order in which they run (`pkg/kubeapiserver/options.AllOrderedPlugins`), and
/// whether they are on by default. A plugin that is on by default and not here yet is one that only acts on webhooks,
/// policies or features that are not served.
const ORDER: [(&str, bool); 39] = [
    ("AlwaysAdmit", false),
    ("NamespaceAutoProvision", false),
    ("NamespaceLifecycle", true),
    ("NamespaceExists", false),
    ("LimitPodHardAntiAffinityTopology", false),
    ("LimitRanger", true),
    ("ServiceAccount", true),
    ("NodeRestriction", false),
    ("TaintNodesByCondition", true),
    ("AlwaysPullImages", false),
    ("ImagePolicyWebhook", false),
    ("PodSecurity", true),
    ("PodNodeSelector", false),
    ("Priority", true),
    ("DefaultTolerationSeconds", true),
    ("PodTolerationRestriction", false),
    ("EventRateLimit", false),
    ("ExtendedResourceToleration", false),
    ("DefaultStorageClass", true),
    ("StorageObjectInUseProtection", true),
    ("PodGroupProtection", true),
    ("OwnerReferencesPermissionEnforcement", false),
    ("PersistentVolumeClaimResize", true),
    ("RuntimeClass", true),
    ("CertificateApproval", true),
    ("CertificateSigning", true),
    ("ClusterTrustBundleAttest", true),
    ("CertificateSubjectRestriction", true),
    ("DefaultIngressClass", true),
    ("DenyServiceExternalIPs", false),
    ("PodTopologyLabels", true),
    ("NodeDeclaredFeatureValidator", true),
    ("PodResizeValidator", true),
    ("MutatingAdmissionPolicy", true),
    ("MutatingAdmissionWebhook", true),
    ("ValidatingAdmissionPolicy", true),
    ("ValidatingAdmissionWebhook", true),
    ("ResourceQuota", true),
    ("AlwaysDeny", false),
];

/// What plugins need of the server.
#[derive(Clone)]
pub struct Dependencies {
    /// Stored objects.
    pub objects: Objects,
    /// Who may what, for plugins that ask on their own account.
    pub authorizer: Arc<dyn Authorizer>,
    /// The RBAC authorizer, when it is one of the modes: grants are checked against it.
    pub rbac: Option<Arc<Rbac>>,
    /// Time and generated names.
    pub clock: Clock,
}

/// A plugin list that cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PluginError {
    /// Upstream has no such plugin.
    #[error("admission-control plugin \"{0}\" is unknown")]
    Unknown(String),
    /// Upstream has it; here it is not served yet, and leaving it out would let through what it refuses.
    #[error("admission plugin \"{0}\" is not supported")]
    Unsupported(String),
    /// Both enabled and disabled.
    #[error("{0} in enable-admission-plugins and disable-admission-plugins overlapped")]
    Overlap(String),
}

/// The plugins of a server, in order. `enable` and `disable` are `--enable-admission-plugins` and
/// `--disable-admission-plugins`; `more` are plugins made elsewhere (webhooks, policies), which find their place by
/// their name.
pub fn plugins(
    dependencies: &Dependencies,
    enable: &[String],
    disable: &[String],
    more: Vec<Arc<dyn Plugin>>,
) -> Result<Vec<Arc<dyn Plugin>>, PluginError> {
    let mut available = more;
    available.extend(own(dependencies));
    let position = |name: &str| ORDER.iter().position(|(known, _)| *known == name);
    for name in enable.iter().chain(disable) {
        position(name).ok_or_else(|| PluginError::Unknown(name.clone()))?;
    }
    for name in enable {
        if disable.contains(name) {
            return Err(PluginError::Overlap(name.clone()));
        }
        if !available.iter().any(|plugin| plugin.name() == name)
            && !ORDER.contains(&(name.as_str(), true))
        {
            return Err(PluginError::Unsupported(name.clone()));
        }
    }
    let on = |name: &str| ORDER.contains(&(name, true)) || enable.iter().any(|one| one == name);
    available.retain(|plugin| on(plugin.name()) && !disable.iter().any(|one| one == plugin.name()));
    available.sort_by_key(|plugin| position(plugin.name()));
    if let Some(rbac) = &dependencies.rbac {
        // Not one of upstream's plugins: upstream checks grants in the registry, between these same two steps.
        available.push(Arc::new(EscalationCheck {
            rbac: rbac.clone(),
            authorizer: dependencies.authorizer.clone(),
        }));
    }
    Ok(available)
}

fn own(dependencies: &Dependencies) -> Vec<Arc<dyn Plugin>> {
    let Dependencies {
        objects,
        authorizer,
        clock,
        ..
    } = dependencies;
    let objects = || objects.clone();
    vec![
        Arc::new(namespace::NamespaceLifecycle { objects: objects() }),
        Arc::new(limit_ranger::LimitRanger { objects: objects() }),
        Arc::new(service_account::ServiceAccount {
            objects: objects(),
            clock: clock.clone(),
        }),
        Arc::new(node::NodeRestriction {
            objects: objects(),
            authorizer: authorizer.clone(),
        }),
        Arc::new(node::TaintNodesByCondition),
        Arc::new(pod_security::PodSecurity { objects: objects() }),
        Arc::new(pod::Priority { objects: objects() }),
        Arc::new(pod::DefaultTolerationSeconds {
            not_ready: 300,
            unreachable: 300,
        }),
        Arc::new(storage::DefaultStorageClass { objects: objects() }),
        Arc::new(storage::StorageObjectInUseProtection),
        Arc::new(storage::PersistentVolumeClaimResize { objects: objects() }),
        Arc::new(pod::RuntimeClass { objects: objects() }),
        Arc::new(certificates::CertificateApproval {
            authorizer: authorizer.clone(),
        }),
        Arc::new(certificates::CertificateSigning {
            authorizer: authorizer.clone(),
        }),
        Arc::new(certificates::CertificateSubjectRestriction),
        Arc::new(certificates::ClusterTrustBundleAttest {
            authorizer: authorizer.clone(),
        }),
        Arc::new(bound_pod::PodTopologyLabels { objects: objects() }),
        Arc::new(bound_pod::PodResizeValidator { objects: objects() }),
        Arc::new(bound_pod::NodeDeclaredFeatureValidator { objects: objects() }),
        Arc::new(storage::DefaultIngressClass { objects: objects() }),
    ]
}

/// The stored object whose default mark (an annotation with the value `true`) is set: the newest, then by name.
pub(crate) fn marked_default<'a>(
    objects: &'a [Arc<Value>],
    marks: &[&str],
) -> Option<&'a Arc<Value>> {
    let marked = objects.iter().filter(|object| {
        marks
            .iter()
            .any(|mark| meta::annotation(object, mark) == Some("true"))
    });
    marked.min_by(|a, b| {
        let time = |object: &Value| {
            meta::creation_timestamp(object)
                .unwrap_or_default()
                .to_owned()
        };
        time(b)
            .cmp(&time(a))
            .then_with(|| meta::name(a).cmp(meta::name(b)))
    })
}
