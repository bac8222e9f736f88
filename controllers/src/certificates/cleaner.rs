//! Deletes requests that nobody waits for any more (upstream `cleaner/cleaner.go`).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{APPROVED, DENIED, FAILED, conditions, has_certificate};
use crate::error::ignore_not_found;
use crate::{Context, synced};

/// How often all requests are looked at.
const PERIOD: Duration = Duration::from_secs(3600);
/// How long after its approval a request with its certificate is kept.
const ISSUED: Duration = Duration::from_secs(3600);
/// How long a refused or failed one is kept.
const REFUSED: Duration = Duration::from_secs(3600);
/// How long one is kept that nobody decided on, or that nobody signed.
const PENDING: Duration = Duration::from_secs(24 * 3600);

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let requests = context.informers.informer::<CertificateSigningRequest>();
    let api: Api<CertificateSigningRequest> = Api::all(context.client(super::CLIENT));
    synced!(requests);
    loop {
        let now = context.clock.now();
        for request in requests.store().list() {
            if !is_over(&request, now) {
                continue;
            }
            let name = request.name_any();
            let deleted = api.delete(&name, &DeleteParams::default()).await;
            if let Err(error) = ignore_not_found(deleted) {
                tracing::warn!(csr = name, %error, "deleting a certificate request");
            }
        }
        tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

fn is_over(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let older = |time: Option<&Time>, limit: Duration| {
        time.is_some_and(|time| {
            now.duration_since(time.0)
                > jiff::SignedDuration::try_from(limit).unwrap_or(jiff::SignedDuration::MAX)
        })
    };
    let (conditions, issued) = (conditions(request), has_certificate(request));
    let has = |type_: &str, limit: Duration| {
        conditions.iter().any(|condition| {
            condition.type_ == type_ && older(condition.last_update_time.as_ref(), limit)
        })
    };
    let approved = conditions.iter().any(|c| c.type_ == APPROVED);
    (conditions.is_empty() && older(request.metadata.creation_timestamp.as_ref(), PENDING))
        || has(DENIED, REFUSED)
        || has(FAILED, REFUSED)
        || has(APPROVED, if issued { ISSUED } else { PENDING })
        || (approved && issued && is_expired(request, now))
}

fn is_expired(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let Some(pem) = request.status.as_ref().and_then(|s| s.certificate.as_ref()) else {
        return false;
    };
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(&pem.0) else {
        return false;
    };
    X509Certificate::from_der(&block.contents).is_ok_and(|(_, certificate)| {
        certificate.validity().not_after.timestamp() < now.as_second()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn a_request_is_kept_as_long_as_upstream_keeps_it() {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        // condition, its age in minutes, whether there is a certificate, whether it is deleted
        let cases = [
            (None, 23 * 60, false, false),
            (None, 25 * 60, false, true),
            (Some("Denied"), 59, false, false),
            (Some("Denied"), 61, false, true),
            (Some("Failed"), 61, false, true),
            (Some("Approved"), 61, true, true),
            (Some("Approved"), 59, true, false),
            (Some("Approved"), 61, false, false),
            (Some("Approved"), 25 * 60, false, true),
        ];
        for (condition, minutes, issued, over) in cases {
            let then = Time(now - jiff::SignedDuration::from_mins(minutes));
            let mut request = CertificateSigningRequest::default();
            request.metadata.creation_timestamp = Some(then.clone());
            if let Some(type_) = condition {
                super::super::add_condition(&mut request, type_, "", String::new());
                let status = request.status.as_mut().unwrap();
                status.conditions.as_mut().unwrap()[0].last_update_time = Some(then);
            }
            if issued {
                request.status.get_or_insert_default().certificate =
                    Some(ByteString(b"-----BEGIN".to_vec()));
            }
            assert_eq!(
                is_over(&request, now),
                over,
                "{condition:?} {minutes} {issued}"
            );
        }
    }
}
