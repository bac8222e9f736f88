//! CertificateSigningRequests: approving those of kubelets, signing what is approved, and cleaning up (upstream
//! `pkg/controller/certificates`).
//!
//! - [`approving`]: client certificates of kubelets, by SubjectAccessReview;
//! - [`serving`]: serving certificates of kubelets, by a policy of keelson's own that is off by default;
//! - [`signing`]: the four `kubernetes.io` signers;
//! - [`cleaner`]: requests that nobody waits for any more;
//! - [`request`]: what a PKCS#10 request asks for, and what each signer accepts;
//! - [`authority`]: making the certificate.

pub mod approving;
pub mod authority;
pub mod cleaner;
pub mod request;
pub mod serving;
pub mod signing;

use std::sync::Arc;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::workqueue::WorkQueue;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::error::{is_conflict, is_not_found};
use crate::{Context, Error};

/// The service account that approves, signs and cleans upstream.
const CLIENT: &str = "certificate-controller";
/// Upstream starts each of these controllers with five workers.
const WORKERS: usize = 5;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

/// Runs `handle` for each request that has no certificate yet.
async fn follow<F, Fut>(context: Context, name: &'static str, handle: F) -> anyhow::Result<()>
where
    F: Fn(Arc<CertificateSigningRequest>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, Error>> + Send,
{
    let requests = context.informers.informer::<CertificateSigningRequest>();
    let queue = WorkQueue::new(name, &context.metrics);
    requests.on_event({
        let queue = queue.clone();
        move |event| queue.add(event.object().name_any())
    });
    crate::synced!(requests);
    Controller::new(name, queue)
        .workers(WORKERS)
        .run(context.shutdown.clone(), move |key: String| {
            let waiting = requests
                .store()
                .get_parts("", &key)
                .filter(|request| !has_certificate(request));
            let handle = handle.clone();
            async move {
                match waiting {
                    Some(request) => handle(request).await,
                    None => Ok(Action::Done),
                }
            }
        })
        .await;
    Ok(())
}

fn has_certificate(request: &CertificateSigningRequest) -> bool {
    request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref())
        .is_some_and(|certificate| !certificate.0.is_empty())
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
}

fn has_condition(request: &CertificateSigningRequest, type_: &str) -> bool {
    conditions(request)
        .iter()
        .any(|condition| condition.type_ == type_)
}

/// As [`has_condition`], and its status is `True`.
fn has_true_condition(request: &CertificateSigningRequest, type_: &str) -> bool {
    conditions(request)
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

/// Whether somebody decided already.
fn is_decided(request: &CertificateSigningRequest) -> bool {
    has_condition(request, APPROVED) || has_condition(request, DENIED)
}

fn usages(request: &CertificateSigningRequest) -> Vec<&str> {
    request
        .spec
        .usages
        .iter()
        .flatten()
        .map(String::as_str)
        .collect()
}

fn add_condition(
    request: &mut CertificateSigningRequest,
    type_: &str,
    reason: &str,
    message: String,
) {
    let condition = CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..Default::default()
    };
    let status = request.status.get_or_insert_default();
    status.conditions.get_or_insert_default().push(condition);
}

/// Writes the approval; another writer who was faster is seen by the next event.
async fn approve(
    client: &Client,
    request: &CertificateSigningRequest,
    message: &str,
) -> Result<Action, Error> {
    let mut approved = request.clone();
    add_condition(&mut approved, APPROVED, "AutoApproved", message.to_owned());
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let written = api
        .replace_subresource(
            "approval",
            &request.name_any(),
            &PostParams::default(),
            &approved,
        )
        .await;
    match written {
        Ok(_) => Ok(Action::Done),
        Err(error) if is_conflict(&error) => Ok(Action::Retry),
        Err(error) if is_not_found(&error) => Ok(Action::Done),
        Err(error) => Err(error.into()),
    }
}

/// Whether the requester may `create` the virtual subresource `subresource` of certificate requests: upstream's way to
/// say whose requests are approved by themselves.
async fn may_create(
    client: &Client,
    request: &CertificateSigningRequest,
    subresource: &str,
) -> Result<bool, Error> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: request.spec.username.clone(),
            uid: request.spec.uid.clone(),
            groups: request.spec.groups.clone(),
            extra: request.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".to_owned()),
                resource: Some("certificatesigningrequests".to_owned()),
                verb: Some("create".to_owned()),
                subresource: Some(subresource.to_owned()),
                version: Some("*".to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let answer = Api::<SubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
