//! `$(NAME)` in commands, arguments and environment values (upstream `third_party/forked/golang/expansion`).

use k8s_openapi::api::core::v1::Container;

/// Replaces `$(NAME)` where `lookup` knows the name, and leaves it where it does not; `$$` stands for one `$`.
pub fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(') {
            match after.find(')') {
                Some(end) => {
                    let name = &after[..end];
                    match lookup(name) {
                        Some(value) => out.push_str(value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &after[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = after;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// As [`expand`], but an unknown name is an error.
pub fn expand_strict<'a>(
    input: &str,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, String> {
    let missing = std::cell::RefCell::new(Vec::new());
    let out = expand(input, |name| {
        let found = lookup(name);
        if found.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        found
    });
    let missing = missing.into_inner();
    if missing.is_empty() {
        Ok(out)
    } else {
        Err(format!(
            "missing value for {}",
            missing
                .iter()
                .map(|m| format!("{m:?}"))
                .collect::<Vec<_>>()
                .join(", ")
        ))
    }
}

/// A probe's command with the container's literal environment values put in
/// (upstream `ExpandContainerCommandOnlyStatic`).
pub fn command_static(command: &[String], container: &Container) -> Vec<String> {
    let env = container.env.as_deref().unwrap_or_default();
    command
        .iter()
        .map(|c| {
            expand(c, |name| {
                env.iter()
                    .find(|e| e.name == name)
                    .and_then(|e| e.value.as_deref())
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansions() {
        let lookup = |n: &str| match n {
            "A" => Some("1"),
            "E" => Some(""),
            _ => None,
        };
        for (input, want) in [
            ("$(A)-$(E)-$(X)", "1--$(X)"),
            ("$$(A) $$$(A) $A", "$(A) $1 $A"),
            ("$(A", "$(A"),
            ("end$", "end$"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(input, lookup), want, "{input}");
        }
        assert_eq!(
            expand_strict("$(X)/$(A)", lookup),
            Err("missing value for \"X\"".into())
        );
    }
}
