//! Who a container runs as and what it may do (upstream `determineEffectiveSecurityContext`).

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};

use crate::cri;
use crate::podutil;

/// Paths of `/proc` and `/sys` that are hidden, unless `procMount: Unmasked`.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// One more hidden path that upstream has since v1.33.
const MASKED_POWERCAP: &str = "/sys/devices/virtual/powercap";
/// Paths that are read-only, unless `procMount: Unmasked`.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The user that an image runs as by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// By number.
    pub uid: Option<i64>,
    /// By name, where the image gives none but this.
    pub name: String,
}

/// The namespaces of a pod's containers.
pub fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let spec = podutil::spec(pod);
    let mode = |host: Option<bool>, own: cri::NamespaceMode| {
        if host == Some(true) {
            cri::NamespaceMode::Node
        } else {
            own
        }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: mode(spec.host_network, cri::NamespaceMode::Pod) as i32,
        pid: mode(spec.host_pid, pid) as i32,
        ipc: mode(spec.host_ipc, cri::NamespaceMode::Pod) as i32,
        target_id: String::new(),
        userns_options: None,
    }
}

/// The groups that a pod's containers belong to besides their own.
pub fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let Some(sc) = &podutil::spec(pod).security_context else {
        return Vec::new();
    };
    sc.fs_group
        .into_iter()
        .chain(sc.supplemental_groups.iter().flatten().copied())
        .collect()
}

/// `supplementalGroupsPolicy` as the CRI has it.
pub fn groups_policy(pod: &Pod) -> Result<i32, String> {
    let policy = podutil::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.supplemental_groups_policy.as_deref());
    match policy {
        None | Some("Merge") => Ok(cri::SupplementalGroupsPolicy::Merge as i32),
        Some("Strict") => Ok(cri::SupplementalGroupsPolicy::Strict as i32),
        Some(other) => Err(format!("unsupported supplementalGroupsPolicy: {other}")),
    }
}

/// A seccomp profile as the CRI has it. `None` is the default: unconfined, or the runtime's where so configured.
fn seccomp(
    profile: Option<&SeccompProfile>,
    default_runtime: bool,
    root: &std::path::Path,
) -> Result<cri::SecurityProfile, String> {
    let of = |t: cri::ProfileType| cri::SecurityProfile {
        profile_type: t as i32,
        localhost_ref: String::new(),
    };
    Ok(match profile.map(|p| p.type_.as_str()) {
        None if default_runtime => of(cri::ProfileType::RuntimeDefault),
        None | Some("Unconfined") => of(cri::ProfileType::Unconfined),
        Some("RuntimeDefault") => of(cri::ProfileType::RuntimeDefault),
        Some("Localhost") => {
            let file = profile
                .and_then(|p| p.localhost_profile.as_deref())
                .filter(|p| !p.is_empty())
                .ok_or_else(|| {
                    "localhostProfile must be set if seccompProfile type is Localhost.".to_owned()
                })?;
            cri::SecurityProfile {
                profile_type: cri::ProfileType::Localhost as i32,
                localhost_ref: root
                    .join("seccomp")
                    .join(file)
                    .to_string_lossy()
                    .into_owned(),
            }
        }
        Some(other) => return Err(format!("unsupported seccomp profile type {other:?}")),
    })
}

/// Refuses a container that must not run as root but would (upstream `verifyRunAsNonRoot`).
pub fn verify_non_root(pod: &Pod, c: &Container, image: &ImageUser) -> Result<(), String> {
    let (own, of_pod) = (
        c.security_context.as_ref(),
        podutil::spec(pod).security_context.as_ref(),
    );
    let non_root = own
        .and_then(|s| s.run_as_non_root)
        .or_else(|| of_pod.and_then(|s| s.run_as_non_root));
    if non_root != Some(true) {
        return Ok(());
    }
    let user = own
        .and_then(|s| s.run_as_user)
        .or_else(|| of_pod.and_then(|s| s.run_as_user));
    let whose = format!("(pod: {:?}, container: {})", podutil::describe(pod), c.name);
    match (user, image.uid) {
        (Some(0), _) => Err(format!(
            "container's runAsUser breaks non-root policy {whose}"
        )),
        (Some(_), _) => Ok(()),
        (None, None) if !image.name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {whose}",
            image.name
        )),
        (None, Some(0)) => Err(format!(
            "container has runAsNonRoot and image will run as root {whose}"
        )),
        (None, _) => Ok(()),
    }
}

