//! The Pod Security Standards: what `baseline` and `restricted` forbid, by version of the policy
//! (`k8s.io/pod-security-admission/policy`).

use std::collections::BTreeSet;

use keelson_machinery::meta;
use keelson_machinery::text::quote;
use keelson_machinery::value::{self, Value};

/// How much a namespace allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Everything.
    Privileged,
    /// Nothing that is known to lead out of a container.
    Baseline,
    /// Only what follows the practice of hardening.
    Restricted,
}

/// A Pod, or the template of one.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    /// Holds `metadata` and `spec`.
    pub(super) pod: &'a Value,
    /// The minor version of the policy; `u32::MAX` for the latest.
    pub(super) minor: u32,
}

/// Why a Pod does not pass: the reason, and what exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: String,
    detail: String,
}

struct Check {
    id: &'static str,
    level: Level,
    /// The first version of the policy that has it.
    since: u32,
    /// The check of a lower level that it makes superfluous.
    overrides: &'static str,
    run: fn(&Subject<'_>) -> Option<Violation>,
}

const fn baseline(
    id: &'static str,
    since: u32,
    run: fn(&Subject<'_>) -> Option<Violation>,
) -> Check {
    Check {
        id,
        level: Level::Baseline,
        since,
        overrides: "",
        run,
    }
}

const fn restricted(
    id: &'static str,
    since: u32,
    overrides: &'static str,
    run: fn(&Subject<'_>) -> Option<Violation>,
) -> Check {
    Check {
        id,
        level: Level::Restricted,
        since,
        overrides,
        run,
    }
}

/// In the order in which violations are told.
const CHECKS: [Check; 19] = [
    baseline("appArmorProfile", 0, app_armor),
    baseline("capabilities_baseline", 0, capabilities_baseline),
    baseline("hostNamespaces", 0, host_namespaces),
    baseline("hostPathVolumes", 0, host_paths),
    baseline("hostPorts", 0, host_ports),
    baseline("hostProbesAndHostLifecycle", 34, probe_hosts),
    baseline("privileged", 0, privileged),
    baseline("procMount", 0, proc_mount_baseline),
    baseline("seLinuxOptions", 0, selinux),
    baseline("seccompProfile_baseline", 0, seccomp_baseline),
    baseline("sysctls", 0, sysctls),
    baseline("windowsHostProcess", 0, windows_host_process),
    restricted("allowPrivilegeEscalation", 8, "", privilege_escalation),
    restricted(
        "capabilities_restricted",
        22,
        "capabilities_baseline",
        capabilities_restricted,
    ),
    restricted("procMount_restricted", 35, "procMount", proc_mount),
    restricted("restrictedVolumes", 0, "hostPathVolumes", volumes),
    restricted("runAsNonRoot", 0, "", run_as_non_root),
    restricted("runAsUser", 23, "", run_as_user),
    restricted(
        "seccompProfile_restricted",
        19,
        "seccompProfile_baseline",
        seccomp_restricted,
    ),
];

/// All that `pod` violates of `level`.
pub(super) fn violations(subject: &Subject<'_>, level: Level) -> Vec<Violation> {
    let active = |check: &&Check| check.level <= level && check.since <= subject.minor;
    let overridden: BTreeSet<&str> = CHECKS
        .iter()
        .filter(active)
        .map(|check| check.overrides)
        .collect();
    CHECKS
        .iter()
        .filter(active)
        .filter(|check| !overridden.contains(check.id))
        .filter_map(|check| (check.run)(subject))
        .collect()
}

/// The violations in one line.
pub(super) fn describe(violations: &[Violation]) -> String {
    let one = |violation: &Violation| match violation.detail.as_str() {
        "" => violation.reason.clone(),
        detail => format!("{} ({detail})", violation.reason),
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation {
        reason: reason.to_owned(),
        detail,
    })
}

fn quoted<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    items
        .into_iter()
        .map(|item| format!("\"{}\"", item.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

impl<'a> Subject<'a> {
    fn spec(&self, path: &[&str]) -> Option<&'a Value> {
        value::get(self.pod, &[&["spec"], path].concat())
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let pod = self.pod;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| value::items(pod, &["spec", list]))
    }

    fn windows(&self) -> bool {
        self.minor >= 25 && self.spec(&["os", "name"]).and_then(Value::as_str) == Some("windows")
    }

    /// Root in a user namespace of its own is nobody outside.
    fn own_users(&self) -> bool {
        self.minor >= 35 && self.spec(&["hostUsers"]).and_then(Value::as_bool) == Some(false)
    }

    /// Names of the containers for which `bad` holds.
    fn bad_containers(&self, mut bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers()
            .filter(|container| bad(container))
            .map(name)
            .collect()
    }
}

fn name(container: &Value) -> &str {
    value::str_or_empty(container, &["name"])
}

fn containers(names: &[&str]) -> String {
    format!(
        "{} {}",
        plural("container", "containers", names.len()),
        quoted(names)
    )
}

/// `pod`, containers, or both.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let mut all: Vec<String> = pod.then(|| "pod".to_owned()).into_iter().collect();
    if !names.is_empty() {
        all.push(containers(names));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

fn context<'a>(container: &'a Value, path: &[&str]) -> Option<&'a Value> {
    value::get(container, &[&["securityContext"], path].concat())
}

fn strings(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn app_armor(subject: &Subject<'_>) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let mut bad = |profile: Option<&Value>| match profile.and_then(Value::as_str) {
        None | Some("RuntimeDefault" | "Localhost") => false,
        Some(other) => {
            values.insert(other.to_owned());
            true
        }
    };
    let pod = bad(subject.spec(&["securityContext", "appArmorProfile", "type"]));
    let names =
        subject.bad_containers(|container| bad(context(container, &["appArmorProfile", "type"])));
    let annotations: BTreeSet<String> = meta::annotations(subject.pod)
        .into_iter()
        .flatten()
        .filter_map(|(key, text)| Some((key, text.as_str()?)))
        .filter(|(key, text)| {
            key.starts_with(PREFIX)
                && !(text.is_empty()
                    || *text == "runtime/default"
                    || text.starts_with("localhost/"))
        })
        .map(|(key, text)| format!("{key}={}", quote(text)))
        .collect();
    let mut all: Vec<String> = setters(pod, &names).into_iter().collect();
    let mut shown: Vec<String> = values.into_iter().collect();
    if !annotations.is_empty() {
        all.push(plural("annotation", "annotations", annotations.len()).to_owned());
        shown.extend(annotations);
    }
    if all.is_empty() {
        return None;
    }
    let reason = plural(
        "forbidden AppArmor profile",
        "forbidden AppArmor profiles",
        shown.len(),
    );
    violation(
        reason,
        format!(
            "{} must not set AppArmor profile type to {}",
            all.join(" and "),
            quoted(shown)
        ),
    )
}

fn capabilities_baseline(subject: &Subject<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let mut found = BTreeSet::new();
    let names = subject.bad_containers(|container| {
        let bad: Vec<&str> = strings(context(container, &["capabilities", "add"]))
            .filter(|one| !ALLOWED.contains(one))
            .collect();
        found.extend(bad.iter().copied());
        !bad.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    violation(
        "non-default capabilities",
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&names),
            quoted(found)
        ),
    )
}

fn host_namespaces(subject: &Subject<'_>) -> Option<Violation> {
    let fields = ["hostNetwork", "hostPID", "hostIPC"];
    let set = fields
        .iter()
        .filter(|field| subject.spec(&[field]).and_then(Value::as_bool) == Some(true));
    let set: Vec<String> = set.map(|field| format!("{field}=true")).collect();
    if set.is_empty() {
        None
    } else {
        violation("host namespaces", set.join(", "))
    }
}

fn host_paths(subject: &Subject<'_>) -> Option<Violation> {
    let volumes = value::items(subject.pod, &["spec", "volumes"]).iter();
    let names: Vec<&str> = volumes
        .filter(|volume| value::get(volume, &["hostPath"]).is_some())
        .map(name)
        .collect();
    if names.is_empty() {
        return None;
    }
    violation(
        "hostPath volumes",
        format!(
            "{} {}",
            plural("volume", "volumes", names.len()),
            quoted(names)
        ),
    )
}

fn host_ports(subject: &Subject<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = subject.bad_containers(|container| {
        let bad: Vec<String> = value::items(container, &["ports"])
            .iter()
            .filter_map(|port| value::get_i64(port, &["hostPort"]))
            .filter(|port| *port != 0)
            .map(|port| port.to_string())
            .collect();
        let any = !bad.is_empty();
        ports.extend(bad);
        any
    });
    if names.is_empty() {
        return None;
    }
    let ports: Vec<String> = ports.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("hostPort", "hostPorts", ports.len()),
        ports.join(", ")
    );
    violation("hostPort", detail)
}

fn probe_hosts(subject: &Subject<'_>) -> Option<Violation> {
    const HANDLERS: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let mut hosts = BTreeSet::new();
    let names = subject.bad_containers(|container| {
        let handlers = HANDLERS.iter().flat_map(|handler| {
            ["httpGet", "tcpSocket"].map(|kind| [*handler, &[kind, "host"]].concat())
        });
        let bad: Vec<&str> = handlers
            .filter_map(|path| value::get_str(container, &path))
            .filter(|host| !host.is_empty())
            .collect();
        hosts.extend(bad.iter().copied());
        !bad.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    let names: BTreeSet<&str> = names.into_iter().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural(
            "probe or lifecycle host",
            "probe or lifecycle hosts",
            hosts.len()
        ),
        quoted(hosts)
    );
    violation("probe or lifecycle host", detail)
}

fn privileged(subject: &Subject<'_>) -> Option<Violation> {
    let names = subject.bad_containers(|container| {
        context(container, &["privileged"]).and_then(Value::as_bool) == Some(true)
    });
    if names.is_empty() {
        return None;
    }
    violation(
        "privileged",
        format!(
            "{} must not set securityContext.privileged=true",
            containers(&names)
        ),
    )
}

fn proc_mount_baseline(subject: &Subject<'_>) -> Option<Violation> {
    if subject.own_users() {
        None
    } else {
        proc_mount(subject)
    }
}

fn proc_mount(subject: &Subject<'_>) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let names = subject.bad_containers(|container| {
        let bad = context(container, &["procMount"])
            .and_then(Value::as_str)
            .filter(|kind| *kind != "Default");
        types.extend(bad);
        bad.is_some()
    });
    if names.is_empty() {
        return None;
    }
    violation(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers(&names),
            quoted(types)
        ),
    )
}

