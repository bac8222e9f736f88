//! What members must be, by type (upstream's validation functions, as far as one member decides).

use keelson_machinery::meta::names;

use super::{
    Check, Rule, admission, config, network, pod, policies, resources, storage, workloads,
};

use Rule::{
    AddressIfSet, Labels, Name, NameAlways, NameIfSet, NotNegative, OneOf, OneOfIfSet, Port,
    PortIfSet, PortOrName, Positive, Range, RangeFor, Required, RequiredFor,
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const FILE_MODE: Rule = RangeFor(
    0,
    0o777,
    "must be a number between 0 and 0777 (octal), both inclusive",
);
const I32_MAX: i64 = i32::MAX as i64;

/// A secret's or config map's name by which others refer to it; a prefix passes.
fn name_or_prefix(name: &str) -> Vec<String> {
    names::name_is_dns_subdomain(name, true)
}

/// Type (without `io.k8s.api.`), a path of members below it, and what stands there.
pub const ROWS: &[(&str, &str, Rule)] = &[
    // Pods.
    ("core.v1.PodSpec", "containers", Required),
    (
        "core.v1.PodSpec",
        "restartPolicy",
        OneOf(&["Always", "OnFailure", "Never"]),
    ),
    (
        "core.v1.PodSpec",
        "dnsPolicy",
        OneOf(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]),
    ),
    ("core.v1.PodSpec", "nodeSelector", Labels),
    (
        "core.v1.PodSpec",
        "serviceAccountName",
        NameIfSet(names::dns1123_subdomain),
    ),
    (
        "core.v1.PodSpec",
        "nodeName",
        NameIfSet(names::dns1123_subdomain),
    ),
    (
        "core.v1.PodSpec",
        "activeDeadlineSeconds",
        Range(1, I32_MAX),
    ),
    (
        "core.v1.PodSpec",
        "hostname",
        NameIfSet(names::dns1123_label),
    ),
    (
        "core.v1.PodSpec",
        "subdomain",
        NameIfSet(names::dns1123_label),
    ),
    (
        "core.v1.PodSpec",
        "priorityClassName",
        NameIfSet(names::dns1123_subdomain),
    ),
    (
        "core.v1.PodSpec",
        "runtimeClassName",
        NameIfSet(names::dns1123_subdomain),
    ),
    (
        "core.v1.PodSpec",
        "preemptionPolicy",
        OneOfIfSet(&["PreemptLowerPriority", "Never"]),
    ),
    (
        "core.v1.PodSpec",
        "os.name",
        OneOfIfSet(&["linux", "windows"]),
    ),
    (
        "core.v1.PodReadinessGate",
        "conditionType",
        NameAlways(names::qualified_name),
    ),
    ("core.v1.HostAlias", "ip", AddressIfSet),
    ("core.v1.Container", "name", Name(names::dns1123_label)),
    ("core.v1.Container", "image", Required),
    (
        "core.v1.Container",
        "terminationMessagePolicy",
        OneOf(&["File", "FallbackToLogsOnError"]),
    ),
    (
        "core.v1.Container",
        "imagePullPolicy",
        OneOf(&["Always", "IfNotPresent", "Never"]),
    ),
    (
        "core.v1.EphemeralContainer",
        "name",
        Name(names::dns1123_label),
    ),
    ("core.v1.EphemeralContainer", "image", Required),
    (
        "core.v1.EphemeralContainer",
        "terminationMessagePolicy",
        OneOf(&["File", "FallbackToLogsOnError"]),
    ),
    (
        "core.v1.EphemeralContainer",
        "imagePullPolicy",
        OneOf(&["Always", "IfNotPresent", "Never"]),
    ),
    ("core.v1.ContainerPort", "containerPort", Port),
    ("core.v1.ContainerPort", "hostPort", PortIfSet),
    ("core.v1.ContainerPort", "protocol", OneOf(PROTOCOLS)),
    ("core.v1.EnvVar", "name", Name(names::relaxed_env_var_name)),
    (
        "core.v1.EnvFromSource",
        "prefix",
        NameIfSet(names::relaxed_env_var_name),
    ),
    ("core.v1.ConfigMapEnvSource", "name", Name(name_or_prefix)),
    ("core.v1.SecretEnvSource", "name", Name(name_or_prefix)),
    (
        "core.v1.ConfigMapKeySelector",
        "name",
        NameAlways(names::dns1123_subdomain),
    ),
    (
        "core.v1.ConfigMapKeySelector",
        "key",
        Name(names::config_map_key),
    ),
    (
        "core.v1.SecretKeySelector",
        "name",
        NameAlways(names::dns1123_subdomain),
    ),
    (
        "core.v1.SecretKeySelector",
        "key",
        Name(names::config_map_key),
    ),
    (
        "core.v1.FileKeySelector",
        "key",
        Name(names::relaxed_env_var_name),
    ),
    (
        "core.v1.FileKeySelector",
        "volumeName",
        Name(names::dns1123_label),
    ),
    ("core.v1.FileKeySelector", "path", Required),
    ("core.v1.Probe", "initialDelaySeconds", NotNegative),
    ("core.v1.Probe", "timeoutSeconds", NotNegative),
    ("core.v1.Probe", "periodSeconds", NotNegative),
    ("core.v1.Probe", "successThreshold", NotNegative),
    ("core.v1.Probe", "failureThreshold", NotNegative),
    ("core.v1.Probe", "terminationGracePeriodSeconds", Positive),
    ("core.v1.ExecAction", "command", Required),
    ("core.v1.HTTPGetAction", "path", Required),
    ("core.v1.HTTPGetAction", "port", PortOrName),
    ("core.v1.HTTPGetAction", "scheme", OneOf(&["HTTP", "HTTPS"])),
    ("core.v1.TCPSocketAction", "port", PortOrName),
    ("core.v1.GRPCAction", "port", PortOrName),
    ("core.v1.PodSecurityContext", "runAsUser", Range(0, I32_MAX)),
    (
        "core.v1.PodSecurityContext",
        "runAsGroup",
        Range(0, I32_MAX),
    ),
    ("core.v1.PodSecurityContext", "fsGroup", Range(0, I32_MAX)),
    (
        "core.v1.PodSecurityContext",
        "fsGroupChangePolicy",
        OneOfIfSet(&["Always", "OnRootMismatch"]),
    ),
    (
        "core.v1.PodSecurityContext",
        "supplementalGroupsPolicy",
        OneOfIfSet(&["Merge", "Strict"]),
    ),
    ("core.v1.SecurityContext", "runAsUser", Range(0, I32_MAX)),
    ("core.v1.SecurityContext", "runAsGroup", Range(0, I32_MAX)),
    (
        "core.v1.SecurityContext",
        "procMount",
        OneOfIfSet(&["Default", "Unmasked"]),
    ),
    (
        "core.v1.SeccompProfile",
        "type",
        OneOf(&["Localhost", "RuntimeDefault", "Unconfined"]),
    ),
    (
        "core.v1.AppArmorProfile",
        "type",
        OneOf(&["Localhost", "RuntimeDefault", "Unconfined"]),
    ),
    ("core.v1.TopologySpreadConstraint", "maxSkew", Positive),
    (
        "core.v1.TopologySpreadConstraint",
        "topologyKey",
        RequiredFor("can not be empty"),
    ),
    (
        "core.v1.TopologySpreadConstraint",
        "whenUnsatisfiable",
        OneOfIfSet(&["DoNotSchedule", "ScheduleAnyway"]),
    ),
    (
        "core.v1.TopologySpreadConstraint",
        "nodeAffinityPolicy",
        OneOfIfSet(&["Honor", "Ignore"]),
    ),
    (
        "core.v1.TopologySpreadConstraint",
        "nodeTaintsPolicy",
        OneOfIfSet(&["Honor", "Ignore"]),
    ),
    (
        "core.v1.PreferredSchedulingTerm",
        "weight",
        RangeFor(1, 100, "must be in the range 1-100"),
    ),
    (
        "core.v1.WeightedPodAffinityTerm",
        "weight",
        RangeFor(1, 100, "must be in the range 1-100"),
    ),
    (
        "core.v1.PodAffinityTerm",
        "topologyKey",
        RequiredFor("can not be empty"),
    ),
    (
        "core.v1.PodAffinityTerm",
        "topologyKey",
        NameAlways(names::qualified_name),
    ),
    (
        "core.v1.NodeSelector",
        "nodeSelectorTerms",
        RequiredFor("must have at least one node selector term"),
    ),
    (
        "core.v1.PodDNSConfigOption",
        "name",
        RequiredFor("must not be empty"),
    ),
    // Volumes.
    ("core.v1.Volume", "name", Name(names::dns1123_label)),
    ("core.v1.SecretVolumeSource", "secretName", Required),
    ("core.v1.SecretVolumeSource", "defaultMode", FILE_MODE),
    ("core.v1.ConfigMapVolumeSource", "name", Required),
    ("core.v1.ConfigMapVolumeSource", "defaultMode", FILE_MODE),
    ("core.v1.DownwardAPIVolumeSource", "defaultMode", FILE_MODE),
    ("core.v1.ProjectedVolumeSource", "defaultMode", FILE_MODE),
    ("core.v1.SecretProjection", "name", Required),
    ("core.v1.ConfigMapProjection", "name", Required),
    ("core.v1.ServiceAccountTokenProjection", "path", Required),
    ("core.v1.KeyToPath", "key", Required),
    ("core.v1.KeyToPath", "path", Required),
    ("core.v1.KeyToPath", "mode", FILE_MODE),
    ("core.v1.DownwardAPIVolumeFile", "path", Required),
    ("core.v1.DownwardAPIVolumeFile", "mode", FILE_MODE),
    ("core.v1.HostPathVolumeSource", "path", Required),
    (
        "core.v1.HostPathVolumeSource",
        "type",
        OneOfIfSet(&[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ]),
    ),
    ("core.v1.NFSVolumeSource", "server", Required),
    ("core.v1.NFSVolumeSource", "path", Required),
    (
        "core.v1.PersistentVolumeClaimVolumeSource",
        "claimName",
        Required,
    ),
    ("core.v1.CSIVolumeSource", "driver", Required),
    ("core.v1.CSIPersistentVolumeSource", "driver", Required),
    (
        "core.v1.CSIPersistentVolumeSource",
        "volumeHandle",
        Required,
    ),
    ("core.v1.LocalVolumeSource", "path", Required),
    (
        "core.v1.EphemeralVolumeSource",
        "volumeClaimTemplate",
        Required,
    ),
    // Workloads.
    (
        "core.v1.ReplicationControllerSpec",
        "minReadySeconds",
        NotNegative,
    ),
    ("core.v1.ReplicationControllerSpec", "replicas", NotNegative),
    ("core.v1.ReplicationControllerSpec", "selector", Required),
    ("core.v1.ReplicationControllerSpec", "template", Required),
    ("apps.v1.ReplicaSetSpec", "replicas", NotNegative),
    ("apps.v1.ReplicaSetSpec", "minReadySeconds", NotNegative),
    ("apps.v1.DeploymentSpec", "replicas", NotNegative),
    ("apps.v1.DeploymentSpec", "minReadySeconds", NotNegative),
    (
        "apps.v1.DeploymentSpec",
        "revisionHistoryLimit",
        NotNegative,
    ),
    (
        "apps.v1.DeploymentSpec",
        "progressDeadlineSeconds",
        NotNegative,
    ),
    ("apps.v1.StatefulSetSpec", "replicas", NotNegative),
    ("apps.v1.StatefulSetSpec", "minReadySeconds", NotNegative),
    ("apps.v1.StatefulSetSpec", "ordinals.start", NotNegative),
    (
        "apps.v1.RollingUpdateStatefulSetStrategy",
        "partition",
        NotNegative,
    ),
    (
        "apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicy",
        "whenDeleted",
        OneOf(&["Retain", "Delete"]),
    ),
    (
        "apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicy",
        "whenScaled",
        OneOf(&["Retain", "Delete"]),
    ),
    ("apps.v1.DaemonSetSpec", "minReadySeconds", NotNegative),
    ("apps.v1.DaemonSetSpec", "revisionHistoryLimit", NotNegative),
    ("apps.v1.ControllerRevision", "revision", NotNegative),
    (
        "apps.v1.ControllerRevision",
        "data",
        RequiredFor("data is mandatory"),
    ),
    ("batch.v1.JobSpec", "parallelism", NotNegative),
    ("batch.v1.JobSpec", "completions", NotNegative),
    ("batch.v1.JobSpec", "activeDeadlineSeconds", NotNegative),
    ("batch.v1.JobSpec", "backoffLimit", NotNegative),
    ("batch.v1.JobSpec", "ttlSecondsAfterFinished", NotNegative),
    ("batch.v1.JobSpec", "backoffLimitPerIndex", NotNegative),
    ("batch.v1.JobSpec", "maxFailedIndexes", NotNegative),
    (
        "batch.v1.JobSpec",
        "completionMode",
        OneOfIfSet(&["NonIndexed", "Indexed"]),
    ),
    ("batch.v1.CronJobSpec", "schedule", Required),
    (
        "batch.v1.CronJobSpec",
        "startingDeadlineSeconds",
        NotNegative,
    ),
    (
        "batch.v1.CronJobSpec",
        "concurrencyPolicy",
        OneOf(&["Allow", "Forbid", "Replace"]),
    ),
    (
        "batch.v1.CronJobSpec",
        "successfulJobsHistoryLimit",
        NotNegative,
    ),
    (
        "batch.v1.CronJobSpec",
        "failedJobsHistoryLimit",
        NotNegative,
    ),
    (
        "autoscaling.v2.CrossVersionObjectReference",
        "kind",
        Required,
    ),
    (
        "autoscaling.v2.CrossVersionObjectReference",
        "name",
        Required,
    ),
    // Network.
    (
        "core.v1.ServiceSpec",
        "type",
        OneOf(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
    ),
    (
        "core.v1.ServiceSpec",
        "sessionAffinity",
        OneOf(&["ClientIP", "None"]),
    ),
    ("core.v1.ServiceSpec", "selector", Labels),
    ("core.v1.ServicePort", "port", Range(1, 65535)),
    ("core.v1.ServicePort", "protocol", OneOf(PROTOCOLS)),
    ("core.v1.ServicePort", "targetPort", PortOrName),
    ("core.v1.EndpointAddress", "ip", Required),
    ("core.v1.EndpointAddress", "ip", AddressIfSet),
    ("core.v1.EndpointPort", "port", Range(1, 65535)),
    ("core.v1.EndpointPort", "protocol", OneOf(PROTOCOLS)),
    (
        "discovery.v1.EndpointSlice",
        "addressType",
        OneOf(&["FQDN", "IPv4", "IPv6"]),
    ),
    (
        "discovery.v1.Endpoint",
        "addresses",
        RequiredFor("must contain at least 1 address"),
    ),
    ("discovery.v1.EndpointPort", "protocol", OneOf(PROTOCOLS)),
    ("networking.v1.HTTPIngressRuleValue", "paths", Required),
    (
        "networking.v1.IngressSpec",
        "ingressClassName",
        NameIfSet(names::dns1123_subdomain),
    ),
    (
        "networking.v1.IngressClassParametersReference",
        "kind",
        Required,
    ),
    (
        "networking.v1.IngressClassParametersReference",
        "name",
        Required,
    ),
    (
        "networking.v1.NetworkPolicyPort",
        "protocol",
        OneOfIfSet(&["TCP", "UDP", "SCTP"]),
    ),
    ("networking.v1.IPBlock", "cidr", Required),
    // Nodes and storage.
    ("core.v1.PersistentVolumeSpec", "accessModes", Required),
    ("core.v1.PersistentVolumeSpec", "capacity", Required),
    (
        "core.v1.PersistentVolumeSpec",
        "persistentVolumeReclaimPolicy",
        OneOfIfSet(&["Delete", "Recycle", "Retain"]),
    ),
    (
        "core.v1.PersistentVolumeSpec",
        "storageClassName",
        NameIfSet(names::dns1123_subdomain),
    ),
    (
        "core.v1.PersistentVolumeSpec",
        "volumeMode",
        OneOfIfSet(&["Block", "Filesystem"]),
    ),
    (
        "core.v1.PersistentVolumeClaimSpec",
        "accessModes",
        RequiredFor("at least 1 access mode is required"),
    ),
    (
        "core.v1.PersistentVolumeClaimSpec",
        "storageClassName",
        NameIfSet(names::dns1123_subdomain),
    ),
    (
        "core.v1.PersistentVolumeClaimSpec",
        "volumeMode",
        OneOfIfSet(&["Block", "Filesystem"]),
    ),
    ("core.v1.TypedLocalObjectReference", "name", Required),
    ("core.v1.TypedLocalObjectReference", "kind", Required),
    (
        "storage.v1.StorageClass",
        "provisioner",
        Name(names::qualified_name),
    ),
    (
        "storage.v1.StorageClass",
        "reclaimPolicy",
        OneOfIfSet(&["Delete", "Retain"]),
    ),
    (
        "storage.v1.StorageClass",
        "volumeBindingMode",
        OneOf(&["Immediate", "WaitForFirstConsumer"]),
    ),
    ("storage.v1.VolumeAttachmentSpec", "attacher", Required),
    ("storage.v1.VolumeAttachmentSpec", "nodeName", Required),
    ("storage.v1.CSINodeDriver", "name", Required),
    ("storage.v1.CSINodeDriver", "nodeID", Required),
    (
        "storage.v1.CSIDriverSpec",
        "fsGroupPolicy",
        OneOfIfSet(&["File", "None", "ReadWriteOnceWithFSType"]),
    ),
    // Configuration.
    (
        "coordination.v1.LeaseSpec",
        "leaseDurationSeconds",
        Positive,
    ),
    ("coordination.v1.LeaseSpec", "leaseTransitions", NotNegative),
    (
        "scheduling.v1.PriorityClass",
        "preemptionPolicy",
        OneOfIfSet(&["PreemptLowerPriority", "Never"]),
    ),
    (
        "node.v1.RuntimeClass",
        "handler",
        NameAlways(names::dns1123_label),
    ),
    ("core.v1.LimitRangeItem", "type", Required),
    (
        "certificates.v1.CertificateSigningRequestSpec",
        "usages",
        Required,
    ),
    (
        "certificates.v1.CertificateSigningRequestSpec",
        "signerName",
        Required,
    ),
    (
        "certificates.v1.CertificateSigningRequestSpec",
        "expirationSeconds",
        RangeFor(
            600,
            i64::MAX,
            "may not specify a duration less than 600 seconds (10 minutes)",
        ),
    ),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "failurePolicy",
        OneOfIfSet(&["Fail", "Ignore"]),
    ),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "matchPolicy",
        OneOfIfSet(&["Equivalent", "Exact"]),
    ),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "timeoutSeconds",
        RangeFor(1, 30, "the timeout value must be between 1 and 30 seconds"),
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "failurePolicy",
        OneOfIfSet(&["Fail", "Ignore"]),
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "matchPolicy",
        OneOfIfSet(&["Equivalent", "Exact"]),
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "reinvocationPolicy",
        OneOfIfSet(&["IfNeeded", "Never"]),
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "timeoutSeconds",
        RangeFor(1, 30, "the timeout value must be between 1 and 30 seconds"),
    ),
];

