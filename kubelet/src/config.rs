//! The kubelet's configuration: the `KubeletConfiguration` file (v1beta1) and the flags beside it. A field or flag
//! that is not supported is an error that names it, so that a setting never silently means nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to load kubelet config file, path: {0}, error: {1}")]
    Read(PathBuf, std::io::Error),
    /// The file is not a valid `KubeletConfiguration`.
    #[error("failed to load kubelet config file, path: {0}, error: failed to decode: {1}")]
    Decode(PathBuf, String),
    /// A flag is not known, or its value is missing or unusable.
    #[error("{0}")]
    Flag(String),
    /// A value is out of its range.
    #[error("invalid configuration: {0}")]
    Invalid(String),
}

/// A duration in Go's text form, such as `1m0s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        parse_go_duration(&text)
            .map(GoDuration)
            .ok_or_else(|| serde::de::Error::custom(format!("time: invalid duration {text:?}")))
    }
}

impl Serialize for GoDuration {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format_go_duration(self.0))
    }
}

/// Reads a non-negative duration as Go's `time.ParseDuration` does.
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

/// Writes a duration as Go's `Duration.String` does.
pub fn format_go_duration(d: Duration) -> String {
    fn fraction(mut value: f64) -> String {
        value = (value * 1e9).round() / 1e9;
        let text = format!("{value:.9}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
    let nanos = d.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return format!("{}µs", fraction(nanos as f64 / 1e3));
    }
    if nanos < 1_000_000_000 {
        return format!("{}ms", fraction(nanos as f64 / 1e6));
    }
    let (hours, minutes) = (d.as_secs() / 3600, d.as_secs() / 60 % 60);
    let seconds = fraction((d.as_secs() % 60) as f64 + f64::from(d.subsec_nanos()) / 1e9);
    if hours > 0 {
        format!("{hours}h{minutes}m{seconds}s")
    } else if minutes > 0 {
        format!("{minutes}m{seconds}s")
    } else {
        format!("{seconds}s")
    }
}

/// `authentication.x509`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct X509Authentication {
    /// Client certificates signed by one of these authorities are accepted.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

/// `authentication.webhook`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookAuthentication {
    /// Whether bearer tokens are checked by a `TokenReview`.
    pub enabled: bool,
    /// For how long an answer is kept.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

impl Default for WebhookAuthentication {
    fn default() -> Self {
        WebhookAuthentication {
            enabled: true,
            cache_ttl: GoDuration(Duration::from_secs(120)),
        }
    }
}

/// `authentication.anonymous`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AnonymousAuthentication {
    /// Whether requests without credentials act as `system:anonymous`.
    pub enabled: bool,
}

/// How the kubelet's own server tells who is asking.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    /// By client certificate.
    pub x509: X509Authentication,
    /// By bearer token.
    pub webhook: WebhookAuthentication,
    /// Not at all.
    pub anonymous: AnonymousAuthentication,
}

/// `authorization.webhook`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookAuthorization {
    /// For how long an allowance is kept.
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    /// For how long a refusal is kept.
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

impl Default for WebhookAuthorization {
    fn default() -> Self {
        WebhookAuthorization {
            cache_authorized_ttl: GoDuration(Duration::from_secs(300)),
            cache_unauthorized_ttl: GoDuration(Duration::from_secs(30)),
        }
    }
}

/// Who may do what at the kubelet's own server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum AuthorizationMode {
    /// Everybody who is authenticated may do all.
    AlwaysAllow,
    /// A `SubjectAccessReview` decides.
    #[default]
    Webhook,
}

/// `authorization`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authorization {
    /// The mode.
    pub mode: AuthorizationMode,
    /// Settings of the mode `Webhook`.
    pub webhook: WebhookAuthorization,
}

/// `crashLoopBackOff`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CrashLoopBackOff {
    /// The longest wait between restarts; 5 min if absent.
    pub max_container_restart_period: Option<GoDuration>,
}

