//! Which resource shows which cells. The columns' names and types stand in the facts (`columns.tsv`), by printer;
//! the few that the facts lack stand here.

use keelson_machinery::catalog::{Column, Resource};
use keelson_machinery::value::Value;

use super::Cell::{self, *};
use super::{config, network, pod, storage, workloads};

/// How objects of one resource become rows.
pub(super) struct Printer {
    /// The facts' name for the columns.
    pub columns: &'static str,
    /// Columns that the facts lack, after those that they have.
    pub more_columns: &'static [Column],
    /// One cell for each column.
    pub cells: &'static [Cell],
    /// The row's conditions.
    pub conditions: fn(&Value) -> Option<Value>,
}

const fn column(
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: i32,
) -> Column {
    Column {
        name,
        kind,
        format,
        priority,
    }
}

const NAME: Column = column("Name", "string", "name", 0);
const AGE: Column = column("Age", "string", "", 0);

fn none(_: &Value) -> Option<Value> {
    None
}

const fn printer(columns: &'static str, cells: &'static [Cell]) -> Printer {
    Printer {
        columns,
        more_columns: &[],
        cells,
        conditions: none,
    }
}

const fn printer_of(more_columns: &'static [Column], cells: &'static [Cell]) -> Printer {
    Printer {
        columns: "",
        more_columns,
        cells,
        conditions: none,
    }
}

/// Name and creation time: what all else shows, custom resources included.
const DEFAULT: Printer = printer_of(
    &[NAME, column("Created At", "date", "", 0)],
    &[Name, Made(config::created_at)],
);

const SCALE: Printer = printer(
    "scale",
    &[Name, Int("spec.replicas"), Int("status.replicas"), Age],
);

/// The printer of a resource, or of one of its subresources.
pub(super) fn of(resource: &Resource, subresource: Option<&str>) -> &'static Printer {
    if subresource == Some("scale") {
        return &SCALE;
    }
    PRINTERS
        .iter()
        .find(|(group, name, _)| *name == resource.resource && *group == resource.group)
        .map_or(&DEFAULT, |(_, _, printer)| printer)
}

const TEMPLATE: &str = "spec.template.spec.containers";
const ADMISSION: &str = "admissionregistration.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const FLOWCONTROL: &str = "flowcontrol.apiserver.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const SCHEDULING: &str = "scheduling.k8s.io";
const STORAGE: &str = "storage.k8s.io";

const EVENT: Printer = printer(
    "event",
    &[
        Made(config::event_last_seen),
        Text("type"),
        Text("reason"),
        Made(config::event_object),
        Made(config::event_subobject),
        Made(config::event_source),
        Made(config::event_message),
        Made(config::event_first_seen),
        Made(config::event_count),
        Name,
    ],
);