fn selinux(subject: &Subject<'_>) -> Option<Violation> {
    let allowed = |kind: &str| {
        matches!(
            kind,
            "" | "container_t" | "container_init_t" | "container_kvm_t"
        ) || (kind == "container_engine_t" && subject.minor >= 31)
    };
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |options: Option<&Value>| {
        let Some(options) = options else { return false };
        let text = |field: &str| value::str_or_empty(options, &[field]);
        let wrong = !allowed(text("type"));
        if wrong {
            types.insert(text("type").to_owned());
        }
        user |= !text("user").is_empty();
        role |= !text("role").is_empty();
        wrong || !text("user").is_empty() || !text("role").is_empty()
    };
    let pod = bad(subject.spec(&["securityContext", "seLinuxOptions"]));
    let names = subject.bad_containers(|container| bad(context(container, &["seLinuxOptions"])));
    let who = setters(pod, &names)?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!(
            "{} {}",
            plural("type", "types", types.len()),
            quoted(types)
        ));
    }
    if user {
        data.push("user may not be set".into());
    }
    if role {
        data.push("role may not be set".into());
    }
    violation(
        "seLinuxOptions",
        format!(
            "{who} set forbidden securityContext.seLinuxOptions: {}",
            data.join("; ")
        ),
    )
}

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

