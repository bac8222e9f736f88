//! Measures durable creates on the embedded engine: `durable_creates [DIR] [CLIENTS] [SECONDS] [VALUE_BYTES]`.
//! Prints creates per second, CPU per create, latencies, and resident memory; then the time to open the database
//! again, cleanly and as after a crash.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_machinery::clock::Clock;
use keelson_store::embedded::{Embedded, Options};
use keelson_store::{Commit, Expect, Store};
use tokio::time::Instant;

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|v| v.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|v| v.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args
        .next()
        .unwrap_or_else(|| "/tmp/keelson-durable-creates".to_owned());
    let mut number = |default: u64| args.next().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (clients, seconds, size) = (number(32), number(5), number(3000) as usize);
    let path = std::path::Path::new(&dir).join("bench.redb");
    let _ = std::fs::remove_file(&path);
    let open = || Embedded::open(&path, Options::new(Clock::system())).expect("open");
    let store = open();
    let value = Bytes::from(vec![b'x'; size]);
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let end = start + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for client in 0..clients {
        let (store, value) = (Arc::clone(&store), value.clone());
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let before = Instant::now();
                let commit = Commit {
                    key: format!("/registry/pods/bench/pod-{client}-{}", latencies.len()),
                    expect: Expect::Absent,
                    value: Some(value.clone()),
                    ttl_seconds: None,
                };
                store.commit(commit).await.expect("commit");
                latencies.push(before.elapsed());
            }
            latencies
        }));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("client"));
    }
    let took = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    latencies.sort_unstable();
    let count = latencies.len();
    let at = |p: f64| latencies[((count - 1) as f64 * p) as usize].as_secs_f64() * 1e3;
    println!(
        "{count} creates of {size} bytes by {clients} clients in {took:.2} s: {:.0}/s, {:.0} us CPU each, \
         p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms, resident {} MiB, file {} MiB",
        count as f64 / took,
        cpu / count as f64 * 1e6,
        at(0.5),
        at(0.99),
        at(1.0),
        resident_kib() / 1024,
        std::fs::metadata(&path).map_or(0, |m| m.len()) >> 20,
    );
    // What a kill -9 would leave behind.
    let crashed = path.with_extension("crashed");
    std::fs::copy(&path, &crashed).expect("copy");
    let before = Instant::now();
    drop(store);
    println!("close: {:.0} ms", before.elapsed().as_secs_f64() * 1e3);
    let before = Instant::now();
    drop(open());
    println!(
        "open and close after a clean stop: {:.0} ms",
        before.elapsed().as_secs_f64() * 1e3
    );
    let before = Instant::now();
    let store = Embedded::open(&crashed, Options::new(Clock::system())).expect("open");
    println!(
        "open after a crash: {:.0} ms",
        before.elapsed().as_secs_f64() * 1e3
    );
    println!("resident {} MiB", resident_kib() / 1024);
    drop(store);
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_file(&crashed);
}
