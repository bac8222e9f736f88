//! Signing certificate requests of kubelets, by the rules of upstream's two kubelet signers
//! (`pkg/controller/certificates/signer`, `pkg/apis/certificates/helpers.go`). Who may ask, and whether a request is
//! approved, is decided elsewhere; these rules hold for every certificate that the cluster authority gives away.

use std::collections::BTreeSet;
use std::time::Duration;

use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::Pki;

/// Who signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// `kubernetes.io/kube-apiserver-client-kubelet`: kubelets towards the API server.
    KubeletClient,
    /// `kubernetes.io/kubelet-serving`: kubelets as servers.
    KubeletServing,
}

/// A request that is not signed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignError {
    /// It cannot be read, or is not signed with its own key.
    #[error("the certificate request cannot be read: {0}")]
    Malformed(String),
    /// It asks for what this signer does not sign.
    #[error("{0}")]
    Refused(&'static str),
}

impl Signer {
    /// By the `signerName` of a CertificateSigningRequest.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "kubernetes.io/kube-apiserver-client-kubelet" => Some(Signer::KubeletClient),
            "kubernetes.io/kubelet-serving" => Some(Signer::KubeletServing),
            _ => None,
        }
    }

    fn usage(self) -> (&'static str, ExtendedKeyUsagePurpose) {
        match self {
            Signer::KubeletClient => ("client auth", ExtendedKeyUsagePurpose::ClientAuth),
            Signer::KubeletServing => ("server auth", ExtendedKeyUsagePurpose::ServerAuth),
        }
    }
}

impl Pki {
    /// Signs the PKCS#10 request `pem` (one `CERTIFICATE REQUEST`) with the cluster authority. `usages` are those of the
    /// CertificateSigningRequest; `lifetime` is cut to a year. Returns the certificate, PEM.
    pub fn sign_request(
        &self,
        signer: Signer,
        pem: &[u8],
        usages: &[&str],
        lifetime: Duration,
    ) -> Result<String, SignError> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem)
            .map_err(|error| SignError::Malformed(error.to_string()))?;
        check(signer, &der, usages)?;
        let mut request = CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| SignError::Malformed(error.to_string()))?;
        let year = Duration::from_secs(super::LEAF_DAYS * 86_400);
        let template = super::issue::base_params("", None, lifetime.min(year), &self.clock);
        let params = &mut request.params;
        // Nothing but the subject, the names and the key is taken from the request.
        params.not_before = template.not_before;
        params.not_after = template.not_after;
        params.serial_number = template.serial_number;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![signer.usage().1];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if usages.contains(&"key encipherment") {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        let certificate = request
            .signed_by(&self.ca.issuer)
            .map_err(|error| SignError::Malformed(error.to_string()))?;
        Ok(certificate.pem())
    }
}

fn check(
    signer: Signer,
    der: &CertificateSigningRequestDer<'_>,
    usages: &[&str],
) -> Result<(), SignError> {
    let malformed = |error: String| SignError::Malformed(error);
    let (_, parsed) =
        X509CertificationRequest::from_der(der).map_err(|error| malformed(error.to_string()))?;
    let subject = &parsed.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned)
    };
    let organizations: Result<Vec<String>, _> = subject.iter_organization().map(text).collect();
    let names: Result<Vec<String>, _> = subject.iter_common_name().map(text).collect();
    let (organizations, names) = organizations
        .and_then(|o| names.map(|n| (o, n)))
        .map_err(|error| malformed(error.to_string()))?;
    let request = CertificateSigningRequestParams::from_der(der)
        .map_err(|error| malformed(error.to_string()))?;
    let has = |wanted: fn(&SanType) -> bool| request.params.subject_alt_names.iter().any(wanted);
    let (dns, ip) = (
        has(|name| matches!(name, SanType::DnsName(_))),
        has(|name| matches!(name, SanType::IpAddress(_))),
    );
    let other = has(|name| !matches!(name, SanType::DnsName(_) | SanType::IpAddress(_)));
    let usage = signer.usage().0;
    let given: BTreeSet<&str> = usages.iter().copied().collect();
    let short: BTreeSet<&str> = ["digital signature", usage].into();
    let long: BTreeSet<&str> = ["digital signature", "key encipherment", usage].into();
    let problems = [
        (
            organizations != ["system:nodes"],
            "subject organization is not system:nodes",
        ),
        (
            !matches!(names.as_slice(), [one] if one.strip_prefix("system:node:").is_some_and(|node| !node.is_empty())),
            "subject common name does not begin with system:node:",
        ),
        (other, "Email and URI subjectAltNames are not allowed"),
        (
            signer == Signer::KubeletClient && dns,
            "DNS subjectAltNames are not allowed",
        ),
        (
            signer == Signer::KubeletClient && ip,
            "IP subjectAltNames are not allowed",
        ),
        (
            signer == Signer::KubeletServing && !dns && !ip,
            "DNS or IP subjectAltName is required",
        ),
        (
            given != short && given != long,
            "usages did not match what a kubelet needs",
        ),
    ];
    match problems.into_iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err(SignError::Refused(why)),
        None => Ok(()),
    }
}
