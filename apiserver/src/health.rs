//! `/healthz`, `/livez`, `/readyz`: each a list of named checks (upstream `k8s.io/apiserver/pkg/server/healthz`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderValue, StatusCode};

use crate::body::Response;
use crate::request::Query;
use crate::routes::{page_not_found, text};

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

    /// Answers a path below one of the endpoints.
    pub fn answer(&self, path: &str, query: &Query) -> Response {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let endpoint = parts.next().unwrap_or_default();
        let one = parts.next();
        let relevant = |check: &&Check| endpoint != "livez" || check.live;
        if let Some(name) = one {
            return match self.checks.iter().filter(relevant).find(|c| c.name == name) {
                Some(check) if check.passing.load(Ordering::Acquire) => plain("ok".to_string()),
                Some(check) => failed(format!(
                    "internal server error: {} is not ready\n",
                    check.name
                )),
                None if name == "ping" => plain("ok".to_string()),
                None => page_not_found(),
            };
        }
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut out = String::from("[+]ping ok\n");
        let mut passing = true;
        for check in self.checks.iter().filter(relevant) {
            if excluded.contains(&check.name) {
                out += &format!("[+]{} excluded: ok\n", check.name);
            } else if check.passing.load(Ordering::Acquire) {
                out += &format!("[+]{} ok\n", check.name);
            } else {
                passing = false;
                out += &format!("[-]{} failed: reason withheld\n", check.name);
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