/// The security context of a container. `kubelet_root` is where local seccomp profiles are.
pub fn context(
    pod: &Pod,
    c: &Container,
    image: &ImageUser,
    seccomp_default: bool,
    kubelet_root: &std::path::Path,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let (own, of_pod) = (
        c.security_context.as_ref(),
        podutil::spec(pod).security_context.as_ref(),
    );
    let privileged = own.and_then(|s| s.privileged).unwrap_or(false);
    let capabilities = own
        .and_then(|s| s.capabilities.as_ref())
        .map(|k| cri::Capability {
            add_capabilities: k.add.clone().unwrap_or_default(),
            drop_capabilities: k.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        });
    let selinux = own
        .and_then(|s| s.se_linux_options.as_ref())
        .or_else(|| of_pod.and_then(|s| s.se_linux_options.as_ref()))
        .map(|o| cri::SELinuxOption {
            user: o.user.clone().unwrap_or_default(),
            role: o.role.clone().unwrap_or_default(),
            r#type: o.type_.clone().unwrap_or_default(),
            level: o.level.clone().unwrap_or_default(),
        });
    let user = own
        .and_then(|s| s.run_as_user)
        .or_else(|| of_pod.and_then(|s| s.run_as_user));
    let group = own
        .and_then(|s| s.run_as_group)
        .or_else(|| of_pod.and_then(|s| s.run_as_group));
    let profile = own
        .and_then(|s| s.seccomp_profile.as_ref())
        .or_else(|| of_pod.and_then(|s| s.seccomp_profile.as_ref()));
    let seccomp = if privileged {
        cri::SecurityProfile {
            profile_type: cri::ProfileType::Unconfined as i32,
            localhost_ref: String::new(),
        }
    } else {
        seccomp(profile, seccomp_default, kubelet_root)?
    };
    let apparmor = own
        .and_then(|s| s.app_armor_profile.as_ref())
        .or_else(|| of_pod.and_then(|s| s.app_armor_profile.as_ref()))
        .filter(|_| !privileged);
    let (apparmor, apparmor_legacy) =
        match apparmor.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
            None => (None, String::new()),
            Some((kind, file)) => {
                let (t, legacy) = match kind {
                    "RuntimeDefault" => (
                        cri::ProfileType::RuntimeDefault,
                        "runtime/default".to_owned(),
                    ),
                    "Localhost" => (
                        cri::ProfileType::Localhost,
                        format!("localhost/{}", file.unwrap_or_default()),
                    ),
                    _ => (cri::ProfileType::Unconfined, "unconfined".to_owned()),
                };
                let localhost_ref = if t == cri::ProfileType::Localhost {
                    file.unwrap_or_default().to_owned()
                } else {
                    String::new()
                };
                (
                    Some(cri::SecurityProfile {
                        profile_type: t as i32,
                        localhost_ref,
                    }),
                    legacy,
                )
            }
        };
    let unmasked = own.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked");
    let masked = MASKED.iter().copied().chain([MASKED_POWERCAP]);
    let list = |on: bool, paths: Vec<&str>| {
        if on {
            paths.into_iter().map(str::to_owned).collect()
        } else {
            Vec::new()
        }
    };
    Ok(cri::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: selinux,
        run_as_user: user.or(image.uid).map(|value| cri::Int64Value { value }),
        run_as_username: if user.is_none() && image.uid.is_none() {
            image.name.clone()
        } else {
            String::new()
        },
        run_as_group: group.map(|value| cri::Int64Value { value }),
        readonly_rootfs: own
            .and_then(|s| s.read_only_root_filesystem)
            .unwrap_or(false),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod)?,
        no_new_privs: own.and_then(|s| s.allow_privilege_escalation) == Some(false),
        masked_paths: list(!unmasked, masked.collect()),
        readonly_paths: list(!unmasked, READ_ONLY.to_vec()),
        seccomp: Some(seccomp),
        apparmor,
        apparmor_profile: apparmor_legacy,
        seccomp_profile_path: String::new(),
    })
}

/// Whether any container of the pod is privileged.
pub fn has_privileged(pod: &Pod) -> bool {
    let p = |sc: &Option<k8s_openapi::api::core::v1::SecurityContext>| {
        sc.as_ref().and_then(|s| s.privileged) == Some(true)
    };
    podutil::containers(pod)
        .iter()
        .chain(podutil::init_containers(pod))
        .any(|c| p(&c.security_context))
        || podutil::ephemeral_containers(pod)
            .iter()
            .any(|c| p(&c.security_context))
}

/// Refuses sysctls that are neither safe nor allowed; messages as upstream's sysctl admission.
pub fn forbidden_sysctl(pod: &Pod, allowed: &[String]) -> Option<String> {
    const SAFE: [&str; 12] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ];
    let sc = podutil::spec(pod).security_context.as_ref()?;
    for s in sc.sysctls.iter().flatten() {
        let name = s.name.replace('/', ".");
        let ok = SAFE.contains(&name.as_str())
            || allowed.iter().any(|a| match a.strip_suffix('*') {
                Some(prefix) => name.starts_with(&prefix.replace('/', ".")),
                None => *a == name,
            });
        if !ok {
            return Some(format!("forbidden sysctl: {:?} not allowlisted", s.name));
        }
        if podutil::is_host_network(pod) && name.starts_with("net.") {
            return Some(format!(
                "forbidden sysctl: {:?} not allowed with host net enabled",
                s.name
            ));
        }
        if podutil::spec(pod).host_ipc == Some(true) && name.starts_with("kernel.") {
            return Some(format!(
                "forbidden sysctl: {:?} not allowed with host ipc enabled",
                s.name
            ));
        }
    }
    None
}
