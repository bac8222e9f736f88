//! Printers of access rules, storage, admission, scheduling and devices.

use super::super::cell::Cell::{self, *};
use super::super::{config, storage, workloads};
use super::{AGE, Entry, NAME, Printer, column, none, printer, printer_of};

const ADMISSION: &str = "admissionregistration.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const FLOWCONTROL: &str = "flowcontrol.apiserver.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const SCHEDULING: &str = "scheduling.k8s.io";
const STORAGE: &str = "storage.k8s.io";

pub(super) static PRINTERS: &[Entry] = &[
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
