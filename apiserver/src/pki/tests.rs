//! The folder over its life: first start, reuse, renewal, damage.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use keelson_machinery::clock::{Clock, Source};

use super::keys::{Algorithm, PublicKey, SigningKey};
use super::*;

struct Fixed(Arc<AtomicI64>);

impl Source for Fixed {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(self.0.load(Ordering::SeqCst)).expect("in range")
    }
    fn fill_random(&self, buf: &mut [u8]) {
        buf.fill(7);
    }
}

const START: i64 = 1_790_000_000;

fn clock() -> (Clock, Arc<AtomicI64>) {
    let now = Arc::new(AtomicI64::new(START));
    (Clock::from_source(Fixed(now.clone())), now)
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn a_folder_over_its_life() {
    let dir = tempfile::tempdir().expect("tempdir");
    let dir = dir.path().join("pki");
    let (clock, now) = clock();
    let sans = names(&["10.96.0.1", "::1", "kubernetes.default.svc"]);
    let first = Pki::open(&dir, &sans, &clock).expect("first start");
    for entry in std::fs::read_dir(&dir).expect("dir") {
        let entry = entry.expect("entry");
        let name = entry.file_name().into_string().expect("utf-8");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        assert_eq!(
            mode,
            if name.ends_with(".key") { 0o600 } else { 0o644 },
            "{name}"
        );
        assert!(!name.ends_with(".tmp"), "{name}");
    }

    let again = Pki::open(&dir, &sans, &clock).expect("second start");
    assert_eq!(
        first.apiserver.certificate_pem, again.apiserver.certificate_pem,
        "used again"
    );
    assert_eq!(first.ca_pem(), again.ca_pem());
    assert_eq!(
        first.service_account_key_pem(),
        again.service_account_key_pem()
    );

    let more = Pki::open(&dir, &names(&["10.96.0.1"]), &clock).expect("other names");
    assert_ne!(
        first.apiserver.certificate_pem, more.apiserver.certificate_pem,
        "names changed"
    );
    assert_eq!(
        first.admin.certificate_pem, more.admin.certificate_pem,
        "untouched by it"
    );

    now.store(START + 300 * 86_400, Ordering::SeqCst);
    let renewed = Pki::open(&dir, &sans, &clock).expect("near the end");
    assert_ne!(
        first.admin.certificate_pem, renewed.admin.certificate_pem,
        "renewed"
    );
    assert_eq!(
        first.ca_pem(),
        renewed.ca_pem(),
        "the authority lives longer"
    );

    std::fs::write(dir.join("admin.key"), "").expect("write");
    let mended = Pki::open(&dir, &sans, &clock).expect("an emptied leaf is issued again");
    assert_ne!(mended.admin.key_pem, renewed.admin.key_pem);

    std::fs::remove_file(dir.join("ca.key")).expect("remove");
    let error = Pki::open(&dir, &sans, &clock)
        .err()
        .expect("a lost authority is an error")
        .to_string();
    assert!(
        error.contains("ca.key") && error.contains("is missing"),
        "{error}"
    );
    std::fs::write(dir.join("ca.key"), "garbage").expect("write");
    assert!(matches!(
        Pki::open(&dir, &sans, &clock),
        Err(PkiError::Damaged { .. })
    ));
}

#[test]
fn signing_keys_in_all_forms() {
    // Made with openssl: PKCS#8 and SEC1 of one P-256 key, an RSA key in PKCS#1 form.
    let dir = tempfile::tempdir().expect("tempdir");
    let (clock, _) = clock();
    let pki = Pki::open(dir.path(), &[], &clock).expect("pki");
    let key = SigningKey::from_pem(pki.service_account_key_pem()).expect("own key");
    assert_eq!(key.public().algorithm(), Algorithm::Es256);
    let signature = key.sign(b"text").expect("signs");
    let public = PublicKey::all_from_pem(pki.service_account_public_pem()).expect("public");
    assert!(public[0].verifies(b"text", &signature));
    assert!(!public[0].verifies(b"texT", &signature));
    assert_eq!(public[0].key_id(), key.public().key_id());
    for (name, expected) in [
        ("rsa-pkcs1.pem", Algorithm::Rs256),
        ("rsa-pkcs8.pem", Algorithm::Rs256),
        ("p256-sec1.pem", Algorithm::Es256),
        ("p384-sec1.pem", Algorithm::Es384),
    ] {
        let pem = std::fs::read_to_string(format!(
            "{}/src/pki/testdata/{name}",
            env!("CARGO_MANIFEST_DIR")
        ))
        .expect("testdata");
        let key = SigningKey::from_pem(&pem).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(key.public().algorithm(), expected, "{name}");
        let signature = key.sign(b"x").expect("signs");
        let public = PublicKey::all_from_pem(&key.public().to_pem()).expect("public");
        assert!(public[0].verifies(b"x", &signature), "{name}");
    }
    for (text, what) in [
        ("", "empty"),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "damaged",
        ),
        ("hello", "no PEM"),
    ] {
        assert!(SigningKey::from_pem(text).is_err(), "{what}");
        assert!(PublicKey::all_from_pem(text).is_err(), "{what}");
    }
}

#[test]
fn kubeconfig_round_trip() {
    let text = kubeconfig(
        "keelson",
        "https://127.0.0.1:6443",
        "CA",
        "admin",
        &Credential::Token("a: \"b\""),
    );
    let value: serde_json::Value = serde_yaml_ng::from_str(&text).expect("yaml");
    assert_eq!(value["users"][0]["user"]["token"], "a: \"b\"");
    assert_eq!(value["current-context"], "admin@keelson");
    assert_eq!(
        value["clusters"][0]["cluster"]["certificate-authority-data"],
        "Q0E="
    );
}
