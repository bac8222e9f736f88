//! One active process among many, by a Lease (client-go `tools/leaderelection`).
//!
//! Time is judged by the local clock only: a lease counts as held for its duration since this process last saw it change,
//! so clocks of different machines need not agree.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use keelson_machinery::clock::Clock;
use kube::api::PostParams;
use kube::{Api, Client};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::jitter;
use crate::metrics::Metrics;

/// Who competes for what, and how patiently.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    /// Namespace of the Lease, `kube-system` upstream.
    pub namespace: String,
    /// Name of the Lease, that of the component.
    pub name: String,
    /// This process: `<host>_<uuid>` upstream.
    pub identity: String,
    /// How long others wait before they take over a lease that is not renewed.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Between attempts.
    pub retry_period: Duration,
    /// Whether to give the lease up at the end, so that the next one need not wait.
    pub release: bool,
}

impl LeaderConfig {
    /// With upstream's times: 15, 10 and 2 seconds.
    pub fn new(name: impl Into<String>, identity: impl Into<String>) -> Self {
        LeaderConfig {
            namespace: "kube-system".to_owned(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            release: true,
        }
    }
}

/// How an election ended.
#[derive(Debug, Error)]
pub enum ElectionError {
    /// The lease could not be renewed in time: another process may be active. The caller must end at once.
    #[error("leaderelection lost")]
    Lost,
}

/// What to do about the lease as it was read.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Somebody else holds it and has not been silent for long enough.
    Wait,
    /// Write this.
    Write(LeaseSpec),
}

/// Decides about a lease: a pure function of what was read and for how long it has not changed.
pub fn step(
    config: &LeaderConfig,
    old: Option<&LeaseSpec>,
    unchanged_for: Duration,
    now: Timestamp,
) -> Step {
    let mut spec = LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: i32::try_from(config.lease_duration.as_secs()).ok(),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(0),
        ..Default::default()
    };
    if let Some(old) = old {
        let holder = old.holder_identity.as_deref().unwrap_or_default();
        let transitions = old.lease_transitions.unwrap_or(0);
        if holder == config.identity {
            spec.acquire_time = old.acquire_time.clone();
            spec.lease_transitions = Some(transitions);
        } else {
            let lasts = old
                .lease_duration_seconds
                .map_or(config.lease_duration, |s| {
                    Duration::from_secs(s.max(0) as u64)
                });
            if !holder.is_empty() && unchanged_for < lasts {
                return Step::Wait;
            }
            spec.lease_transitions = Some(transitions.saturating_add(1));
        }
    }
    Step::Write(spec)
}

struct Elector {
    config: LeaderConfig,
    clock: Clock,
    api: Api<Lease>,
    observed: Option<(LeaseSpec, Instant)>,
}

/// Competes until this process leads, then runs `lead` with a token that is cancelled when leadership or `shutdown` ends it.
///
/// # Errors
/// [`ElectionError::Lost`] when leadership was lost; `Ok` when `shutdown` came or `lead` ended by itself.
pub async fn run<F, Fut>(
    client: Client,
    clock: Clock,
    config: LeaderConfig,
    metrics: &Metrics,
    shutdown: CancellationToken,
    lead: F,
) -> Result<(), ElectionError>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let gauge = metrics.leader(&config.name);
    gauge.set(0);
    let mut elector = Elector {
        api: Api::namespaced(client, &config.namespace),
        config,
        clock,
        observed: None,
    };
    let acquired = shutdown.run_until_cancelled(elector.acquire()).await;
    if acquired.is_none() {
        return Ok(());
    }
    gauge.set(1);
    tracing::info!(
        lease = elector.config.name,
        identity = elector.config.identity,
        "successfully acquired lease"
    );
    let leading = shutdown.child_token();
    let result = {
        let work = lead(leading.clone());
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => Ok(()),
            () = shutdown.cancelled() => {
                work.await;
                Ok(())
            }
            () = elector.keep() => {
                leading.cancel();
                Err(ElectionError::Lost)
            }
        }
    };
    gauge.set(0);
    if result.is_ok() && elector.config.release {
        elector.give_up().await;
    }
    result
}

impl Elector {
    async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(lease = self.config.name, %error, "error retrieving or writing the lease");
                }
            }
            let extra = jitter(&self.clock, self.config.retry_period.mul_f64(1.2));
            tokio::time::sleep(self.config.retry_period + extra).await;
        }
    }

    /// Renews until it failed for the renew deadline.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let deadline = renewed + self.config.renew_deadline;
            match tokio::time::timeout_at(deadline, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.config.name, %error, "failed to renew lease");
                }
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return;
            }
        }
    }

    /// One attempt to take or renew the lease. False when somebody else holds it.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let name = self.config.name.clone();
        let Some(mut lease) = self.api.get_opt(&name).await? else {
            let Step::Write(spec) = step(&self.config, None, Duration::ZERO, self.clock.now())
            else {
                return Ok(false);
            };
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(self.config.namespace.clone()),
                    ..Default::default()
                },
                spec: Some(spec),
            };
            let made = self.api.create(&PostParams::default(), &lease).await?;
            self.observe(made.spec);
            return Ok(true);
        };
        let unchanged_for = self.observe(lease.spec.clone());
        match step(
            &self.config,
            lease.spec.as_ref(),
            unchanged_for,
            self.clock.now(),
        ) {
            Step::Wait => Ok(false),
            Step::Write(spec) => {
                lease.spec = Some(spec);
                let written = self
                    .api
                    .replace(&name, &PostParams::default(), &lease)
                    .await?;
                self.observe(written.spec);
                Ok(true)
            }
        }
    }

    /// Notes the lease as read, and says for how long it has been the same.
    fn observe(&mut self, spec: Option<LeaseSpec>) -> Duration {
        let spec = spec.unwrap_or_default();
        match &self.observed {
            Some((known, since)) if *known == spec => since.elapsed(),
            _ => {
                self.observed = Some((spec, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// Leaves the lease without a holder, with a duration of a second (client-go `release`).
    async fn give_up(&self) {
        let give_up = async {
            let name = &self.config.name;
            let Some(mut lease) = self.api.get_opt(name).await? else {
                return Ok(());
            };
            let Some(spec) = &mut lease.spec else {
                return Ok(());
            };
            if spec.holder_identity.as_deref() != Some(&self.config.identity) {
                return Ok(());
            }
            let now = MicroTime(self.clock.now());
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(now.clone());
            spec.acquire_time = Some(now);
            self.api
                .replace(name, &PostParams::default(), &lease)
                .await
                .map(drop)
        };
        match tokio::time::timeout(Duration::from_secs(2), give_up).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error: kube::Error = error;
                tracing::warn!(%error, "lease not released");
            }
            Err(_) => tracing::warn!("lease not released in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_free_or_silent() {
        let config = LeaderConfig::new("c", "me");
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let held = |holder: &str, transitions| LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..Default::default()
        };
        let cases: [(Option<LeaseSpec>, u64, Option<i32>); 6] = [
            (None, 0, Some(0)),
            (Some(held("other", 3)), 14, None),
            (Some(held("other", 3)), 15, Some(4)),
            (Some(held("", 3)), 0, Some(4)),
            (Some(held("me", 3)), 0, Some(3)),
            (Some(LeaseSpec::default()), 0, Some(1)),
        ];
        for (old, silent, transitions) in cases {
            let got = match step(&config, old.as_ref(), Duration::from_secs(silent), now) {
                Step::Wait => None,
                Step::Write(spec) => spec.lease_transitions,
            };
            assert_eq!(got, transitions, "{old:?} silent for {silent}");
        }
    }
}
