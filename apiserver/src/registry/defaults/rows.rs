//! The defaults that upstream sets by hand (`SetDefaults_*` in `pkg/apis/*/v1/defaults.go`), as rows. A row holds for
//! its type wherever it stands: what is said of a container is said of those in every kind of pod template.

use keelson_machinery::value::Value;

use super::hooks;

/// Type (without `io.k8s.api.`), a path of members below it, and the default as JSON.
pub type Row = (&'static str, &'static str, &'static str);

/// Defaults that depend on nothing but the absence of a value. Whether an empty text or a zero counts as absent is
/// known from the type table: for pointers it does not.
pub const ROWS: &[Row] = &[
    ("core.v1.PodSpec", "dnsPolicy", r#""ClusterFirst""#),
    ("core.v1.PodSpec", "restartPolicy", r#""Always""#),
    ("core.v1.PodSpec", "securityContext", "{}"),
    ("core.v1.PodSpec", "terminationGracePeriodSeconds", "30"),
    ("core.v1.PodSpec", "schedulerName", r#""default-scheduler""#),
    ("core.v1.Pod", "spec.enableServiceLinks", "true"),
    (
        "core.v1.Container",
        "terminationMessagePath",
        r#""/dev/termination-log""#,
    ),
    ("core.v1.Container", "terminationMessagePolicy", r#""File""#),
    (
        "core.v1.EphemeralContainer",
        "terminationMessagePath",
        r#""/dev/termination-log""#,
    ),
    (
        "core.v1.EphemeralContainer",
        "terminationMessagePolicy",
        r#""File""#,
    ),
    ("core.v1.Probe", "timeoutSeconds", "1"),
    ("core.v1.Probe", "periodSeconds", "10"),
    ("core.v1.Probe", "successThreshold", "1"),
    ("core.v1.Probe", "failureThreshold", "3"),
    ("core.v1.HTTPGetAction", "path", r#""/""#),
    ("core.v1.HTTPGetAction", "scheme", r#""HTTP""#),
    ("core.v1.ObjectFieldSelector", "apiVersion", r#""v1""#),
    // File modes are 0644.
    ("core.v1.SecretVolumeSource", "defaultMode", "420"),
    ("core.v1.ConfigMapVolumeSource", "defaultMode", "420"),
    ("core.v1.DownwardAPIVolumeSource", "defaultMode", "420"),
    ("core.v1.ProjectedVolumeSource", "defaultMode", "420"),
    (
        "core.v1.ServiceAccountTokenProjection",
        "expirationSeconds",
        "3600",
    ),
    ("core.v1.HostPathVolumeSource", "type", r#""""#),
    (
        "core.v1.PersistentVolumeClaimSpec",
        "volumeMode",
        r#""Filesystem""#,
    ),
    (
        "core.v1.PersistentVolumeClaim",
        "status.phase",
        r#""Pending""#,
    ),
    ("core.v1.PersistentVolume", "status.phase", r#""Pending""#),
    (
        "core.v1.PersistentVolume",
        "spec.persistentVolumeReclaimPolicy",
        r#""Retain""#,
    ),
    (
        "core.v1.PersistentVolume",
        "spec.volumeMode",
        r#""Filesystem""#,
    ),
    ("core.v1.EndpointPort", "protocol", r#""TCP""#),
    ("core.v1.Namespace", "status.phase", r#""Active""#),
    ("core.v1.Secret", "type", r#""Opaque""#),
    ("apps.v1.DeploymentSpec", "replicas", "1"),
    ("apps.v1.DeploymentSpec", "revisionHistoryLimit", "10"),
    ("apps.v1.DeploymentSpec", "progressDeadlineSeconds", "600"),
    ("apps.v1.DeploymentStrategy", "type", r#""RollingUpdate""#),
    (
        "apps.v1.RollingUpdateDeployment",
        "maxUnavailable",
        r#""25%""#,
    ),
    ("apps.v1.RollingUpdateDeployment", "maxSurge", r#""25%""#),
    ("apps.v1.ReplicaSetSpec", "replicas", "1"),
    ("apps.v1.DaemonSetSpec", "revisionHistoryLimit", "10"),
    (
        "apps.v1.DaemonSetUpdateStrategy",
        "type",
        r#""RollingUpdate""#,
    ),
    ("apps.v1.RollingUpdateDaemonSet", "maxUnavailable", "1"),
    ("apps.v1.RollingUpdateDaemonSet", "maxSurge", "0"),
    (
        "apps.v1.StatefulSetSpec",
        "podManagementPolicy",
        r#""OrderedReady""#,
    ),
    (
        "apps.v1.StatefulSetSpec",
        "persistentVolumeClaimRetentionPolicy",
        "{}",
    ),
    ("apps.v1.StatefulSetSpec", "replicas", "1"),
    ("apps.v1.StatefulSetSpec", "revisionHistoryLimit", "10"),
    (
        "apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicy",
        "whenDeleted",
        r#""Retain""#,
    ),
    (
        "apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicy",
        "whenScaled",
        r#""Retain""#,
    ),
    ("apps.v1.RollingUpdateStatefulSetStrategy", "partition", "0"),
    ("batch.v1.Job", "spec.completionMode", r#""NonIndexed""#),
    ("batch.v1.Job", "spec.suspend", "false"),
    ("batch.v1.Job", "spec.manualSelector", "false"),
    (
        "batch.v1.PodFailurePolicyOnPodConditionsPattern",
        "status",
        r#""True""#,
    ),
    ("batch.v1.CronJobSpec", "concurrencyPolicy", r#""Allow""#),
    ("batch.v1.CronJobSpec", "suspend", "false"),
    ("batch.v1.CronJobSpec", "successfulJobsHistoryLimit", "3"),
    ("batch.v1.CronJobSpec", "failedJobsHistoryLimit", "1"),
    (
        "autoscaling.v2.HorizontalPodAutoscalerSpec",
        "minReplicas",
        "1",
    ),
    (
        "autoscaling.v2.HorizontalPodAutoscalerSpec",
        "metrics",
        r#"[{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]"#,
    ),
    ("discovery.v1.EndpointPort", "name", r#""""#),
    ("discovery.v1.EndpointPort", "protocol", r#""TCP""#),
    ("networking.v1.NetworkPolicyPort", "protocol", r#""TCP""#),
    (
        "networking.v1.IngressClassParametersReference",
        "scope",
        r#""Cluster""#,
    ),
    (
        "rbac.v1.RoleRef",
        "apiGroup",
        r#""rbac.authorization.k8s.io""#,
    ),
    (
        "scheduling.v1.PriorityClass",
        "preemptionPolicy",
        r#""PreemptLowerPriority""#,
    ),
    ("storage.v1.StorageClass", "reclaimPolicy", r#""Delete""#),
    (
        "storage.v1.StorageClass",
        "volumeBindingMode",
        r#""Immediate""#,
    ),
    ("storage.v1.CSIDriverSpec", "attachRequired", "true"),
    ("storage.v1.CSIDriverSpec", "podInfoOnMount", "false"),
    ("storage.v1.CSIDriverSpec", "storageCapacity", "false"),
    (
        "storage.v1.CSIDriverSpec",
        "fsGroupPolicy",
        r#""ReadWriteOnceWithFSType""#,
    ),
    (
        "storage.v1.CSIDriverSpec",
        "volumeLifecycleModes",
        r#"["Persistent"]"#,
    ),
    ("storage.v1.CSIDriverSpec", "requiresRepublish", "false"),
    ("storage.v1.CSIDriverSpec", "seLinuxMount", "false"),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "failurePolicy",
        r#""Fail""#,
    ),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "matchPolicy",
        r#""Equivalent""#,
    ),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "namespaceSelector",
        "{}",
    ),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "objectSelector",
        "{}",
    ),
    (
        "admissionregistration.v1.ValidatingWebhook",
        "timeoutSeconds",
        "10",
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "failurePolicy",
        r#""Fail""#,
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "matchPolicy",
        r#""Equivalent""#,
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "namespaceSelector",
        "{}",
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "objectSelector",
        "{}",
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "timeoutSeconds",
        "10",
    ),
    (
        "admissionregistration.v1.MutatingWebhook",
        "reinvocationPolicy",
        r#""Never""#,
    ),
    (
        "admissionregistration.v1.RuleWithOperations",
        "scope",
        r#""*""#,
    ),
    (
        "admissionregistration.v1.NamedRuleWithOperations",
        "scope",
        r#""*""#,
    ),
    ("admissionregistration.v1.ServiceReference", "port", "443"),
    (
        "admissionregistration.v1.ValidatingAdmissionPolicySpec",
        "failurePolicy",
        r#""Fail""#,
    ),
    (
        "admissionregistration.v1.MutatingAdmissionPolicySpec",
        "failurePolicy",
        r#""Fail""#,
    ),
    (
        "admissionregistration.v1.MatchResources",
        "matchPolicy",
        r#""Equivalent""#,
    ),
    (
        "admissionregistration.v1.MatchResources",
        "namespaceSelector",
        "{}",
    ),
    (
        "admissionregistration.v1.MatchResources",
        "objectSelector",
        "{}",
    ),
    // Mutating policies are stored in v1beta1.
    (
        "admissionregistration.v1beta1.MutatingAdmissionPolicySpec",
        "failurePolicy",
        r#""Fail""#,
    ),
    (
        "admissionregistration.v1beta1.MatchResources",
        "matchPolicy",
        r#""Equivalent""#,
    ),
    (
        "admissionregistration.v1beta1.MatchResources",
        "namespaceSelector",
        "{}",
    ),
    (
        "admissionregistration.v1beta1.MatchResources",
        "objectSelector",
        "{}",
    ),
    (
        "admissionregistration.v1beta1.NamedRuleWithOperations",
        "scope",
        r#""*""#,
    ),
    (
        "flowcontrol.v1.FlowSchemaSpec",
        "matchingPrecedence",
        "1000",
    ),
    (
        "flowcontrol.v1.ExemptPriorityLevelConfiguration",
        "nominalConcurrencyShares",
        "0",
    ),
    (
        "flowcontrol.v1.ExemptPriorityLevelConfiguration",
        "lendablePercent",
        "0",
    ),
    (
        "flowcontrol.v1.LimitedPriorityLevelConfiguration",
        "nominalConcurrencyShares",
        "30",
    ),
    (
        "flowcontrol.v1.LimitedPriorityLevelConfiguration",
        "lendablePercent",
        "0",
    ),
    ("flowcontrol.v1.QueuingConfiguration", "handSize", "8"),
    ("flowcontrol.v1.QueuingConfiguration", "queues", "64"),
    (
        "flowcontrol.v1.QueuingConfiguration",
        "queueLengthLimit",
        "50",
    ),
    (
        "resource.v1.ExactDeviceRequest",
        "allocationMode",
        r#""ExactCount""#,
    ),
    (
        "resource.v1.DeviceSubRequest",
        "allocationMode",
        r#""ExactCount""#,
    ),
    (
        "resource.v1.NodeAllocatableResourceMapping",
        "allocationMultiplier",
        r#""1""#,
    ),
    (
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec",
        "conversion",
        r#"{"strategy": "None"}"#,
    ),
    (
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.ServiceReference",
        "port",
        "443",
    ),
    (
        "kube-aggregator.pkg.apis.apiregistration.v1.ServiceReference",
        "port",
        "443",
    ),
];

/// Type and a function for what depends on other members. Runs after the rows of its type, before those of the types
/// below; must be idempotent.
pub type Hook = (&'static str, fn(&mut Value));

/// Defaults that are more than a row.
pub const HOOKS: &[Hook] = &[
    ("core.v1.Pod", hooks::pod),
    ("core.v1.Volume", hooks::volume),
    ("core.v1.Container", hooks::container),
    ("core.v1.EphemeralContainer", hooks::container),
    (
        "core.v1.ReplicationController",
        hooks::replication_controller,
    ),
    ("core.v1.NodeStatus", hooks::node_status),
    ("core.v1.LimitRangeItem", hooks::limit_range_item),
    ("core.v1.Secret", hooks::secret),
    ("apps.v1.DeploymentStrategy", hooks::rolling_update),
    ("apps.v1.DaemonSetUpdateStrategy", hooks::rolling_update),
    (
        "apps.v1.StatefulSetUpdateStrategy",
        hooks::stateful_set_strategy,
    ),
    ("apps.v1.StatefulSetSpec", hooks::stateful_set_spec),
    ("batch.v1.Job", hooks::job),
    (
        "autoscaling.v2.HorizontalPodAutoscalerBehavior",
        hooks::autoscaler_behavior,
    ),
    (
        "networking.v1.NetworkPolicySpec",
        hooks::network_policy_spec,
    ),
    ("rbac.v1.Subject", hooks::subject),
    ("resource.v1.ExactDeviceRequest", hooks::device_request),
    ("resource.v1.DeviceSubRequest", hooks::device_request),
    (
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        hooks::custom_resource_definition,
    ),
];