fn seccomp_baseline(subject: &Subject<'_>) -> Option<Violation> {
    if subject.minor < 19 {
        // The field came with 1.19; before, an annotation said it.
        let keys = std::iter::once(SECCOMP_POD.to_owned()).chain(
            subject
                .containers()
                .map(|container| format!("{SECCOMP_CONTAINER}{}", name(container))),
        );
        let bad: BTreeSet<String> = keys
            .filter_map(|key| meta::annotation(subject.pod, &key).map(|text| (key.clone(), text)))
            .filter(|(_, text)| {
                !(matches!(*text, "runtime/default" | "docker/default")
                    || text.starts_with("localhost/"))
            })
            .map(|(key, text)| format!("{key}={}", quote(text)))
            .collect();
        if bad.is_empty() {
            return None;
        }
        let word = plural("annotation", "annotations", bad.len());
        return violation(
            "seccompProfile",
            format!(
                "forbidden {word} {}",
                bad.into_iter().collect::<Vec<_>>().join(", ")
            ),
        );
    }
    seccomp_set_badly(subject)
}

fn seccomp_type(profile: Option<&Value>) -> Option<&str> {
    profile.map(|profile| value::str_or_empty(profile, &["type"]))
}

fn good_seccomp(kind: &str) -> bool {
    matches!(kind, "Localhost" | "RuntimeDefault")
}

fn seccomp_set_badly(subject: &Subject<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut bad = |profile: Option<&Value>| {
        let wrong = seccomp_type(profile).filter(|kind| !good_seccomp(kind));
        values.extend(wrong.map(str::to_owned));
        wrong.is_some()
    };
    let pod = bad(subject.spec(&["securityContext", "seccompProfile"]));
    let names = subject.bad_containers(|container| bad(context(container, &["seccompProfile"])));
    let who = setters(pod, &names)?;
    violation(
        "seccompProfile",
        format!(
            "{who} must not set securityContext.seccompProfile.type to {}",
            quoted(values)
        ),
    )
}

