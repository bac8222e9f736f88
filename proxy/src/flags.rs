//! The command line: upstream's flags, as far as they mean something here.

use std::path::PathBuf;

use keelson_machinery::clock::Clock;
use keelson_machinery::time::parse_duration;

use crate::config::{ConfigError, GoDuration, KubeProxyConfiguration};
use crate::run::Config;

/// Why the command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// There is no such flag.
    #[error("unknown flag: {0}")]
    Unknown(String),
    /// Something that is not a flag.
    #[error("unknown argument: {0}")]
    Argument(String),
    /// A flag without its value.
    #[error("flag needs an argument: --{0}")]
    NoValue(String),
    /// A value that is not possible.
    #[error("invalid argument {value:?} for --{flag}: {reason}")]
    Value {
        /// The flag.
        flag: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be read.
    #[error("reading {0}: {1}")]
    File(PathBuf, #[source] std::io::Error),
    /// File or flags ask for something that is not possible.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What the command line asks for.
pub struct Command {
    /// How to run.
    pub config: Config,
    /// How to reach the API server, where it is told.
    pub kubeconfig: Option<PathBuf>,
    /// The verbosity of logs.
    pub verbosity: u8,
    /// Only delete the rules.
    pub cleanup: bool,
}

impl Command {
    /// Reads the command line. As upstream: with `--config`, of the other settings only `--hostname-override` counts.
    pub fn parse(arguments: Vec<String>, host_name: &str, clock: Clock) -> Result<Self, FlagError> {
        let mut flags = KubeProxyConfiguration::default();
        let (mut file, mut table, mut verbosity, mut cleanup) = (None, None, 0, false);
        let mut arguments = arguments.into_iter().peekable();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument
                .strip_prefix("--")
                .or_else(|| argument.strip_prefix('-'))
            else {
                return Err(FlagError::Argument(argument));
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (flag.to_owned(), None),
            };
            let is_switch = matches!(
                name.as_str(),
                "masquerade-all" | "cleanup" | "conntrack-tcp-be-liberal"
            );
            let value = match given {
                Some(value) => value,
                None if is_switch => "true".to_owned(),
                None => arguments
                    .next()
                    .ok_or_else(|| FlagError::NoValue(name.clone()))?,
            };
            let bad = |reason: String| FlagError::Value {
                flag: name.clone(),
                value: value.clone(),
                reason,
            };
            let switch = || value.parse::<bool>().map_err(|e| bad(e.to_string()));
            let number = || value.parse::<u32>().map_err(|e| bad(e.to_string()));
            let duration = || {
                let nanos = parse_duration(&value).map_err(|e| bad(e.to_string()))?;
                let nanos =
                    u64::try_from(nanos).map_err(|_| bad("must not be negative".to_owned()))?;
                Ok::<_, FlagError>(GoDuration(std::time::Duration::from_nanos(nanos)))
            };
            match name.as_str() {
                "config" => file = Some(PathBuf::from(&value)),
                "kubeconfig" => flags.client_connection.kubeconfig = value,
                "hostname-override" => flags.hostname_override = value,
                "bind-address" => flags.bind_address = value,
                "healthz-bind-address" => flags.healthz_bind_address = value,
                "metrics-bind-address" => flags.metrics_bind_address = value,
                "proxy-mode" => flags.mode = value,
                "cluster-cidr" => flags.cluster_cidr = value,
                "detect-local-mode" => flags.detect_local_mode = value,
                "pod-bridge-interface" => flags.detect_local.bridge_interface = value,
                "pod-interface-name-prefix" => flags.detect_local.interface_name_prefix = value,
                "nodeport-addresses" => {
                    flags.node_port_addresses = Some(
                        value
                            .split(',')
                            .filter(|v| !v.is_empty())
                            .map(str::to_owned)
                            .collect(),
                    );
                }
                "masquerade-all" => flags.nftables.masquerade_all = switch()?,
                "iptables-masquerade-bit" => flags.nftables.masquerade_bit = Some(number()?),
                "iptables-sync-period" => flags.nftables.sync_period = Some(duration()?),
                "iptables-min-sync-period" => flags.nftables.min_sync_period = Some(duration()?),
                "conntrack-max-per-core" => flags.conntrack.max_per_core = Some(number()?),
                "conntrack-min" => flags.conntrack.min = Some(number()?),
                "conntrack-tcp-timeout-established" => {
                    flags.conntrack.tcp_established_timeout = Some(duration()?);
                }
                "conntrack-tcp-timeout-close-wait" => {
                    flags.conntrack.tcp_close_wait_timeout = Some(duration()?);
                }
                "conntrack-tcp-be-liberal" => flags.conntrack.tcp_be_liberal = switch()?,
                "conntrack-udp-timeout" => flags.conntrack.udp_timeout = duration()?,
                "conntrack-udp-timeout-stream" => flags.conntrack.udp_stream_timeout = duration()?,
                "cleanup" => cleanup = switch()?,
                "table" => table = Some(value),
                "v" => {
                    verbosity = value
                        .parse()
                        .map_err(|e: std::num::ParseIntError| bad(e.to_string()))?
                }
                _ => return Err(FlagError::Unknown(argument)),
            }
        }
        if let Some(path) = file {
            let text = std::fs::read_to_string(&path).map_err(|e| FlagError::File(path, e))?;
            let host_name = std::mem::take(&mut flags.hostname_override);
            flags = KubeProxyConfiguration::parse(&text)?;
            if !host_name.is_empty() {
                flags.hostname_override = host_name;
            }
        }
        let settings = flags.resolve()?;
        let node_name = settings
            .node_name
            .clone()
            .unwrap_or_else(|| host_name.to_owned());
        let mut config = Config::new(settings, &node_name, clock);
        if let Some(table) = table {
            config.table = table;
        }
        let kubeconfig = Some(flags.client_connection.kubeconfig)
            .filter(|k| !k.is_empty())
            .map(PathBuf::from);
        Ok(Command {
            config,
            kubeconfig,
            verbosity,
            cleanup,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, FlagError> {
        Command::parse(
            line.split_whitespace().map(str::to_owned).collect(),
            "host",
            Clock::system(),
        )
    }

    #[test]
    fn flags() {
        let command = parse(
            "--kubeconfig=/k --hostname-override N1 --cluster-cidr 10.244.0.0/16 --masquerade-all -v 4",
        );
        let command = command.unwrap();
        assert_eq!(command.config.node_name, "n1");
        assert_eq!(
            (command.verbosity, command.config.settings.masquerade_all),
            (4, true)
        );
        assert_eq!(parse("").unwrap().config.node_name, "host");
        for (line, want) in [
            ("--colour=blue", "unknown flag: --colour=blue"),
            ("blue", "unknown argument: blue"),
            ("--cluster-cidr", "flag needs an argument: --cluster-cidr"),
            (
                "--conntrack-min=x",
                "invalid argument \"x\" for --conntrack-min",
            ),
            ("--proxy-mode=ipvs", "is not supported"),
            ("--config=/no/such/file", "reading /no/such/file"),
        ] {
            let error = parse(line).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(want), "{line}: {error}");
        }
    }
}