/// Type and the function that checks what takes more than one member.
pub const CHECKS: &[(&str, Check)] = &[
    (
        "apimachinery.pkg.apis.meta.v1.LabelSelector",
        config::label_selector,
    ),
    ("core.v1.Pod", pod::pod),
    ("core.v1.PodSpec", pod::pod_spec),
    ("core.v1.PodTemplateSpec", workloads::template),
    ("core.v1.Container", pod::container),
    ("core.v1.EphemeralContainer", pod::container),
    ("core.v1.EnvVar", pod::env_var),
    ("core.v1.EnvFromSource", pod::env_from),
    ("core.v1.Probe", pod::handler),
    ("core.v1.LifecycleHandler", pod::handler),
    ("core.v1.Toleration", pod::toleration),
    (
        "core.v1.NodeSelectorRequirement",
        pod::node_selector_requirement,
    ),
    ("core.v1.KeyToPath", storage::key_to_path),
    ("core.v1.HostPathVolumeSource", storage::host_path),
    ("core.v1.Volume", storage::volume),
    ("core.v1.ResourceRequirements", resources::requirements),
    ("core.v1.PersistentVolumeClaimSpec", storage::claim_spec),
    ("core.v1.PersistentVolume", storage::persistent_volume),
    (
        "core.v1.ReplicationControllerSpec",
        workloads::replication_controller,
    ),
    ("apps.v1.ReplicaSetSpec", workloads::replica_set),
    ("apps.v1.DeploymentSpec", workloads::deployment),
    ("apps.v1.DeploymentStrategy", workloads::deployment_strategy),
    ("apps.v1.DaemonSetSpec", workloads::daemon_set),
    (
        "apps.v1.DaemonSetUpdateStrategy",
        workloads::daemon_set_strategy,
    ),
    ("apps.v1.StatefulSetSpec", workloads::stateful_set),
    ("batch.v1.Job", workloads::job),
    ("batch.v1.JobSpec", workloads::job_spec),
    ("batch.v1.CronJobSpec", workloads::cron_job),
    (
        "autoscaling.v2.HorizontalPodAutoscalerSpec",
        workloads::autoscaler,
    ),
    (
        "policy.v1.PodDisruptionBudgetSpec",
        workloads::disruption_budget,
    ),
    ("core.v1.ServiceSpec", network::service),
    ("core.v1.EndpointSubset", network::endpoint_subset),
    ("batch.v1.CronJob", workloads::cron_job_name),
    ("networking.v1.IngressSpec", network::ingress),
    ("networking.v1.IngressRule", network::ingress_rule),
    ("networking.v1.HTTPIngressPath", network::ingress_path),
    ("networking.v1.IngressBackend", network::ingress_backend),
    ("networking.v1.NetworkPolicyPort", network::policy_port),
    ("networking.v1.NetworkPolicyPeer", network::policy_peer),
    ("networking.v1.NetworkPolicySpec", network::policy_spec),
    ("discovery.v1.EndpointSlice", network::endpoint_slice),
    ("core.v1.ConfigMap", config::config_map),
    ("core.v1.Secret", config::secret),
    ("core.v1.NodeSpec", config::node_spec),
    ("core.v1.LimitRange", resources::limit_range),
    ("core.v1.ResourceQuotaSpec", resources::quota),
    ("rbac.v1.Role", config::role),
    ("rbac.v1.ClusterRole", config::cluster_role),
    ("rbac.v1.RoleBinding", config::role_binding),
    ("rbac.v1.ClusterRoleBinding", config::cluster_role_binding),
    ("scheduling.v1.PriorityClass", config::priority_class),
    (
        "admissionregistration.v1.ValidatingAdmissionPolicy",
        policies::validating,
    ),
    (
        "admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        policies::validating_binding,
    ),
    // The stored version of mutating policies.
    (
        "admissionregistration.v1beta1.MutatingAdmissionPolicy",
        policies::mutating,
    ),
    (
        "admissionregistration.v1beta1.MutatingAdmissionPolicyBinding",
        policies::mutating_binding,
    ),
    (
        "admissionregistration.v1.ValidatingWebhookConfiguration",
        admission::webhooks,
    ),
    (
        "admissionregistration.v1.MutatingWebhookConfiguration",
        admission::webhooks,
    ),
];
