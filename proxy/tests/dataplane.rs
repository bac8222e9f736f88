//! The dataplane for real: a client, a node and two pods in network namespaces of their own, and traffic through services.
//!
//! ```text
//! client 192.0.2.2 ── 192.0.2.1 node 10.244.1.1 ── 10.244.1.2 one
//!                                    10.244.2.1 ── 10.244.2.2 two
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use keelson_proxy::model::{ServiceModel, slice_from_api};
use keelson_proxy::nft::Family;
use keelson_proxy::proxier::{Proxier, cleanup};
use keelson_proxy::rules::{Environment, LocalDetection, NodePortAddresses};
use keelson_proxy::topology::Place;
use serde_json::{Value, json};

const TABLE: &str = "keelson-proxy-test";
/// Long enough for an answer, short enough to wait for none.
const PATIENCE: Duration = Duration::from_millis(400);

fn run(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{command}: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            eprintln!("{command}: {error}");
            false
        }
    }
}

/// Runs `work` on a thread in a network namespace.
fn within<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = format!("/run/netns/{namespace}");
    std::thread::spawn(move || {
        let file = std::fs::File::open(path).unwrap();
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind))
            .unwrap();
        work()
    })
    .join()
    .unwrap()
}

struct Network {
    prefix: String,
}

impl Network {
    /// `None`, with the reason told, where namespaces cannot be made.
    fn build() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces need root");
            return None;
        }
        let network = Network {
            prefix: format!("kp{}x{number}", std::process::id() % 100_000),
        };
        for name in ["client", "node", "one", "two"] {
            if !run(&format!("ip netns add {}", network.name(name))) {
                eprintln!("SKIPPED: no network namespace can be made here");
                return None;
            }
            // Addresses are usable at once.
            let settings = "net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0";
            assert!(run(&format!(
                "ip netns exec {} sysctl -qw {settings}",
                network.name(name)
            )));
        }
        let node = network.name("node");
        for (peer, near, far, near6, far6) in [
            (
                "client",
                "192.0.2.1/24",
                "192.0.2.2/24",
                "2001:db8::1/64",
                "2001:db8::2/64",
            ),
            (
                "one",
                "10.244.1.1/24",
                "10.244.1.2/24",
                "fd00:1::1/64",
                "fd00:1::2/64",
            ),
            (
                "two",
                "10.244.2.1/24",
                "10.244.2.2/24",
                "fd00:2::1/64",
                "fd00:2::2/64",
            ),
        ] {
            let there = network.name(peer);
            let (gateway, gateway6) = (
                near.split('/').next().unwrap(),
                near6.split('/').next().unwrap(),
            );
            for command in [
                format!(
                    "ip link add to-{peer} netns {node} type veth peer name eth0 netns {there}"
                ),
                format!("ip -n {node} addr add {near} dev to-{peer}"),
                format!("ip -n {node} addr add {near6} dev to-{peer} nodad"),
                format!("ip -n {node} link set to-{peer} up"),
                format!("ip -n {there} addr add {far} dev eth0"),
                format!("ip -n {there} addr add {far6} dev eth0 nodad"),
                format!("ip -n {there} link set eth0 up"),
                format!("ip -n {there} link set lo up"),
                format!("ip -n {there} route add default via {gateway}"),
                format!("ip -n {there} -6 route add default via {gateway6}"),
            ] {
                assert!(run(&command), "{command}");
            }
        }
        // Packets to services need some route before they are led elsewhere.
        for command in [
            format!("ip -n {node} link set lo up"),
            format!("ip -n {node} route add 10.96.0.0/16 via 10.244.2.2"),
            format!(
                "ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0 net.ipv6.conf.all.forwarding=1"
            ),
        ] {
            assert!(run(&command), "{command}");
        }
        Some(network)
    }

    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// Answers TCP and UDP on port 8080 with its name and who asked.
    fn serve(&self, part: &'static str) {
        let (tcp, udp) = within(&self.name(part), || {
            (
                TcpListener::bind("[::]:8080").unwrap(),
                UdpSocket::bind("0.0.0.0:8080").unwrap(),
            )
        });
        let say = move |peer: SocketAddr| format!("{part} {}", peer.ip().to_canonical());
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let peer = stream.peer_addr().unwrap();
                let _ = stream.write_all(say(peer).as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(say(peer).as_bytes(), peer);
            }
        });
    }

    /// Asks by TCP; what was answered, `refused`, or `silence`.
    fn ask(&self, from: &str, to: &str) -> String {
        let to: SocketAddr = to.parse().unwrap();
        within(&self.name(from), move || {
            match TcpStream::connect_timeout(&to, PATIENCE) {
                Ok(mut stream) => {
                    let mut answer = String::new();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    match stream.read_to_string(&mut answer) {
                        Ok(_) => answer,
                        Err(error) => format!("connected, then {error}"),
                    }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused".to_owned(),
                Err(error) if error.kind() == ErrorKind::TimedOut => "silence".to_owned(),
                Err(error) => error.to_string(),
            }
        })
    }

    /// The different answers to many requests, in order.
    fn ask_often(&self, from: &str, to: &str) -> String {
        let mut answers: Vec<String> = (0..24).map(|_| self.ask(from, to)).collect();
        answers.sort();
        answers.dedup();
        answers.join(", ")
    }

    fn proxier(&self, environment: Environment) -> Proxier {
        within(&self.name("node"), move || {
            Proxier::open(TABLE, &Family::ALL, environment).unwrap()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in ["client", "node", "one", "two"] {
            run(&format!("ip netns del {}", self.name(name)));
        }
    }
}

fn environment() -> Environment {
    let ips = |texts: &[&str]| texts.iter().map(|t| t.parse::<IpAddr>().unwrap()).collect();
    Environment {
        place: Place {
            node: "node".into(),
            zone: String::new(),
        },
        node_ips: ips(&["192.0.2.1", "2001:db8::1"]),
        node_port_addresses: NodePortAddresses::Primary,
        local_detection: LocalDetection::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        masquerade_all: false,
        masquerade_egress: vec!["10.244.0.0/16".parse().unwrap()],
        masquerade_mark: 1 << 14,
    }
}

fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                let old = base.remove(&key).unwrap_or(Value::Null);
                base.insert(key, merged(old, value));
            }
        }
        (_, over) => return over,
    }
    base
}

