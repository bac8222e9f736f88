//! `/healthz`, `/livez`, `/readyz`: each a list of named checks (upstream `k8s.io/apiserver/pkg/server/healthz`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderValue, StatusCode};

use crate::body::Response;
use crate::request::Query;
use crate::routes::{page_not_found, text};

/// The check of the store, under upstream's name whatever the engine.
const STORE: &str = "etcd";

/// One check.
pub struct Check {
    name: &'static str,
    passing: Arc<AtomicBool>,
    live: bool,
}

/// The checks of a server.
#[derive(Default)]
pub struct Health {
    checks: Vec<Check>,
}

impl Health {
    /// Adds a check that passes while the flag is set. `live`: a failure means that the server should be restarted,
    /// not merely that it cannot serve now.
    pub fn add(&mut self, name: &'static str, live: bool) -> Arc<AtomicBool> {
        let passing = Arc::new(AtomicBool::new(false));
        self.checks.push(Check {
            name,
            passing: passing.clone(),
            live,
        });
        passing
    }

    /// Answers a path below one of the endpoints. `store`: whether the store answers, which counts for all but
    /// `/livez`, as upstream: a start would not bring it back.
    pub fn answer(&self, path: &str, query: &Query, store: bool) -> Response {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let endpoint = parts.next().unwrap_or_default();
        let one = parts.next();
        let livez = endpoint == "livez";
        let checks = || {
            let own = self.checks.iter().filter(|check| !livez || check.live);
            let own = own.map(|check| (check.name, check.passing.load(Ordering::Acquire)));
            (!livez).then_some((STORE, store)).into_iter().chain(own)
        };
        if let Some(name) = one {
            return match checks().find(|(check, _)| *check == name) {
                Some((_, true)) => plain("ok".to_string()),
                Some((check, false)) => {
                    failed(format!("internal server error: {check} is not ready\n"))
                }
                None if name == "ping" => plain("ok".to_string()),
                None => page_not_found(),
            };
        }
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut out = String::from("[+]ping ok\n");
        let mut passing = true;
        for (name, passes) in checks() {
            if excluded.contains(&name) {
                out += &format!("[+]{name} excluded: ok\n");
            } else if passes {
                out += &format!("[+]{name} ok\n");
            } else {
                passing = false;
                out += &format!("[-]{name} failed: reason withheld\n");
            }
        }
        if !passing {
            return failed(format!("{out}{endpoint} check failed\n"));
        }
        if query.get("verbose").is_some() {
            return plain(format!("{out}{endpoint} check passed\n"));
        }
        plain("ok".to_string())
    }
}

fn plain(content: String) -> Response {
    let mut response = text("text/plain; charset=utf-8", content);
    response.headers_mut().insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn failed(content: String) -> Response {
    let mut response = plain(content);
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_its_store_is_alive_and_not_ready() {
        let mut health = Health::default();
        health.add("hook", true).store(true, Ordering::Release);
        for (path, store, code) in [
            ("/readyz", true, 200),
            ("/readyz", false, 500),
            ("/readyz?exclude=etcd", false, 200),
            ("/readyz/etcd", false, 500),
            ("/readyz/hook", false, 200),
            ("/healthz", false, 500),
            ("/livez", false, 200),
            ("/livez/etcd", false, 404),
        ] {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let answer = health.answer(path, &Query::parse(Some(query)), store);
            assert_eq!(answer.status(), code, "{path} {store}");
        }
    }
}
