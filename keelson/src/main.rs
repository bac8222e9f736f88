//! The `keelson` binary: every component of a Kubernetes cluster, and the commands that run one.

mod cluster;
mod components;
mod machines;
mod node;
mod pause;

use clap::{Parser, Subcommand};

/// Kubernetes v1.36 in one binary
#[derive(Parser)]
#[command(name = "keelson", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine, or find the one that runs
    Up(cluster::up::Options),
    /// Stop the cluster
    Down(cluster::down::Options),
    /// Run the control plane in the foreground: API server, controllers, scheduler
    Server(components::server::Flags),
    /// Make this machine a node of a cluster whose control plane runs elsewhere
    Agent(components::agent::Flags),
    /// Run the API server alone, by upstream's flags
    KubeApiserver(components::apiserver::Flags),
    /// Run the controllers alone, by upstream's flags
    KubeControllerManager(components::controller_manager::Flags),
    /// Run the scheduler alone, by upstream's flags
    KubeScheduler(components::scheduler::Flags),
    /// Run the kubelet alone, by upstream's flags
    Kubelet(components::kubelet::Flags),
    /// Run the dataplane alone, by upstream's flags
    KubeProxy(components::proxy::Flags),
    /// Import images into the cluster
    Images(components::images::Flags),
    /// Run an upstream e2e.test binary against the cluster
    Conformance(components::conformance::Flags),
    /// Run cluster DNS
    Dns(components::dns::Flags),
    /// Control plane and node in one process; started by `up`
    #[command(hide = true)]
    RunCluster(cluster::run::Options),
    /// Clusters of several nodes on this machine
    Cluster(machines::commands::Flags),
    /// Makes the namespaces of one node; started by `cluster`
    #[command(hide = true)]
    Machine(machines::machine::Flags),
    /// PID 1 of one node
    #[command(hide = true)]
    MachineInit(machines::machine::Flags),
    /// Show what runs, since when, with what memory
    Status(cluster::status::Options),
    /// The process that holds a pod's namespaces (PID 1 of sandboxes)
    #[command(hide = true)]
    Pause,
}

fn main() {
    // Before anything else: a sandbox's PID 1 must stay tiny.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|command| command == "pause")
    {
        std::process::exit(pause::run());
    }
    let cli = Cli::parse();
    if let Command::Machine(flags) = &cli.command {
        // Before there is a second thread.
        if let Err(error) = machines::machine::enter(flags) {
            eprintln!("keelson: {error:#}");
            std::process::exit(1);
        }
        return;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("keelson: cannot start the runtime: {error}");
            std::process::exit(1);
        }
    };
    if let Err(error) = runtime.block_on(run(cli.command)) {
        eprintln!("keelson: {error:#}");
        std::process::exit(1);
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(options) => cluster::up::run(options).await,
        Command::Down(options) => cluster::down::run(options).await,
        Command::RunCluster(options) => cluster::run::run(options).await,
        Command::KubeControllerManager(flags) => components::controller_manager::run(flags).await,
        Command::KubeProxy(flags) => components::proxy::run(flags).await,
        Command::Images(flags) => components::images::run(flags).await,
        Command::Conformance(flags) => components::conformance::run(flags).await,
        Command::KubeScheduler(flags) => components::scheduler::run(flags).await,
        Command::Kubelet(flags) => components::kubelet::run(flags).await,
        Command::Dns(flags) => components::dns::run(flags).await,
        Command::Server(flags) => components::server::run(flags).await,
        Command::Agent(flags) => components::agent::run(flags).await,
        Command::KubeApiserver(flags) => components::apiserver::run(flags).await,
        Command::Status(options) => cluster::status::run(options).await,
        Command::Cluster(flags) => machines::commands::run(flags).await,
        Command::Machine(flags) => machines::machine::enter(&flags),
        Command::MachineInit(flags) => machines::machine::init(flags).await,
        Command::Pause => std::process::exit(pause::run()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The control plane's flags of a stock upstream cluster (`../shared/testbed/cluster-up.sh`).
    const COMPONENTS: [(&str, &str); 3] = [
        (
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:22379 --bind-address=10.200.0.1 --advertise-address=10.200.0.1 --secure-port=6443 \
             --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt \
             --kubelet-client-certificate=pki/k.crt --kubelet-client-key=pki/k.key --kubelet-certificate-authority=pki/ca.crt \
             --kubelet-preferred-address-types=InternalIP --requestheader-client-ca-file=pki/f.crt \
             --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
             --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
             --proxy-client-cert-file=pki/p.crt --proxy-client-key-file=pki/p.key --service-account-key-file=pki/sa.pub \
             --service-account-signing-key-file=pki/sa.key --service-account-issuer=https://10.96.0.1 \
             --service-account-jwks-uri=https://10.96.0.1/openid/v1/jwks \
             --api-audiences=https://10.96.0.1,https://kubernetes.default.svc --authorization-mode=Node,RBAC \
             --enable-admission-plugins=NodeRestriction --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true \
             --etcd-cafile=pki/ca.crt --etcd-certfile=pki/e.crt --etcd-keyfile=pki/e.key --etcd-prefix=/registry",
        ),
        (
            "kube-controller-manager",
            "--kubeconfig=kcm.kubeconfig --authentication-kubeconfig=kcm.kubeconfig --authorization-kubeconfig=kcm.kubeconfig \
             --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt --cluster-signing-cert-file=pki/ca.crt \
             --cluster-signing-key-file=pki/ca.key --use-service-account-credentials --leader-elect=false --cert-dir=certs \
             --bind-address=127.0.0.1 --controllers=*,bootstrapsigner,tokencleaner",
        ),
        (
            "kube-scheduler",
            "--kubeconfig=sched.kubeconfig --authentication-kubeconfig=sched.kubeconfig \
             --authorization-kubeconfig=sched.kubeconfig --leader-elect=false --cert-dir=certs --bind-address=127.0.0.1",
        ),
    ];

    #[test]
    fn upstreams_flags_are_read_and_unknown_ones_named() {
        for (component, flags) in COMPONENTS {
            let line = format!("keelson {component} {flags}");
            if let Err(error) = Cli::try_parse_from(line.split_whitespace()) {
                panic!("{component}: {error}");
            }
            let unknown = format!("{line} --no-such-flag=1");
            let Err(error) = Cli::try_parse_from(unknown.split_whitespace()) else {
                panic!("{component} takes any flag");
            };
            assert!(error.to_string().contains("--no-such-flag"), "{error}");
        }
    }

    #[test]
    fn kubelet_and_proxy_read_theirs() {
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let kubelet = "--kubeconfig=n1.kubeconfig --node-ip=10.200.0.11 --hostname-override=n1 \
                       --root-dir=/var/lib/kubelet --cert-dir=kcert -v=2";
        let (config, verbosity) =
            keelson_kubelet::Config::from_args(words(kubelet), "host").unwrap();
        assert_eq!((config.node_name.as_str(), verbosity), ("n1", 2));
        let error = keelson_kubelet::Config::from_args(words("--no-such-flag=1"), "host");
        assert!(error.unwrap_err().to_string().contains("--no-such-flag"));

        let clock = keelson_machinery::clock::Clock::system;
        let parse = |line| keelson_proxy::flags::Command::parse(words(line), "host", clock());
        assert!(parse("--kubeconfig=p.kubeconfig --hostname-override=n1").is_ok());
        let Err(error) = parse("--no-such-flag=1") else {
            panic!("the proxy takes any flag");
        };
        assert!(error.to_string().contains("--no-such-flag"), "{error}");
    }
}