/// Puts a service `ns/web` in place: 10.96.0.1 (and fd96::1) port 80 by TCP and 53 by UDP.
fn put_service(proxier: &mut Proxier, over: Value) {
    let base = json!({
        "metadata": {"namespace": "ns", "name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"], "type": "ClusterIP", "ports": [
            {"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}});
    let service = serde_json::from_value(merged(base, over)).unwrap();
    proxier.set_service("ns/web", ServiceModel::from_api(&service));
}

/// Endpoints as `address` or `address@node`, all in one slice per family.
fn put_endpoints(proxier: &mut Proxier, endpoints: &[&str]) {
    for (kind, name) in [("IPv4", "ns/web-4"), ("IPv6", "ns/web-6")] {
        let list: Vec<Value> = endpoints
            .iter()
            .filter(|e| e.contains(':') == (kind == "IPv6"))
            .map(|e| match e.split_once('@') {
                Some((ip, node)) => json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true}}),
                None => json!({"addresses": [e], "nodeName": "elsewhere", "conditions": {"ready": true}}),
            })
            .collect();
        let slice = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": kind, "endpoints": list,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 8080, "protocol": "UDP"}]}))
        .unwrap();
        proxier.set_slice(name, slice_from_api(&slice, "node"));
    }
    proxier.sync().unwrap();
}

const ONE: &str = "10.244.1.2@node";
const TWO: &str = "10.244.2.2@node";
const TWO_ELSEWHERE: &str = "10.244.2.2";

#[test]
fn traffic() {
    let Some(network) = Network::build() else {
        return;
    };
    network.serve("one");
    network.serve("two");
    let mut proxier = network.proxier(environment());

    put_service(&mut proxier, json!({}));
    put_endpoints(&mut proxier, &[ONE, TWO, "fd00:1::2@node"]);
    // From outside the cluster replies must come back by this node; a pod is seen as itself, but not by itself.
    assert_eq!(
        network.ask_often("client", "10.96.0.1:80"),
        "one 10.244.1.1, two 10.244.2.1"
    );
    assert_eq!(
        network.ask_often("node", "10.96.0.1:80"),
        "one 10.244.2.1, two 10.244.2.1"
    );
    assert_eq!(
        network.ask_often("one", "10.96.0.1:80"),
        "one 10.244.1.1, two 10.244.1.2"
    );
    assert_eq!(network.ask("client", "[fd96::1]:80"), "one 2001:db8::2");
    network.serve("client");
    assert_eq!(
        network.ask("one", "192.0.2.2:8080"),
        "client 192.0.2.1",
        "a pod to outside the cluster"
    );
    assert_eq!(network.ask("one", "10.244.2.2:8080"), "two 10.244.1.2");
    assert_eq!(
        network.ask("client", "10.96.0.1:81"),
        "refused",
        "a port that the service has not"
    );
    assert_eq!(
        network.ask("client", "10.96.0.99:80"),
        "silence",
        "an address that no service has"
    );

    // Endpoints come and go.
    put_endpoints(&mut proxier, &[TWO]);
    assert_eq!(
        network.ask_often("client", "10.96.0.1:80"),
        "two 10.244.2.1"
    );
    put_endpoints(&mut proxier, &[]);
    assert_eq!(network.ask("client", "10.96.0.1:80"), "refused");
    assert_eq!(network.ask("node", "10.96.0.1:80"), "refused");
    put_endpoints(&mut proxier, &[ONE]);
    assert_eq!(
        network.ask_often("client", "10.96.0.1:80"),
        "one 10.244.1.1"
    );
    assert!(proxier.has_stale());
    // Kernels before 6.2 take a moment to see that nothing leads there any more.
    for _ in 0..50 {
        if !proxier.delete_stale() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!proxier.has_stale());

    // Clients stay where they were, also when others come.
    let affinity = json!({"spec": {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}});
    put_service(&mut proxier, affinity.clone());
    put_endpoints(&mut proxier, &[ONE, TWO]);
    let first = network.ask_often("client", "10.96.0.1:80");
    assert!(
        first == "one 10.244.1.1" || first == "two 10.244.2.1",
        "{first}"
    );
    let longer = json!({"spec": {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90}}}});
    put_service(&mut proxier, merged(affinity, longer));
    proxier.sync().unwrap();
    assert!(!network.ask_often("client", "10.96.0.1:80").contains(','));

    // Node ports, first for everyone, then for this node's endpoints only.
    let node_port = |policy: &str| {
        json!({"spec": {"type": "NodePort", "externalTrafficPolicy": policy, "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]}})
    };
    put_service(&mut proxier, node_port("Cluster"));
    put_endpoints(&mut proxier, &[ONE, TWO_ELSEWHERE]);
    assert_eq!(
        network.ask_often("client", "192.0.2.1:30080"),
        "one 10.244.1.1, two 10.244.2.1"
    );
    assert_eq!(network.ask("client", "192.0.2.1:30081"), "refused");
    put_service(&mut proxier, node_port("Local"));
    proxier.sync().unwrap();
    assert_eq!(
        network.ask_often("client", "192.0.2.1:30080"),
        "one 192.0.2.2"
    );
    assert_eq!(
        network.ask_often("node", "192.0.2.1:30080"),
        "one 10.244.1.1, two 10.244.2.1"
    );
    put_endpoints(&mut proxier, &[TWO_ELSEWHERE]);
    assert_eq!(network.ask("client", "192.0.2.1:30080"), "silence");
    put_endpoints(&mut proxier, &[]);
    assert_eq!(network.ask("client", "192.0.2.1:30080"), "refused");

    // Load balancers' addresses with and without a fence, and external addresses.
    let balanced = |ranges: &[&str]| {
        json!({"spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.7"], "loadBalancerSourceRanges": ranges},
               "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}]}}})
    };
    put_service(&mut proxier, balanced(&["192.0.2.0/24"]));
    put_endpoints(&mut proxier, &[ONE]);
    assert_eq!(network.ask("client", "198.51.100.7:80"), "one 10.244.1.1");
    assert_eq!(network.ask("client", "198.51.100.8:80"), "one 10.244.1.1");
    put_service(&mut proxier, balanced(&["203.0.113.0/24"]));
    proxier.sync().unwrap();
    assert_eq!(network.ask("client", "198.51.100.7:80"), "one 10.244.1.1");
    assert_eq!(network.ask("client", "198.51.100.8:80"), "silence");

    // internalTrafficPolicy
    put_service(
        &mut proxier,
        json!({"spec": {"internalTrafficPolicy": "Local"}}),
    );
    put_endpoints(&mut proxier, &[ONE, TWO_ELSEWHERE]);
    assert_eq!(
        network.ask_often("client", "10.96.0.1:80"),
        "one 10.244.1.1"
    );
    put_endpoints(&mut proxier, &[TWO_ELSEWHERE]);
    assert_eq!(network.ask("client", "10.96.0.1:80"), "silence");

    proxier.set_service("ns/web", None);
    proxier.sync().unwrap();
    assert_eq!(network.ask("client", "10.96.0.1:80"), "silence");
}

#[test]
fn udp_follows_the_endpoints() {
    let Some(network) = Network::build() else {
        return;
    };
    network.serve("one");
    network.serve("two");
    let mut proxier = network.proxier(environment());
    put_service(&mut proxier, json!({}));
    put_endpoints(&mut proxier, &[ONE]);
    // One socket, so that for connection tracking it is one connection.
    let socket = within(&network.name("client"), || {
        UdpSocket::bind("0.0.0.0:0").unwrap()
    });
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = || {
        let mut buffer = [0; 64];
        socket.send_to(b"?", "10.96.0.1:53").unwrap();
        match socket.recv_from(&mut buffer) {
            Ok((len, _)) => String::from_utf8_lossy(&buffer[..len]).into_owned(),
            Err(error) => error.kind().to_string(),
        }
    };
    assert_eq!(ask(), "one 10.244.1.1");
    put_endpoints(&mut proxier, &[TWO]);
    assert_eq!(ask(), "two 10.244.2.1");
}

#[test]
fn leftovers_converge_and_cleanup_leaves_nothing() {
    let Some(network) = Network::build() else {
        return;
    };
    network.serve("one");
    let mut first = network.proxier(environment());
    put_service(&mut first, json!({"spec": {"sessionAffinity": "ClientIP"}}));
    put_endpoints(&mut first, &[ONE, TWO]);
    drop(first);
    // A table that another process left, and someone meddled with, is replaced.
    let node = network.name("node");
    assert!(run(&format!(
        "ip netns exec {node} nft add chain ip {TABLE} stray"
    )));
    assert!(run(&format!(
        "ip netns exec {node} nft flush chain ip {TABLE} services"
    )));
    let mut second = network.proxier(environment());
    put_service(&mut second, json!({}));
    put_endpoints(&mut second, &[ONE]);
    assert_eq!(network.ask("client", "10.96.0.1:80"), "one 10.244.1.1");
    let listed = || {
        let output = Command::new("ip")
            .args(["netns", "exec", &node, "nft", "list", "ruleset"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!listed().contains("stray"));
    assert!(!listed().contains("affinity-"));
    // A change that the kernel refuses is mended by writing everything anew.
    assert!(run(&format!(
        "ip netns exec {node} nft delete table ip {TABLE}"
    )));
    put_service(
        &mut second,
        json!({"spec": {"externalIPs": ["198.51.100.7"]}}),
    );
    assert!(second.sync().is_err());
    second.sync().unwrap();
    assert_eq!(network.ask("client", "198.51.100.7:80"), "one 10.244.1.1");
    // One that nobody notices by a change is found by looking.
    assert!(run(&format!("ip netns exec {node} nft flush ruleset")));
    second.verify().unwrap();
    assert!(second.is_dirty());
    second.sync().unwrap();
    second.verify().unwrap();
    assert!(!second.is_dirty());
    assert_eq!(network.ask("client", "198.51.100.7:80"), "one 10.244.1.1");
    within(&node, || cleanup(TABLE).unwrap());
    assert_eq!(listed(), "");
    within(&node, || cleanup(TABLE).unwrap());
}

#[test]
fn many_services_in_one_transaction() {
    let Some(network) = Network::build() else {
        return;
    };
    network.serve("one");
    let mut proxier = network.proxier(environment());
    for i in 0..1000u32 {
        let ip = format!("10.96.{}.{}", 1 + i / 250, 1 + i % 250);
        let service = json!({"metadata": {"namespace": "ns", "name": format!("s{i}")},
            "spec": {"clusterIP": ip, "type": "NodePort", "sessionAffinity": if i % 2 == 0 { "None" } else { "ClientIP" },
                     "ports": [{"port": 80, "nodePort": 30000 + i % 2700}]}});
        proxier.set_service(
            &format!("ns/s{i}"),
            ServiceModel::from_api(&serde_json::from_value(service).unwrap()),
        );
        let slice = json!({"metadata": {"namespace": "ns", "name": format!("s{i}-a"), "labels": {"kubernetes.io/service-name": format!("s{i}")}},
            "addressType": "IPv4", "ports": [{"port": 8080}],
            "endpoints": (2..5).map(|n| json!({"addresses": [format!("10.244.1.{n}")], "nodeName": "node"})).collect::<Vec<_>>()});
        proxier.set_slice(
            &format!("ns/s{i}-a"),
            slice_from_api(&serde_json::from_value(slice).unwrap(), "node"),
        );
    }
    proxier.sync().unwrap();
    put_service(&mut proxier, json!({}));
    put_endpoints(&mut proxier, &[ONE]);
    assert_eq!(network.ask("client", "10.96.0.1:80"), "one 10.244.1.1");
    within(&network.name("node"), || cleanup(TABLE).unwrap());
}