/// Group, resource, printer.
pub(super) static PRINTERS: &[(&str, &str, Printer)] = &[
    (
        "",
        "pods",
        Printer {
            columns: "pod",
            more_columns: &[],
            cells: &[
                Name,
                Made(pod::ready),
                Made(pod::status),
                Made(pod::restarts),
                Age,
                Made(pod::ip),
                Made(pod::node),
                Made(pod::nominated_node),
                Made(pod::readiness_gates),
            ],
            conditions: pod::conditions,
        },
    ),
    (
        "",
        "podtemplates",
        printer(
            "podTemplate",
            &[
                Name,
                Names("template.spec.containers"),
                Images("template.spec.containers"),
                Labels("template.metadata.labels"),
            ],
        ),
    ),
    (
        "",
        "replicationcontrollers",
        printer(
            "replicationController",
            &[
                Name,
                Int("spec.replicas"),
                Int("status.replicas"),
                Int("status.readyReplicas"),
                Age,
                Names(TEMPLATE),
                Images(TEMPLATE),
                Labels("spec.selector"),
            ],
        ),
    ),
    (
        "",
        "services",
        printer(
            "service",
            &[
                Name,
                Text("spec.type"),
                Made(network::cluster_ip),
                Made(network::external_ip),
                Made(network::service_ports),
                Age,
                Labels("spec.selector"),
            ],
        ),
    ),
    (
        "",
        "endpoints",
        printer("endpoint", &[Name, Made(network::endpoints), Age]),
    ),
    (
        "",
        "nodes",
        printer(
            "node",
            &[
                Name,
                Made(config::node_status),
                Made(config::node_roles),
                Age,
                Text("status.nodeInfo.kubeletVersion"),
                Made(config::node_internal_ip),
                Made(config::node_external_ip),
                Made(config::node_os),
                Made(config::node_kernel),
                Made(config::node_runtime),
            ],
        ),
    ),
    ("", "events", EVENT),
    ("events.k8s.io", "events", EVENT),
    (
        "",
        "namespaces",
        printer("namespace", &[Name, Text("status.phase"), Age]),
    ),
    (
        "",
        "secrets",
        printer("secret", &[Name, Text("type"), Count("data"), Age]),
    ),
    (
        "",
        "serviceaccounts",
        printer("serviceAccount", &[Name, Age]),
    ),
    (
        "",
        "persistentvolumes",
        printer(
            "persistentVolume",
            &[
                Name,
                TextOr("spec.capacity.storage", "0"),
                Made(storage::spec_access_modes),
                Text("spec.persistentVolumeReclaimPolicy"),
                Made(storage::phase),
                Made(storage::claim),
                Made(storage::class),
                TextOr("spec.volumeAttributesClassName", "<unset>"),
                Text("status.reason"),
                Age,
                TextOr("spec.volumeMode", "<unset>"),
            ],
        ),
    ),
    (
        "",
        "persistentvolumeclaims",
        printer(
            "persistentVolumeClaim",
            &[
                Name,
                Made(storage::phase),
                Text("spec.volumeName"),
                Made(storage::bound_capacity),
                Made(storage::bound_access_modes),
                Made(storage::class),
                TextOr("spec.volumeAttributesClassName", "<unset>"),
                Age,
                TextOr("spec.volumeMode", "<unset>"),
            ],
        ),
    ),
    (
        "",
        "componentstatuses",
        printer(
            "componentStatus",
            &[
                Name,
                Made(config::component_status),
                Made(config::component_message),
                Made(config::component_error),
            ],
        ),
    ),
    (
        "",
        "configmaps",
        printer("configMap", &[Name, Made(config::config_map_data), Age]),
    ),
    (
        "",
        "resourcequotas",
        printer(
            "resourceQuota",
            &[
                Name,
                Made(config::quota_requests),
                Made(config::quota_limits),
                Age,
            ],
        ),
    ),
    (
        "apps",
        "deployments",
        printer(
            "deployment",
            &[
                Name,
                Made(workloads::ready_replicas),
                Int("status.updatedReplicas"),
                Int("status.availableReplicas"),
                Age,
                Names(TEMPLATE),
                Images(TEMPLATE),
                Made(workloads::deployment_selector),
            ],
        ),
    ),
    (
        "apps",
        "replicasets",
        printer(
            "replicaSet",
            &[
                Name,
                Int("spec.replicas"),
                Int("status.replicas"),
                Int("status.readyReplicas"),
                Age,
                Names(TEMPLATE),
                Images(TEMPLATE),
                Selector("spec.selector"),
            ],
        ),
    ),
    (
        "apps",
        "statefulsets",
        printer(
            "statefulSet",
            &[
                Name,
                Made(workloads::ready_replicas),
                Age,
                Names(TEMPLATE),
                Images(TEMPLATE),
            ],
        ),
    ),
    (
        "apps",
        "daemonsets",
        printer(
            "daemonSet",
            &[
                Name,
                Int("status.desiredNumberScheduled"),
                Int("status.currentNumberScheduled"),
                Int("status.numberReady"),
                Int("status.updatedNumberScheduled"),
                Int("status.numberAvailable"),
                Labels("spec.template.spec.nodeSelector"),
                Age,
                Names(TEMPLATE),
                Images(TEMPLATE),
                Selector("spec.selector"),
            ],
        ),
    ),
    (
        "apps",
        "controllerrevisions",
        printer(
            "controllerRevision",
            &[
                Name,
                Made(workloads::revision_controller),
                Int("revision"),
                Age,
            ],
        ),
    ),
    (
        "batch",
        "jobs",
        printer(
            "job",
            &[
                Name,
                Made(workloads::job_status),
                Made(workloads::job_completions),
                Made(workloads::job_duration),
                Age,
                Names(TEMPLATE),
                Images(TEMPLATE),
                Selector("spec.selector"),
            ],
        ),
    ),
    (
        "batch",
        "cronjobs",
        printer(
            "cronJob",
            &[
                Name,
                Text("spec.schedule"),
                TextOr("spec.timeZone", "<none>"),
                Made(workloads::suspended),
                Count("status.active"),
                Since("status.lastScheduleTime", "<none>"),
                Age,
                Names("spec.jobTemplate.spec.template.spec.containers"),
                Images("spec.jobTemplate.spec.template.spec.containers"),
                Selector("spec.jobTemplate.spec.selector"),
            ],
        ),
    ),
    (
        "autoscaling",
        "horizontalpodautoscalers",
        printer(
            "horizontalPodAutoscaler",
            &[
                Name,
                Made(workloads::hpa_reference),
                Made(workloads::hpa_metrics),
                Made(workloads::hpa_min),
                Int("spec.maxReplicas"),
                Int("status.currentReplicas"),
                Age,
            ],
        ),
    ),
    (
        "policy",
        "poddisruptionbudgets",
        printer(
            "podDisruptionBudget",
            &[
                Name,
                TextOr("spec.minAvailable", "N/A"),
                TextOr("spec.maxUnavailable", "N/A"),
                Int("status.disruptionsAllowed"),
                Age,
            ],
        ),
    ),
    (
        NETWORKING,
        "ingresses",
        printer(
            "ingress",
            &[
                Name,
                TextOr("spec.ingressClassName", "<none>"),
                Made(network::ingress_hosts),
                Made(network::ingress_address),
                Made(network::ingress_ports),
                Age,
            ],
        ),
    ),
    (
        NETWORKING,
        "ingressclasses",
        printer(
            "ingressClass",
            &[
                Made(network::ingress_class_name),
                Text("spec.controller"),
                Made(network::ingress_class_parameters),
                Age,
            ],
        ),
    ),
    (
        NETWORKING,
        "networkpolicies",
        printer_of(
            &[NAME, column("Pod-Selector", "string", "", 0), AGE],
            &[Name, Made(network::policy_selector), Age],
        ),
    ),
    (
        NETWORKING,
        "servicecidrs",
        printer("serviceCIDR", &[Name, Joined("spec.cidrs", ""), Age]),
    ),
    (
        NETWORKING,
        "ipaddresses",
        // Upstream, too, has a third cell without a column.
        printer("ipAddress", &[Name, Made(network::ip_parent), Age]),
    ),
    (
        "discovery.k8s.io",
        "endpointslices",
        printer(
            "endpointSlice",
            &[
                Name,
                Text("addressType"),
                Made(network::slice_ports),
                Made(network::slice_endpoints),
                Age,
            ],
        ),
    ),
    (RBAC, "rolebindings", printer("roleBindings", BINDING)),
    (
        RBAC,
        "clusterrolebindings",
        printer("clusterRoleBindings", BINDING),
    ),
    (
        CERTIFICATES,
        "certificatesigningrequests",
        printer(
            "certificateSigningRequest",
            &[
                Name,
                Age,
                Made(config::signer_name),
                Text("spec.username"),
                Made(config::csr_duration),
                Made(config::csr_status),
            ],
        ),
    ),
    (
        CERTIFICATES,
        "clustertrustbundles",
        printer("clusterTrustBundle", &[Name, Made(config::signer_name)]),
    ),
    (
        CERTIFICATES,
        "podcertificaterequests",
        printer(
            "podCertificateRequest",
            &[
                Name,
                Text("spec.podName"),
                Text("spec.serviceAccountName"),
                Text("spec.nodeName"),
                Text("spec.signerName"),
                Made(config::pod_certificate_state),
                Labels("spec.unverifiedUserAnnotations"),
            ],
        ),
    ),
    (
        "coordination.k8s.io",
        "leases",
        printer("lease", &[Name, Text("spec.holderIdentity"), Age]),
    ),
    (
        "coordination.k8s.io",
        "leasecandidates",
        printer(
            "leaseCandidate",
            &[
                Name,
                Text("spec.leaseName"),
                Text("spec.binaryVersion"),
                Text("spec.emulationVersion"),
                Age,
            ],
        ),
    ),
    (
        STORAGE,
        "storageclasses",
        printer(
            "storageClass",
            &[
                Made(storage::class_name),
                Text("provisioner"),
                TextOr("reclaimPolicy", "Delete"),
                TextOr("volumeBindingMode", "Immediate"),
                Bool("allowVolumeExpansion", false),
                Age,
            ],
        ),
    ),
    (
        STORAGE,
        "volumeattributesclasses",
        printer("volumeAttributesClass", &[Name, Text("driverName"), Age]),
    ),
    (
        STORAGE,
        "volumeattachments",
        printer(
            "volumeAttachment",
            &[
                Name,
                Text("spec.attacher"),
                Text("spec.source.persistentVolumeName"),
                Text("spec.nodeName"),
                Bool("status.attached", false),
                Age,
            ],
        ),
    ),
    (
        STORAGE,
        "csinodes",
        printer("csiNode", &[Name, Count("spec.drivers"), Age]),
    ),
    (
        STORAGE,
        "csidrivers",
        Printer {
            columns: "csiDriver",
            more_columns: &[
                column("TokenRequests", "string", "", 0),
                column("RequiresRepublish", "boolean", "", 0),
                column("Modes", "string", "", 0),
                AGE,
            ],
            cells: &[
                Name,
                Bool("spec.attachRequired", true),
                Bool("spec.podInfoOnMount", false),
                Bool("spec.storageCapacity", false),
                Made(storage::token_requests),
                Bool("spec.requiresRepublish", false),
                Joined("spec.volumeLifecycleModes", "<none>"),
                Age,
            ],
            conditions: none,
        },
    ),
    (
        ADMISSION,
        "mutatingwebhookconfigurations",
        printer("mutatingWebhook", &[Name, Count("webhooks"), Age]),
    ),
    (
        ADMISSION,
        "validatingwebhookconfigurations",
        printer("validatingWebhook", &[Name, Count("webhooks"), Age]),
    ),
    (
        ADMISSION,
        "validatingadmissionpolicies",
        printer_of(
            &[
                NAME,
                column("Validations", "integer", "", 0),
                column("ParamKind", "string", "", 0),
                AGE,
            ],
            &[
                Name,
                Count("spec.validations"),
                Made(config::param_kind),
                Age,
            ],
        ),
    ),
    (
        ADMISSION,
        "mutatingadmissionpolicies",
        printer_of(
            &[
                NAME,
                column("Mutations", "integer", "", 0),
                column("ParamKind", "string", "", 0),
                AGE,
            ],
            &[Name, Count("spec.mutations"), Made(config::param_kind), Age],
        ),
    ),
    (
        ADMISSION,
        "validatingadmissionpolicybindings",
        POLICY_BINDING,
    ),
    (ADMISSION, "mutatingadmissionpolicybindings", POLICY_BINDING),
    (
        "apiregistration.k8s.io",
        "apiservices",
        printer_of(
            &[
                NAME,
                column("Service", "string", "", 0),
                column("Available", "string", "", 0),
                AGE,
            ],
            &[
                Name,
                Made(config::api_service_target),
                Made(config::api_service_available),
                Age,
            ],
        ),
    ),
    (
        SCHEDULING,
        "priorityclasses",
        printer(
            "priorityClass",
            &[
                Name,
                Int("value"),
                Bool("globalDefault", false),
                Age,
                Text("preemptionPolicy"),
            ],
        ),
    ),
    (SCHEDULING, "workloads", printer("workload", &[Name, Age])),
    (
        SCHEDULING,
        "podgroups",
        printer(
            "podGroup",
            &[
                Name,
                Made(workloads::pod_group_policy),
                TextOr("spec.podGroupTemplateRef.workload.workloadName", "<none>"),
                Made(workloads::pod_group_status),
                Age,
            ],
        ),
    ),
    (
        "node.k8s.io",
        "runtimeclasses",
        printer("runtimeClass", &[Name, Text("handler"), Age]),
    ),
    (
        FLOWCONTROL,
        "flowschemas",
        printer(
            "flowSchema",
            &[
                Name,
                Text("spec.priorityLevelConfiguration.name"),
                Int("spec.matchingPrecedence"),
                TextOr("spec.distinguisherMethod.type", "<none>"),
                Age,
                Made(config::flow_schema_dangling),
            ],
        ),
    ),
    (
        FLOWCONTROL,
        "prioritylevelconfigurations",
        printer(
            "priorityLevel",
            &[
                Name,
                Text("spec.type"),
                IntOr("spec.limited.nominalConcurrencyShares", "<none>"),
                IntOr("spec.limited.limitResponse.queuing.queues", "<none>"),
                IntOr("spec.limited.limitResponse.queuing.handSize", "<none>"),
                IntOr(
                    "spec.limited.limitResponse.queuing.queueLengthLimit",
                    "<none>",
                ),
                Age,
            ],
        ),
    ),
    (
        "internal.apiserver.k8s.io",
        "storageversions",
        printer(
            "storageVersion",
            &[
                Name,
                TextOr("status.commonEncodingVersion", "<unset>"),
                Made(config::storage_versions),
                Age,
            ],
        ),
    ),
    (
        "storagemigration.k8s.io",
        "storageversionmigrations",
        printer(
            "storageVersionMigration",
            &[
                Name,
                Made(config::migration_resource),
                Made(config::migration_status),
            ],
        ),
    ),
    (
        RESOURCE,
        "deviceclasses",
        printer("deviceClass", &[Name, Age]),
    ),
    (
        RESOURCE,
        "resourceclaims",
        printer("resourceClaim", &[Name, Made(storage::claim_state), Age]),
    ),
    (
        RESOURCE,
        "resourceclaimtemplates",
        printer("resourceClaimTemplate", &[Name, Age]),
    ),
    (
        RESOURCE,
        "resourceslices",
        printer(
            "nodeResourceSlice",
            &[
                Name,
                Text("spec.nodeName"),
                Text("spec.driver"),
                Text("spec.pool.name"),
                Age,
            ],
        ),
    ),
    (
        RESOURCE,
        "resourcepoolstatusrequests",
        printer(
            "resourcePoolStatusRequest",
            &[
                Name,
                Text("spec.driver"),
                Made(|o, _| storage::pool_devices(o, "totalDevices")),
                Made(|o, _| storage::pool_devices(o, "availableDevices")),
                Made(|o, _| storage::pool_devices(o, "allocatedDevices")),
                Made(|o, _| storage::pool_devices(o, "unavailableDevices")),
                Made(storage::pool_errors),
                Int("status.poolCount"),
                Made(storage::pool_status),
                Made(storage::pool_completed),
            ],
        ),
    ),
    (
        RESOURCE,
        "devicetaintrules",
        printer(
            "deviceTaint",
            &[
                Name,
                Text("spec.taint.key"),
                Text("spec.taint.value"),
                Text("spec.taint.effect"),
                Since("spec.taint.timeAdded", ""),
                Age,
            ],
        ),
    ),
];

const BINDING: &[Cell] = &[
    Name,
    Made(config::role_ref),
    Age,
    Made(|o, _| config::subjects(o, "User")),
    Made(|o, _| config::subjects(o, "Group")),
    Made(|o, _| config::subjects(o, "ServiceAccount")),
];

const POLICY_BINDING: Printer = printer_of(
    &[
        NAME,
        column("PolicyName", "string", "", 0),
        column("ParamRef", "string", "", 0),
        AGE,
    ],
    &[Name, Text("spec.policyName"), Made(config::param_ref), Age],
);
