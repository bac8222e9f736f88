//! Who may approve and sign certificates, and what no certificate may say (`plugin/pkg/admission/certificates`).

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::status::ApiError;
use keelson_machinery::text::quote;
use keelson_machinery::value;

use super::node::csr_subject;
use super::{AdmissionRequest, Operation, Plugin};
use crate::authz::escalation::only_gc_fields_change;
use crate::authz::{Attributes, Authorizer, Decision};
use crate::request::{RequestInfo, UserInfo};

const GROUP: &str = "certificates.k8s.io";
const RESOURCE: &str = "certificatesigningrequests";

/// Whether `user` may do `verb` for a signer: for its name, or for all of its domain
/// (`certauthorization.IsAuthorizedForSignerName`).
async fn authorized(
    authorizer: &dyn Authorizer,
    user: &UserInfo,
    verb: &str,
    signer: &str,
) -> bool {
    let wildcard = signer
        .split_once('/')
        .map_or_else(|| "/*".to_owned(), |(domain, _)| format!("{domain}/*"));
    for name in [signer, &wildcard] {
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        if let Decision::Allow(_) = authorizer
            .authorize(&Attributes {
                user,
                request: &request,
            })
            .await
        {
            return true;
        }
    }
    false
}

/// CertificateApproval.
pub(super) struct CertificateApproval {
    pub(super) authorizer: Arc<dyn Authorizer>,
}

#[async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Update || !request.is(GROUP, RESOURCE, "approval") {
            return Ok(());
        }
        // The stored request's signer: this one cannot be changed by the request at hand.
        let Some(old) = &request.old_object else {
            return Err(request.forbidden("the request has no stored object"));
        };
        let signer = value::str_or_empty(old, &["spec", "signerName"]);
        if authorized(self.authorizer.as_ref(), &request.user, "approve", signer).await {
            return Ok(());
        }
        Err(request.forbidden(format!(
            "user not permitted to approve requests with signerName {}",
            quote(signer)
        )))
    }
}

/// CertificateSigning.
pub(super) struct CertificateSigning {
    pub(super) authorizer: Arc<dyn Authorizer>,
}

#[async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Update || !request.is(GROUP, RESOURCE, "status") {
            return Ok(());
        }
        let (Some(new), Some(old)) = (&request.object, &request.old_object) else {
            return Err(request.forbidden("the request has no stored object"));
        };
        let same = |field: &str| {
            value::semantic_eq(
                value::get(old, &["status", field]),
                value::get(new, &["status", field]),
            )
        };
        if same("certificate") && same("conditions") {
            return Ok(());
        }
        let signer = value::str_or_empty(old, &["spec", "signerName"]);
        if authorized(self.authorizer.as_ref(), &request.user, "sign", signer).await {
            return Ok(());
        }
        Err(request.forbidden(format!(
            "user not permitted to sign requests with signerName {}",
            quote(signer)
        )))
    }
}

/// ClusterTrustBundleAttest: who may speak for a signer may publish what it trusts.
pub(super) struct ClusterTrustBundleAttest {
    pub(super) authorizer: Arc<dyn Authorizer>,
}

#[async_trait]
impl Plugin for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || !request.is(GROUP, "clustertrustbundles", "") {
            return Ok(());
        }
        let Some(bundle) = &request.object else {
            return Ok(());
        };
        // The signer's name cannot be changed, so that of the new state is the one.
        let signer = value::str_or_empty(bundle, &["spec", "signerName"]);
        let same = request.operation == Operation::Update
            && request
                .old_object
                .as_deref()
                .is_some_and(|old| only_gc_fields_change(bundle, old));
        if signer.is_empty()
            || same
            || authorized(self.authorizer.as_ref(), &request.user, "attest", signer).await
        {
            return Ok(());
        }
        Err(request.forbidden(format!(
            "user not permitted to attest for signerName {}",
            quote(signer)
        )))
    }
}

/// CertificateSubjectRestriction: no request makes a member of `system:masters`.
pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
        if request.operation != Operation::Create || !request.is(GROUP, RESOURCE, "") {
            return Ok(());
        }
        let Some(csr) = request
            .object
            .as_ref()
            .filter(|csr| value::get_str(csr, &["spec", "signerName"]) == Some(SIGNER))
        else {
            return Ok(());
        };
        let subject = csr_subject(csr)
            .map_err(|error| request.forbidden(format!("failed to parse CSR: {error}")))?;
        if subject
            .organizations
            .iter()
            .any(|organization| organization == crate::authz::MASTERS)
        {
            return Err(request.forbidden(format!(
                "use of {SIGNER} signer with system:masters group is not allowed"
            )));
        }
        Ok(())
    }
}
