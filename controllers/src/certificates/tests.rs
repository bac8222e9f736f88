//! From request to certificate, as the API server and its clients will read it.

use rcgen::{CertificateParams, DnType, KeyPair};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::super::request::{API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN};
use super::*;
use crate::config::SigningKey;

const NODE: &str = "system:node:n1";
const CLIENT: &[&str] = &["digital signature", "client auth"];
const SERVER: &[&str] = &["digital signature", "key encipherment", "server auth"];

fn now() -> jiff::Timestamp {
    "2026-01-10T00:00:00Z".parse().unwrap()
}

fn authority() -> (Authority, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2026, 7, 1);
    let certificate = params.self_signed(&key).unwrap();
    let signing = SigningKey {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    };
    (
        Authority::load(&signing).unwrap(),
        certificate.der().to_vec(),
    )
}

fn request(
    signer: &str,
    name: &str,
    organization: &str,
    sans: &[&str],
    usages: &[&str],
) -> CertificateSigningRequest {
    let names: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, organization);
    // A second organization, which rcgen only takes under another name of the same attribute.
    if organization == "two" {
        params
            .distinguished_name
            .push(DnType::CustomDnType(vec![2, 5, 4, 10]), "more");
    }
    params.distinguished_name.push(DnType::CommonName, name);
    let pem = params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    let mut request = CertificateSigningRequest::default();
    request.spec.signer_name = signer.to_owned();
    request.spec.request = ByteString(pem.into_bytes());
    request.spec.usages = Some(usages.iter().map(|u| (*u).to_owned()).collect());
    request.spec.username = Some(name.to_owned());
    add_condition(&mut request, APPROVED, "", String::new());
    request
}

#[test]
fn each_signer_signs_what_upstream_signs() {
    let (authority, _) = authority();
    let nodes = "system:nodes";
    let cases: &[(&str, &str, &str, &[&str], &[&str], Option<&str>)] = &[
        (KUBELET_CLIENT, NODE, nodes, &[], CLIENT, None),
        (
            KUBELET_CLIENT,
            NODE,
            "others",
            &[],
            CLIENT,
            Some("subject organization is not system:nodes"),
        ),
        (
            KUBELET_CLIENT,
            "n1",
            nodes,
            &[],
            CLIENT,
            Some("subject common name does not begin with system:node:"),
        ),
        (
            KUBELET_CLIENT,
            NODE,
            nodes,
            &["n1"],
            CLIENT,
            Some("DNS subjectAltNames are not allowed"),
        ),
        (
            KUBELET_CLIENT,
            NODE,
            nodes,
            &[],
            SERVER,
            Some("usages did not match [client auth digital signature key encipherment]"),
        ),
        (
            KUBELET_SERVING,
            NODE,
            nodes,
            &["n1", "10.0.0.1"],
            SERVER,
            None,
        ),
        (
            KUBELET_SERVING,
            NODE,
            nodes,
            &[],
            SERVER,
            Some("DNS or IP subjectAltName is required"),
        ),
        (API_CLIENT, "anna", "two", &[], CLIENT, None),
        (
            API_CLIENT,
            "anna",
            "two",
            &[],
            SERVER,
            Some("invalid usage for client certificate: server auth"),
        ),
        (LEGACY_UNKNOWN, "anything", "two", &["a.b"], SERVER, None),
    ];
    for (signer, name, organization, sans, usages, problem) in cases {
        let request = request(signer, name, organization, sans, usages);
        let answer = plan(
            &request,
            &authority,
            Duration::from_secs(3600),
            now(),
            [1; 16],
        )
        .unwrap()
        .unwrap();
        let status = answer.status.unwrap();
        let failed = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == FAILED);
        assert_eq!(
            failed.and_then(|c| c.message.as_deref()),
            *problem,
            "{signer} {name}"
        );
        assert_eq!(
            status.certificate.is_some(),
            problem.is_none(),
            "{signer} {name}"
        );
    }
    for mut request in [
        request("example.com/other", NODE, nodes, &[], CLIENT),
        request(KUBELET_CLIENT, NODE, nodes, &[], CLIENT),
    ] {
        if request.spec.signer_name == KUBELET_CLIENT {
            request.status = None;
        }
        assert!(
            plan(
                &request,
                &authority,
                Duration::from_secs(3600),
                now(),
                [1; 16]
            )
            .unwrap()
            .is_none()
        );
    }
}

#[test]
fn the_certificate_says_what_was_asked() {
    let (authority, ca) = authority();
    let request = request(
        KUBELET_SERVING,
        NODE,
        "system:nodes",
        &["n1", "10.0.0.1"],
        SERVER,
    );
    let parsed = Request::parse(&request.spec.request.0).unwrap();
    let day = Duration::from_secs(86_400);
    for (lifetime, end) in [
        (day, "2026-01-10T23:55:00Z"),
        (Duration::from_secs(600), "2026-01-10T00:10:00Z"),
        (365 * day, "2026-07-01T00:00:00Z"),
    ] {
        let pem = authority
            .sign(&parsed, SERVER, lifetime, now(), [0xff; 16])
            .unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (rest, certificate) = X509Certificate::from_der(&block.contents).unwrap();
        assert!(rest.is_empty());
        let (_, issuer) = X509Certificate::from_der(&ca).unwrap();
        certificate
            .verify_signature(Some(issuer.public_key()))
            .unwrap();
        assert_eq!(certificate.subject().as_raw(), parsed.subject);
        assert_eq!(
            certificate.validity().not_after.timestamp(),
            end.parse::<jiff::Timestamp>().unwrap().as_second()
        );
        assert_eq!(
            certificate.validity().not_before.timestamp(),
            now().as_second() - 300
        );
        assert!(!certificate.is_ca());
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let purposes = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && !purposes.client_auth && !purposes.any);
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
    }
    let late = "2027-01-01T00:00:00Z".parse().unwrap();
    assert!(authority.sign(&parsed, SERVER, day, late, [1; 16]).is_err());
    assert!(
        authority
            .sign(&parsed, &["tea making"], day, now(), [1; 16])
            .is_err()
    );
}

#[test]
fn a_request_that_is_tampered_with_is_not_read() {
    let good = request(KUBELET_CLIENT, NODE, "system:nodes", &[], CLIENT)
        .spec
        .request
        .0;
    assert!(Request::parse(&good).is_ok());
    let (_, block) = x509_parser::pem::parse_x509_pem(&good).unwrap();
    let mut der = block.contents;
    let at = der.windows(2).position(|w| w == b"n1").unwrap();
    der[at + 1] = b'2';
    use base64::Engine as _;
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64::engine::general_purpose::STANDARD.encode(der)
    );
    assert!(Request::parse(forged.as_bytes()).is_err());
    assert!(Request::parse(b"nonsense").is_err());
}