macro_rules! kubelet_configuration {
    ($( $(#[doc = $doc:literal])+ $(#[serde($s:meta)])? $name:ident : $type:ty = $default:expr, )*) => {
        /// `kubelet.config.k8s.io/v1beta1` `KubeletConfiguration`, the fields that are supported.
        #[derive(Clone, Debug, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct KubeletConfiguration {
            /// `kubelet.config.k8s.io/v1beta1`.
            pub api_version: String,
            /// `KubeletConfiguration`.
            pub kind: String,
            $( $(#[doc = $doc])+ $(#[serde($s)])? pub $name: $type, )*
        }

        impl Default for KubeletConfiguration {
            fn default() -> Self {
                KubeletConfiguration {
                    api_version: "kubelet.config.k8s.io/v1beta1".to_owned(),
                    kind: "KubeletConfiguration".to_owned(),
                    $( $name: $default, )*
                }
            }
        }
    };
}

const fn secs(n: u64) -> GoDuration {
    GoDuration(Duration::from_secs(n))
}

kubelet_configuration! {
    /// The address the kubelet serves on.
    address: IpAddr = IpAddr::from([0, 0, 0, 0]),
    /// The port of the HTTPS server; 0 for none.
    port: u16 = 10250,
    /// The port of the read-only server; only 0 (none) is supported.
    read_only_port: u16 = 0,
    /// The address of the plain-HTTP `/healthz`.
    healthz_bind_address: IpAddr = IpAddr::from([127, 0, 0, 1]),
    /// The port of the plain-HTTP `/healthz`; 0 for none.
    healthz_port: u16 = 10248,
    /// The serving certificate; one is made in `--cert-dir` if absent.
    tls_cert_file: Option<PathBuf> = None,
    /// The key of `tlsCertFile`.
    tls_private_key_file: Option<PathBuf> = None,
    /// Who is asking.
    authentication: Authentication = Authentication::default(),
    /// What they may do.
    authorization: Authorization = Authorization::default(),
    /// Whether the kubelet registers its node.
    register_node: bool = true,
    /// Taints of a newly registered node.
    register_with_taints: Vec<k8s_openapi::api::core::v1::Taint> = Vec::new(),
    /// The runtime's socket.
    container_runtime_endpoint: String = "unix:///run/containerd/containerd.sock".to_owned(),
    /// The image service's socket; must equal the runtime's if given.
    image_service_endpoint: Option<String> = None,
    /// The deadline of runtime calls.
    runtime_request_timeout: GoDuration = secs(120),
    /// `cgroupfs` (`systemd` is not supported yet).
    cgroup_driver: String = "cgroupfs".to_owned(),
    /// The cgroup below which all pods are put.
    cgroup_root: String = "/".to_owned(),
    /// Whether pods get cgroups by quality of service.
    #[serde(rename = "cgroupsPerQOS")]
    cgroups_per_qos: bool = true,
    /// Whether to refuse to run on cgroup v1.
    #[serde(rename = "failCgroupV1")]
    fail_cgroup_v1: bool = false,
    /// Whether to refuse to run with swap on.
    fail_swap_on: bool = true,
    /// Cluster DNS servers.
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<IpAddr> = Vec::new(),
    /// The cluster's DNS domain.
    cluster_domain: String = String::new(),
    /// The resolver file that pods with `dnsPolicy: Default` get.
    resolv_conf: PathBuf = PathBuf::from("/etc/resolv.conf"),
    /// At most this many pods.
    max_pods: u32 = 110,
    /// At most this many pods for each core; 0 for no such limit.
    pods_per_core: u32 = 0,
    /// At most this many processes in a pod; -1 for no limit.
    pod_pids_limit: i64 = -1,
    /// Where static pods are read from.
    static_pod_path: Option<PathBuf> = None,
    /// How often the static pod directory is read.
    file_check_frequency: GoDuration = secs(20),
    /// The longest time between two looks at a pod.
    sync_frequency: GoDuration = secs(60),
    /// How often the node's status is computed.
    node_status_update_frequency: GoDuration = secs(10),
    /// How often an unchanged node status is sent.
    node_status_report_frequency: GoDuration = secs(300),
    /// The life of the node's lease.
    node_lease_duration_seconds: u32 = 40,
    /// At most this many images in the node's status; -1 for all.
    #[serde(rename = "nodeStatusMaxImages")]
    node_status_max_images: i32 = 50,
    /// Whether images are pulled one after another.
    serialize_image_pulls: bool = true,
    /// At most this many pulls at once.
    max_parallel_image_pulls: Option<u32> = None,
    /// Whether CPU limits are enforced by quota.
    #[serde(rename = "cpuCFSQuota")]
    cpu_cfs_quota: bool = true,
    /// The period of the CPU quota.
    #[serde(rename = "cpuCFSQuotaPeriod")]
    cpu_cfs_quota_period: GoDuration = GoDuration(Duration::from_millis(100)),
    /// Requests per second to the API.
    #[serde(rename = "kubeAPIQPS")]
    kube_api_qps: i32 = 50,
    /// Burst of requests to the API.
    #[serde(rename = "kubeAPIBurst")]
    kube_api_burst: i32 = 100,
    /// Events per second to the API.
    #[serde(rename = "eventRecordQPS")]
    event_record_qps: i32 = 50,
    /// Burst of events to the API.
    event_burst: i32 = 100,
    /// Hard eviction thresholds; kept for allocatable, eviction itself is not done yet.
    eviction_hard: BTreeMap<String, String> = BTreeMap::new(),
    /// Image garbage collection starts at this disk usage.
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: i32 = 85,
    /// Image garbage collection ends at this disk usage.
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: i32 = 80,
    /// Held back from pods for the system.
    system_reserved: BTreeMap<String, String> = BTreeMap::new(),
    /// Held back from pods for Kubernetes.
    kube_reserved: BTreeMap<String, String> = BTreeMap::new(),
    /// Sysctls (or `prefix*`) that pods may set besides the safe ones.
    allowed_unsafe_sysctls: Vec<String> = Vec::new(),
    /// The size at which a container's log is rotated.
    container_log_max_size: String = "10Mi".to_owned(),
    /// How many log files are kept for a container.
    container_log_max_files: u32 = 5,
    /// Where pods' logs are.
    pod_logs_dir: PathBuf = PathBuf::from("/var/log/pods"),
    /// Whether `/debug` and exec handlers are served.
    enable_debugging_handlers: bool = true,
    /// Whether this kubelet's server does exec, attach and port-forward over connections at rest for this long.
    streaming_connection_idle_timeout: GoDuration = secs(4 * 3600),
    /// Whether hairpin mode is set; the network plugin's business.
    hairpin_mode: String = "promiscuous-bridge".to_owned(),
    /// Whether the seccomp profile `RuntimeDefault` is used where none is given.
    seccomp_default: bool = false,
    /// The oom score adjustment of the kubelet itself.
    oom_score_adj: i32 = -999,
    /// The wait between restarts.
    crash_loop_back_off: CrashLoopBackOff = CrashLoopBackOff::default(),
    /// Feature gates, which are accepted and recorded; behaviour follows v1.36 defaults.
    feature_gates: BTreeMap<String, bool> = BTreeMap::new(),
    /// The cloud's name for this node.
    #[serde(rename = "providerID")]
    provider_id: Option<String> = None,
}

/// All that a kubelet needs to know to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The configuration file.
    pub file: KubeletConfiguration,
    /// The name of the node.
    pub node_name: String,
    /// The node's addresses; found out by itself if empty.
    pub node_ips: Vec<IpAddr>,
    /// Labels of a newly registered node.
    pub node_labels: BTreeMap<String, String>,
    /// The kubelet's own directory.
    pub root_dir: PathBuf,
    /// Where certificates are kept.
    pub cert_dir: PathBuf,
    /// The kubeconfig; none to run static pods only.
    pub kubeconfig: Option<PathBuf>,
    /// Where the legacy links to containers' logs go; none for no links.
    pub container_logs_dir: Option<PathBuf>,
}

impl Config {
    /// The configuration of a node called `node_name`, with all defaults.
    pub fn new(node_name: impl Into<String>) -> Self {
        let root_dir = PathBuf::from("/var/lib/kubelet");
        Config {
            file: KubeletConfiguration::default(),
            node_name: node_name.into(),
            node_ips: Vec::new(),
            node_labels: BTreeMap::new(),
            cert_dir: root_dir.join("pki"),
            root_dir,
            kubeconfig: None,
            container_logs_dir: Some(PathBuf::from("/var/log/containers")),
        }
    }

    /// Reads upstream's command line (without the program's name). `-v` and `--v` are returned as the second value.
    pub fn from_args<I: IntoIterator<Item = String>>(
        args: I,
        default_hostname: &str,
    ) -> Result<(Self, u8), ConfigError> {
        let mut config = Config::new(default_hostname.to_lowercase());
        let mut verbosity = 0;
        let mut cert_dir = None;
        let mut later: Vec<(String, String)> = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                return Err(ConfigError::Flag(format!("unknown command {arg}")));
            };
            let (name, value) = match flag.split_once('=') {
                Some((n, v)) => (n.to_owned(), v.to_owned()),
                None => {
                    let value = args.next().ok_or_else(|| {
                        ConfigError::Flag(format!("flag needs an argument: --{flag}"))
                    })?;
                    (flag.to_owned(), value)
                }
            };
            match name.as_str() {
                "config" => config.file = KubeletConfiguration::load(Path::new(&value))?,
                "kubeconfig" => config.kubeconfig = Some(PathBuf::from(value)),
                "hostname-override" => config.node_name = value.trim().to_lowercase(),
                "node-ip" => {
                    config.node_ips = value
                        .split(',')
                        .map(|ip| {
                            ip.trim()
                                .parse()
                                .map_err(|_| ConfigError::Flag(format!("bad --node-ip {value:?}")))
                        })
                        .collect::<Result<_, _>>()?;
                }
                "node-labels" => {
                    for pair in value.split(',').filter(|p| !p.is_empty()) {
                        let (k, v) = pair.split_once('=').ok_or_else(|| {
                            ConfigError::Flag(format!(
                                "malformed pair, expect string=string: {pair}"
                            ))
                        })?;
                        config.node_labels.insert(k.to_owned(), v.to_owned());
                    }
                }
                "root-dir" => config.root_dir = PathBuf::from(value),
                "cert-dir" => cert_dir = Some(PathBuf::from(value)),
                "v" => {
                    verbosity = value.parse().map_err(|_| {
                        ConfigError::Flag(format!("invalid argument {value:?} for \"-v\" flag"))
                    })?;
                }
                "container-runtime-endpoint"
                | "pod-manifest-path"
                | "cluster-dns"
                | "cluster-domain"
                | "address"
                | "port"
                | "max-pods"
                | "cgroup-root"
                | "resolv-conf" => later.push((name, value)),
                _ => return Err(ConfigError::Flag(format!("unknown flag: --{name}"))),
            }
        }
        // Flags win over the file, wherever they stand.
        for (name, value) in later {
            config.file.set_flag(&name, value)?;
        }
        config.cert_dir = cert_dir.unwrap_or_else(|| config.root_dir.join("pki"));
        config.file.validate()?;
        if config.node_name.is_empty() {
            return Err(ConfigError::Flag("the node name is empty".to_owned()));
        }
        Ok((config, verbosity))
    }

    /// The directory of all pods.
    pub fn pods_dir(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    /// The directory of one pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }
}

impl KubeletConfiguration {
    /// Reads a configuration file, YAML or JSON. Unknown and duplicate fields are errors.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|e| ConfigError::Read(path.to_path_buf(), e))?;
        let file: KubeletConfiguration = serde_yaml_ng::from_str(&text)
            .map_err(|e| ConfigError::Decode(path.to_path_buf(), e.to_string()))?;
        if file.api_version != "kubelet.config.k8s.io/v1beta1"
            || file.kind != "KubeletConfiguration"
        {
            return Err(ConfigError::Decode(
                path.to_path_buf(),
                format!(
                    "no kind {:?} is registered for version {:?}",
                    file.kind, file.api_version
                ),
            ));
        }
        file.validate()?;
        Ok(file)
    }

    fn set_flag(&mut self, name: &str, value: String) -> Result<(), ConfigError> {
        let bad = |what: &str| {
            ConfigError::Flag(format!("invalid argument {what:?} for \"--{name}\" flag"))
        };
        match name {
            "container-runtime-endpoint" => self.container_runtime_endpoint = value,
            "pod-manifest-path" => self.static_pod_path = Some(PathBuf::from(value)),
            "cluster-domain" => self.cluster_domain = value,
            "cgroup-root" => self.cgroup_root = value,
            "resolv-conf" => self.resolv_conf = PathBuf::from(value),
            "cluster-dns" => {
                self.cluster_dns = value
                    .split(',')
                    .map(|ip| ip.parse().map_err(|_| bad(&value)))
                    .collect::<Result<_, _>>()?;
            }
            "address" => self.address = value.parse().map_err(|_| bad(&value))?,
            "port" => self.port = value.parse().map_err(|_| bad(&value))?,
            "max-pods" => self.max_pods = value.parse().map_err(|_| bad(&value))?,
            _ => return Err(ConfigError::Flag(format!("unknown flag: --{name}"))),
        }
        Ok(())
    }

    /// Checks ranges and what is not supported.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |m: &str| Err(ConfigError::Invalid(m.to_owned()));
        if self.cgroup_driver != "cgroupfs" {
            return fail("cgroupDriver: only \"cgroupfs\" is supported");
        }
        if self.read_only_port != 0 {
            return fail("readOnlyPort: the read-only server is not supported, use 0");
        }
        if !self.cgroups_per_qos {
            return fail("cgroupsPerQOS: must be true");
        }
        if let Some(image) = &self.image_service_endpoint
            && !image.is_empty()
            && *image != self.container_runtime_endpoint
        {
            return fail("imageServiceEndpoint: must equal containerRuntimeEndpoint");
        }
        if self.tls_cert_file.is_some() != self.tls_private_key_file.is_some() {
            return fail("tlsCertFile and tlsPrivateKeyFile must be given together");
        }
        if !self.cgroup_root.is_empty() && !self.cgroup_root.starts_with('/') {
            return fail("cgroupRoot: must be an absolute path");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, nanos, back) in [
            ("1m0s", 60_000_000_000u64, "1m0s"),
            ("1h15m30.5s", 4_530_500_000_000, "1h15m30.5s"),
            ("100ms", 100_000_000, "100ms"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("0", 0, "0s"),
            ("20s", 20_000_000_000, "20s"),
            ("1234ns", 1234, "1.234µs"),
        ] {
            let d = parse_go_duration(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(d.as_nanos(), u128::from(nanos), "{text}");
            assert_eq!(format_go_duration(d), back, "{text}");
        }
        for bad in ["", "5", "s", "1x", "1h 2m", "-1s"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn testbed_flags() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubelet.yaml");
        let good = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\n\
            failSwapOn: false\ncgroupDriver: cgroupfs\ncgroupRoot: /kn1\ncontainerRuntimeEndpoint: unix:///c.sock\n\
            address: 10.200.0.11\nhealthzBindAddress: 127.0.0.1\ntlsCertFile: a\ntlsPrivateKeyFile: b\n\
            authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: ca.crt}}\n\
            authorization: {mode: Webhook}\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\nresolvConf: r\n\
            serializeImagePulls: false\nmaxPods: 200\nevictionHard: {memory.available: 200Mi}\n\
            imageGCHighThresholdPercent: 99\nimageGCLowThresholdPercent: 98\nkubeAPIQPS: 100\nkubeAPIBurst: 200\n";
        let check = |text: &str, flags: &[&str]| {
            std::fs::write(&file, text).unwrap();
            let mut args = vec![format!("--config={}", file.display())];
            args.extend(flags.iter().map(|s| (*s).to_owned()));
            Config::from_args(args, "Host").map_err(|e| e.to_string())
        };
        let (c, v) = check(
            good,
            &[
                "--node-ip=10.200.0.11",
                "--hostname-override=n1",
                "--root-dir=/r",
                "--cert-dir=/c",
                "-v=2",
            ],
        )
        .unwrap();
        assert_eq!((c.node_name.as_str(), v, c.file.max_pods), ("n1", 2, 200));
        assert_eq!(
            c.file.authentication.x509.client_ca_file,
            Some("ca.crt".into())
        );
        assert_eq!(check(good, &[]).unwrap().0.node_name, "host");
        for (text, flags, want) in [
            (good, &["--nope=1"][..], "unknown flag: --nope"),
            (
                &format!("{good}bogus: 1\n"),
                &[][..],
                "unknown field `bogus`",
            ),
            (&format!("{good}maxPods: 3\n"), &[][..], "duplicate"),
            (
                &good.replace("cgroupfs", "systemd"),
                &[][..],
                "only \"cgroupfs\"",
            ),
            (&good.replace("v1beta1", "v9"), &[][..], "no kind"),
        ] {
            let e = check(text, flags).unwrap_err();
            assert!(e.contains(want), "{e} lacks {want}");
        }
    }
}
