//! The server over real sockets: in-zone answers, forwarding, truncation, TCP, and hostile requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_dns::answer::Settings;
use keelson_dns::forward::Forwarder;
use keelson_dns::metrics::Metrics;
use keelson_dns::server::{Resolver, serve_tcp, serve_udp, tcp_listener, udp_sockets};
use keelson_dns::zone::Zone;
use keelson_machinery::clock::Clock;
use parking_lot::RwLock;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(5);

/// A zone with one Service and one headless Service of many endpoints.
fn zone() -> Zone {
    let mut zone = Zone::default();
    zone.apply_namespace(
        &serde_json::from_value::<Namespace>(json!({"metadata": {"name": "default"}})).unwrap(),
    );
    for (name, ip) in [("web", "10.96.0.7"), ("many", "None")] {
        let service = json!({"metadata": {"namespace": "default", "name": name}, "spec": {"clusterIP": ip, "clusterIPs": [ip]}});
        zone.apply_service(&serde_json::from_value::<Service>(service).unwrap());
    }
    let endpoints: Vec<_> = (0..100)
        .map(|i| json!({"addresses": [format!("10.244.1.{i}")]}))
        .collect();
    let slice = json!({"metadata": {"namespace": "default", "name": "many-1", "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4", "endpoints": endpoints});
    zone.apply_slice(&serde_json::from_value::<EndpointSlice>(slice).unwrap());
    zone
}

/// An upstream that answers every question with 192.0.2.1, until it is told to fall silent.
async fn upstream(alive: Arc<AtomicBool>) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0u8; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            if !alive.load(Ordering::SeqCst) {
                continue;
            }
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(question.metadata.id, OpCode::Query);
            answer.add_queries(question.queries.clone());
            let name = question.queries[0].name.clone();
            answer.add_answer(Record::from_rdata(
                name,
                60,
                RData::A(A(Ipv4Addr::new(192, 0, 2, 1))),
            ));
            socket
                .send_to(&answer.to_vec().unwrap(), peer)
                .await
                .unwrap();
        }
    });
    address
}

struct Running {
    address: SocketAddr,
    resolver: Arc<Resolver>,
    upstream_alive: Arc<AtomicBool>,
    _stop: tokio_util::sync::DropGuard,
}

async fn start() -> Running {
    let upstream_alive = Arc::new(AtomicBool::new(true));
    let resolver = Arc::new(Resolver {
        zone: RwLock::new(zone()),
        synced: AtomicBool::new(true),
        settings: Settings {
            domain: Name::from_ascii("cluster.local.").unwrap(),
            ttl: 30,
        },
        forwarder: Forwarder::new(
            vec![upstream(upstream_alive.clone()).await],
            Clock::system(),
        ),
        metrics: Metrics::default(),
    });
    let shutdown = CancellationToken::new();
    let listener = tcp_listener((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    for socket in udp_sockets(address, 2).unwrap() {
        tokio::spawn(serve_udp(resolver.clone(), socket, shutdown.clone()));
    }
    tokio::spawn(serve_tcp(resolver.clone(), listener, shutdown.clone()));
    Running {
        address,
        resolver,
        upstream_alive,
        _stop: shutdown.drop_guard(),
    }
}

fn question(name: &str) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

async fn udp(running: &Running, request: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(request, running.address).await.unwrap();
    let mut buffer = [0u8; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .ok()?
        .unwrap();
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

async fn tcp(running: &Running, request: &[u8]) -> Message {
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream
        .write_u16(u16::try_from(request.len()).unwrap())
        .await
        .unwrap();
    stream.write_all(request).await.unwrap();
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut buffer = vec![0u8; usize::from(length)];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

#[tokio::test]
async fn names_inside_and_outside_are_answered() {
    let running = start().await;
    for (name, want, authoritative) in [
        ("web.default.svc.cluster.local.", "10.96.0.7", true),
        ("example.org.", "192.0.2.1", false),
    ] {
        let answer = udp(&running, &question(name).to_vec().unwrap())
            .await
            .unwrap();
        assert_eq!(answer.metadata.id, 4711);
        assert_eq!(answer.metadata.authoritative, authoritative, "{name}");
        assert_eq!(answer.answers[0].data.to_string(), want, "{name}");
    }
    // A remembered answer outlives its upstream; a new question does not.
    running.upstream_alive.store(false, Ordering::SeqCst);
    let remembered = udp(&running, &question("EXAMPLE.org.").to_vec().unwrap())
        .await
        .unwrap();
    assert_eq!(remembered.answers[0].data.to_string(), "192.0.2.1");
    let failed = udp(&running, &question("other.org.").to_vec().unwrap())
        .await
        .unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let running = start().await;
    let request = question("many.default.svc.cluster.local.")
        .to_vec()
        .unwrap();
    let cut = udp(&running, &request).await.unwrap();
    assert!(cut.metadata.truncation);
    let whole = tcp(&running, &request).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
}

#[tokio::test]
async fn broken_requests_get_an_error_and_do_no_harm() {
    let running = start().await;
    let mut cut_short = question("web.default.svc.cluster.local.").to_vec().unwrap();
    cut_short.truncate(20);
    assert_eq!(
        udp(&running, &cut_short)
            .await
            .unwrap()
            .metadata
            .response_code,
        ResponseCode::FormErr
    );
    let mut update = question("web.default.svc.cluster.local.");
    update.metadata.op_code = OpCode::Update;
    assert!(udp(&running, &update.to_vec().unwrap()).await.is_some());
    // An answer is never answered; whoever sends one gets silence, and the server goes on.
    let mut reflected = question("web.default.svc.cluster.local.");
    reflected.metadata.message_type = MessageType::Response;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for bytes in [
        reflected.to_vec().unwrap(),
        vec![0x80; 12],
        vec![1, 2, 3],
        Vec::new(),
    ] {
        socket.send_to(&bytes, running.address).await.unwrap();
    }
    socket
        .send_to(
            &question("web.default.svc.cluster.local.").to_vec().unwrap(),
            running.address,
        )
        .await
        .unwrap();
    let mut buffer = [0u8; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        Message::from_vec(&buffer[..length]).unwrap().answers.len(),
        1
    );
}

#[tokio::test]
async fn until_the_lists_are_read_no_name_is_denied() {
    let running = start().await;
    running.resolver.synced.store(false, Ordering::SeqCst);
    let answer = udp(
        &running,
        &question("nosuch.default.svc.cluster.local.")
            .to_vec()
            .unwrap(),
    )
    .await
    .unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}