fn seccomp_restricted(subject: &Subject<'_>) -> Option<Violation> {
    if subject.windows() {
        return None;
    }
    if let Some(violation) = seccomp_set_badly(subject) {
        return Some(violation);
    }
    if seccomp_type(subject.spec(&["securityContext", "seccompProfile"])).is_some_and(good_seccomp)
    {
        return None;
    }
    let names =
        subject.bad_containers(|container| context(container, &["seccompProfile"]).is_none());
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&names)
    );
    violation("seccompProfile", detail)
}

/// Sysctls that stay within the Pod, and the version of the policy that came to know of it.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(subject: &Subject<'_>) -> Option<Violation> {
    let set = value::items(subject.pod, &["spec", "securityContext", "sysctls"])
        .iter()
        .map(name);
    let bad: Vec<&str> = set
        .filter(|name| {
            !SYSCTLS
                .iter()
                .any(|(known, since)| known == name && *since <= subject.minor)
        })
        .collect();
    if bad.is_empty() {
        None
    } else {
        violation("forbidden sysctls", bad.join(", "))
    }
}

fn windows_host_process(subject: &Subject<'_>) -> Option<Violation> {
    let set = |value: Option<&Value>| value.and_then(Value::as_bool) == Some(true);
    let pod = set(subject.spec(&["securityContext", "windowsOptions", "hostProcess"]));
    let names = subject
        .bad_containers(|container| set(context(container, &["windowsOptions", "hostProcess"])));
    let who = setters(pod, &names)?;
    violation(
        "hostProcess",
        format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn privilege_escalation(subject: &Subject<'_>) -> Option<Violation> {
    if subject.windows() {
        return None;
    }
    let names = subject.bad_containers(|container| {
        context(container, &["allowPrivilegeEscalation"]).and_then(Value::as_bool) != Some(false)
    });
    if names.is_empty() {
        return None;
    }
    violation(
        "allowPrivilegeEscalation != false",
        format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            containers(&names)
        ),
    )
}

fn capabilities_restricted(subject: &Subject<'_>) -> Option<Violation> {
    if subject.windows() {
        return None;
    }
    let keeping = subject.bad_containers(|container| {
        !strings(context(container, &["capabilities", "drop"])).any(|one| one == "ALL")
    });
    let mut added = BTreeSet::new();
    let adding = subject.bad_containers(|container| {
        let bad: Vec<&str> = strings(context(container, &["capabilities", "add"]))
            .filter(|one| *one != "NET_BIND_SERVICE")
            .collect();
        added.extend(bad.iter().copied());
        !bad.is_empty()
    });
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers(&keeping)
        ));
    }
    if !adding.is_empty() {
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(added)
        ));
    }
    if details.is_empty() {
        None
    } else {
        violation("unrestricted capabilities", details.join("; "))
    }
}

fn volumes(subject: &Subject<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let (mut names, mut types) = (Vec::new(), BTreeSet::new());
    for volume in value::items(subject.pod, &["spec", "volumes"]) {
        let source = volume
            .as_object()
            .into_iter()
            .flatten()
            .find(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key.as_str());
        if source.is_none_or(|source| !ALLOWED.contains(&source)) {
            names.push(name(volume));
            types.insert(source.unwrap_or("unknown"));
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural(
            "restricted volume type",
            "restricted volume types",
            types.len()
        ),
        quoted(types)
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(subject: &Subject<'_>) -> Option<Violation> {
    if subject.own_users() {
        return None;
    }
    const REASON: &str = "runAsNonRoot != true";
    let pod = subject
        .spec(&["securityContext", "runAsNonRoot"])
        .and_then(Value::as_bool);
    let of = |container| context(container, &["runAsNonRoot"]).and_then(Value::as_bool);
    let explicit = subject.bad_containers(|container| of(container) == Some(false));
    if let Some(who) = setters(pod == Some(false), &explicit) {
        return violation(
            REASON,
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        );
    }
    let implicit = subject.bad_containers(|container| of(container).is_none() && pod != Some(true));
    if implicit.is_empty() {
        return None;
    }
    violation(
        REASON,
        format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            containers(&implicit)
        ),
    )
}

fn run_as_user(subject: &Subject<'_>) -> Option<Violation> {
    if subject.own_users() {
        return None;
    }
    let root = |value: Option<&Value>| value.and_then(Value::as_i64) == Some(0);
    let pod = root(subject.spec(&["securityContext", "runAsUser"]));
    let names = subject.bad_containers(|container| root(context(container, &["runAsUser"])));
    let who = setters(pod, &names)?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}
