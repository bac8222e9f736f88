//! Signs approved requests to the four `kubernetes.io` signers with the cluster's authority (upstream
//! `signer/signer.go`). Without an authority it does nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use keelson_runtime::controller::Action;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::authority::Authority;
use super::request::Request;
use super::{APPROVED, FAILED, add_condition, has_true_condition, usages};
use crate::error::{is_conflict, is_not_found};
use crate::{Context, Error};

/// The least that is granted, twice what a certificate is backdated.
const SHORTEST: Duration = Duration::from_secs(10 * 60);

/// Runs until shutdown.
///
/// # Errors
/// An authority that cannot be used.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let Some(signing) = &context.config.signing else {
        context.shutdown.cancelled().await;
        return Ok(());
    };
    let authority = Arc::new(Authority::load(signing).context("the cluster's signing authority")?);
    let client = context.client(super::CLIENT);
    let (longest, clock) = (context.config.signing_duration, context.clock.clone());
    super::follow(context, "csrsigning", move |request| {
        let (authority, client, clock) = (authority.clone(), client.clone(), clock.clone());
        async move {
            let mut serial = [0; 16];
            clock.fill_random(&mut serial);
            match plan(&request, &authority, longest, clock.now(), serial)? {
                Some(signed) => write(&client, &signed).await,
                None => Ok(Action::Done),
            }
        }
    })
    .await
}

/// The request with its certificate, or with the reason for having none; `None` if there is nothing to do yet.
fn plan(
    request: &CertificateSigningRequest,
    authority: &Authority,
    longest: Duration,
    now: jiff::Timestamp,
    serial: [u8; 16],
) -> Result<Option<CertificateSigningRequest>, Error> {
    if !has_true_condition(request, APPROVED)
        || has_true_condition(request, super::DENIED)
        || has_true_condition(request, FAILED)
    {
        return Ok(None);
    }
    let failed = |error: &dyn std::fmt::Display| {
        Error::Object(format!("csr {}: {error}", request.name_any()))
    };
    let (signer, usages) = (request.spec.signer_name.as_str(), usages(request));
    if !signer.starts_with("kubernetes.io/") {
        return Ok(None);
    }
    let parsed = Request::parse(&request.spec.request.0).map_err(|e| failed(&e))?;
    let mut answer = request.clone();
    match parsed.check(signer, &usages) {
        None => return Ok(None),
        Some(Err(why)) => add_condition(&mut answer, FAILED, "SignerValidationFailure", why),
        Some(Ok(())) => {
            let lifetime = lifetime(request.spec.expiration_seconds, longest);
            let pem = authority
                .sign(&parsed, &usages, lifetime, now, serial)
                .map_err(|e| failed(&e))?;
            answer.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
        }
    }
    Ok(Some(answer))
}

/// What is asked for, within reason.
fn lifetime(asked_seconds: Option<i32>, longest: Duration) -> Duration {
    match asked_seconds {
        None => longest,
        Some(seconds) => {
            let asked = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            if asked > longest {
                longest
            } else {
                asked.max(SHORTEST)
            }
        }
    }
}

async fn write(client: &Client, answer: &CertificateSigningRequest) -> Result<Action, Error> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    match api
        .replace_status(&answer.name_any(), &PostParams::default(), answer)
        .await
    {
        Ok(_) => Ok(Action::Done),
        Err(error) if is_conflict(&error) => Ok(Action::Retry),
        Err(error) if is_not_found(&error) => Ok(Action::Done),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
