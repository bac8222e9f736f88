//! Image names as Docker's references (`distribution/reference`): enough to judge, to tag and to pick credentials.

/// The parts of an image name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The registry, `docker.io` by default.
    pub registry: String,
    /// The path below the registry.
    pub path: String,
    /// The tag, if given.
    pub tag: Option<String>,
    /// The digest, if given.
    pub digest: Option<String>,
}

/// Reads an image name.
pub fn parse(image: &str) -> Result<Reference, String> {
    let fail = |why: &str| Err(format!("couldn't parse image name {image:?}: {why}"));
    if image.is_empty() || image.len() > 4096 {
        return fail("invalid reference format");
    }
    let (rest, digest) = match image.split_once('@') {
        Some((r, d)) => (r, Some(d)),
        None => (image, None),
    };
    if let Some(d) = digest {
        let ok = d.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty()
                && algorithm
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+._-".contains(c))
                && hex.len() >= 32
                && hex.chars().all(|c| c.is_ascii_hexdigit())
        });
        if !ok {
            return fail("invalid reference format");
        }
    }
    let (name, tag) = match rest.rfind(':') {
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
        _ => (rest, None),
    };
    if let Some(t) = tag {
        let first = t
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        if !first
            || t.len() > 128
            || !t
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        {
            return fail("invalid reference format");
        }
    }
    let (registry, path) = match name.split_once('/') {
        Some((r, p))
            if r.contains(['.', ':'])
                || r == "localhost"
                || r.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (r.to_owned(), p.to_owned())
        }
        Some(_) => ("docker.io".to_owned(), name.to_owned()),
        None => ("docker.io".to_owned(), format!("library/{name}")),
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(format!(
            "couldn't parse image name {image:?}: invalid reference format: repository name ({}) must be lowercase",
            path.trim_start_matches("library/")
        ));
    }
    if !path.split('/').all(is_component) {
        return fail("invalid reference format");
    }
    Ok(Reference {
        registry,
        path,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

fn is_component(s: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(s.chars().next())
        && edge(s.chars().last())
        && s.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        && !s.contains("..")
        && !s.contains("___")
}

/// The name with the default tag, if it has neither tag nor digest.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let r = parse(image)?;
    Ok(if r.tag.is_none() && r.digest.is_none() {
        format!("{image}:latest")
    } else {
        image.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let hex = "a".repeat(64);
        for (image, registry, path, tagged) in [
            (
                "busybox",
                "docker.io",
                "library/busybox",
                "busybox:latest".to_owned(),
            ),
            ("a/b:1", "docker.io", "a/b", "a/b:1".to_owned()),
            (
                "localhost:5000/x",
                "localhost:5000",
                "x",
                "localhost:5000/x:latest".to_owned(),
            ),
            (
                "registry.k8s.io/e2e/agnhost:2.63.0",
                "registry.k8s.io",
                "e2e/agnhost",
                "registry.k8s.io/e2e/agnhost:2.63.0".to_owned(),
            ),
        ] {
            let r = parse(image).unwrap();
            assert_eq!(
                (r.registry.as_str(), r.path.as_str()),
                (registry, path),
                "{image}"
            );
            assert_eq!(with_default_tag(image).unwrap(), tagged, "{image}");
        }
        let by_digest = format!("x@sha256:{hex}");
        assert_eq!(with_default_tag(&by_digest).unwrap(), by_digest);
        for bad in ["", "FOO", "a b", "x:", "x@sha256:1", "/x", "a//b", "-x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
