//! What a PKCS#10 request asks for, and which requests each signer accepts (upstream `pkg/apis/certificates/helpers.go`
//! and the signers' own checks).

use std::collections::BTreeSet;
use std::net::IpAddr;

use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Kubelets towards the API server.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Kubelets as servers.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Any client of the API server.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Whatever older versions signed.
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// A request that cannot be read, or that is not signed with its own key.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unable to parse certificate request: {0}")]
pub struct Malformed(String);

/// The parts of a request that anything depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The subject, DER.
    pub subject: Vec<u8>,
    /// The public key (`SubjectPublicKeyInfo`), DER.
    pub public_key: Vec<u8>,
    /// The first common name; empty if there is none.
    pub common_name: String,
    /// The organizations, in order.
    pub organizations: Vec<String>,
    /// Subject alternative names.
    pub dns_names: Vec<String>,
    /// Subject alternative names.
    pub emails: Vec<String>,
    /// Subject alternative names.
    pub uris: Vec<String>,
    /// Subject alternative names.
    pub addresses: Vec<IpAddr>,
}

impl Request {
    /// Reads one PEM block `CERTIFICATE REQUEST` and checks its signature.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(pem: &[u8]) -> Result<Self, Malformed> {
        let malformed = |error: &dyn std::fmt::Display| Malformed(error.to_string());
        let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| malformed(&e))?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err(Malformed(
                "PEM block type must be CERTIFICATE REQUEST".to_owned(),
            ));
        }
        let (rest, parsed) =
            X509CertificationRequest::from_der(&block.contents).map_err(|e| malformed(&e))?;
        if !rest.is_empty() {
            return Err(Malformed("trailing data".to_owned()));
        }
        parsed.verify_signature().map_err(|e| malformed(&e))?;
        let info = &parsed.certification_request_info;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute
                .as_str()
                .map(str::to_owned)
                .map_err(|e| malformed(&e))
        };
        let mut request = Request {
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            organizations: info
                .subject
                .iter_organization()
                .map(text)
                .collect::<Result<_, _>>()?,
            common_name: info
                .subject
                .iter_common_name()
                .next()
                .map(text)
                .transpose()?
                .unwrap_or_default(),
            ..Request::default()
        };
        for extension in parsed.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                continue;
            };
            for name in &names.general_names {
                request.add_name(name)?;
            }
        }
        Ok(request)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) -> Result<(), Malformed> {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => self.emails.push((*name).to_owned()),
            GeneralName::URI(name) => self.uris.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 4]>::try_from(*bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                self.addresses.push(
                    address.map_err(|_| {
                        Malformed(format!("an IP address of {} bytes", bytes.len()))
                    })?,
                );
            }
            // Go's parser knows no others either; they do not reach the certificate.
            _ => {}
        }
        Ok(())
    }

    /// Whether this is what a kubelet asks for as a client (upstream `ValidateKubeletClientCSR`).
    ///
    /// # Errors
    /// Why not.
    pub fn check_kubelet_client(&self, usages: &[&str]) -> Result<(), String> {
        check_all(&[
            (self.organizations != ["system:nodes"], NOT_NODES),
            (
                !self.dns_names.is_empty(),
                "DNS subjectAltNames are not allowed",
            ),
            (
                !self.emails.is_empty(),
                "Email subjectAltNames are not allowed",
            ),
            (
                !self.addresses.is_empty(),
                "IP subjectAltNames are not allowed",
            ),
            (!self.uris.is_empty(), "URI subjectAltNames are not allowed"),
            (!self.common_name.starts_with("system:node:"), NOT_A_NODE),
        ])?;
        check_kubelet_usages(usages, "client auth")
    }

    /// Whether this is what a kubelet asks for as a server (upstream `ValidateKubeletServingCSR`).
    ///
    /// # Errors
    /// Why not.
    pub fn check_kubelet_serving(&self, usages: &[&str]) -> Result<(), String> {
        check_all(&[
            (self.organizations != ["system:nodes"], NOT_NODES),
            (
                self.dns_names.is_empty() && self.addresses.is_empty(),
                "DNS or IP subjectAltName is required",
            ),
            (
                !self.emails.is_empty(),
                "Email subjectAltNames are not allowed",
            ),
            (!self.uris.is_empty(), "URI subjectAltNames are not allowed"),
        ])?;
        check_kubelet_usages(usages, "server auth")?;
        check_all(&[(!self.common_name.starts_with("system:node:"), NOT_A_NODE)])
    }

    /// Whether `signer` signs this. `None` for a signer that is not ours.
    pub fn check(&self, signer: &str, usages: &[&str]) -> Option<Result<(), String>> {
        match signer {
            KUBELET_CLIENT => Some(self.check_kubelet_client(usages)),
            KUBELET_SERVING => Some(self.check_kubelet_serving(usages)),
            API_CLIENT => Some(check_client_usages(usages)),
            LEGACY_UNKNOWN => Some(Ok(())),
            _ => None,
        }
    }
}

const NOT_NODES: &str = "subject organization is not system:nodes";
const NOT_A_NODE: &str = "subject common name does not begin with system:node:";

fn check_all(problems: &[(bool, &str)]) -> Result<(), String> {
    match problems.iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err((*why).to_owned()),
        None => Ok(()),
    }
}

fn check_kubelet_usages(usages: &[&str], role: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().copied().collect();
    let mut wanted = BTreeSet::from([role, "digital signature", "key encipherment"]);
    let message = format!(
        "usages did not match [{}]",
        wanted.iter().copied().collect::<Vec<_>>().join(" ")
    );
    let with_rsa = given == wanted;
    wanted.remove("key encipherment");
    if with_rsa || given == wanted {
        Ok(())
    } else {
        Err(message)
    }
}

/// Upstream `validAPIServerClientUsages`.
fn check_client_usages(usages: &[&str]) -> Result<(), String> {
    let known = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !known.contains(usage)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.contains(&"client auth") {
        return Err("missing required usage for client certificate: client auth".to_owned());
    }
    Ok(())
}
