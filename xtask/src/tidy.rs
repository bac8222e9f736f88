//! The habits of this repository that a tool can keep: run by `cargo test -p xtask` and `cargo xtask tidy`.
//! Each message says what to do and why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

/// A file longer than this does not fit one sitting.
const MAX_LINES: usize = 900;

/// Which of our crates each crate may use, besides itself. A component never uses another component: they meet at
/// the API only (ARCHITECTURE.md, invariant 1).
const ALLOWED: [(&str, &[&str]); 12] = [
    ("keelson-machinery", &[]),
    ("keelson-store", &["keelson-machinery"]),
    ("keelson-apiserver", &["keelson-machinery", "keelson-store"]),
    ("keelson-runtime", &["keelson-machinery"]),
    (
        "keelson-scheduler",
        &["keelson-machinery", "keelson-runtime"],
    ),
    (
        "keelson-controllers",
        &["keelson-machinery", "keelson-runtime"],
    ),
    ("keelson-kubelet", &["keelson-machinery", "keelson-runtime"]),
    ("keelson-proxy", &["keelson-machinery", "keelson-runtime"]),
    ("keelson-dns", &["keelson-machinery", "keelson-runtime"]),
    ("keelson-conformance", &[]),
    ("xtask", &["keelson-machinery"]),
    (
        "keelson",
        &[
            "keelson-machinery",
            "keelson-store",
            "keelson-apiserver",
            "keelson-runtime",
            "keelson-scheduler",
            "keelson-controllers",
            "keelson-kubelet",
            "keelson-proxy",
            "keelson-dns",
            "keelson-conformance",
        ],
    ),
];

/// Checks everything; fails with all that was found.
pub fn run() -> anyhow::Result<()> {
    let root = crate::root();
    let files = tracked(&root)?;
    let mut problems = Vec::new();
    for file in &files {
        if file.extension().is_some_and(|e| e == "rs") {
            problems.extend(source_problems(file, &read(&root, file)?));
        }
        if file.extension().is_some_and(|e| e == "md") {
            problems.extend(dead_paths(&root, file, &read(&root, file)?));
        }
    }
    problems.extend(dependency_problems(&root)?);
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{} untidy places:\n{}", problems.len(), problems.join("\n"))
}

fn read(root: &Path, file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(root.join(file)).with_context(|| format!("reading {}", file.display()))
}

fn tracked(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .context("running git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = output.stdout.split(|b| *b == 0).filter(|n| !n.is_empty());
    let paths = names.map(|n| PathBuf::from(String::from_utf8_lossy(n).into_owned()));
    // Deleted in the work tree, not yet in the index.
    Ok(paths.filter(|path| root.join(path).exists()).collect())
}

fn source_problems(file: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let generated = file.components().any(|c| c.as_os_str() == "generated");
    let documented = text
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!"))
        .is_some_and(|line| line.starts_with("//!"));
    if !documented {
        problems.push(format!("{}: begins without module docs (//!): a reader should learn first what the file is for", file.display()));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES && !generated {
        problems.push(format!(
            "{}: {lines} lines; split it by topic, {MAX_LINES} is what one reads in a sitting",
            file.display()
        ));
    }
    problems
}

/// Paths in backticks that look like files of this repository and are not there.
fn dead_paths(root: &Path, file: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (i, word) in line.split('`').enumerate() {
            let is_code = i % 2 == 1;
            let looks_like_path = word.contains('/')
                && !word.starts_with(['/', '.', '$', '-', '~'])
                && !word.contains([' ', '<', '*', ':', '{', '(', '=', '"', ',']);
            let first = word.split('/').next().unwrap_or_default();
            // Only paths that begin with a folder of ours: others are API groups, images, media types.
            if is_code && looks_like_path && root.join(first).is_dir() && !root.join(word).exists()
            {
                problems.push(format!(
                    "{}:{}: `{word}` does not exist; documents that name dead paths mislead",
                    file.display(),
                    number + 1
                ));
            }
        }
    }
    problems
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    /// Set for dependencies of this workspace.
    path: Option<String>,
}

fn dependency_problems(root: &Path) -> anyhow::Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let mut problems = Vec::new();
    for package in metadata.packages {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            problems.push(format!(
                "crate {} has no line in xtask/src/tidy.rs: what may it depend on?",
                package.name
            ));
            continue;
        };
        // Tests may look at a crate from outside; what is shipped may not.
        let ours = package
            .dependencies
            .iter()
            .filter(|d| d.path.is_some() && d.kind.as_deref() != Some("dev"));
        for dependency in ours.filter(|d| !allowed.contains(&d.name.as_str())) {
            problems.push(format!(
                "{} uses {}: components meet only at the API (ARCHITECTURE.md)",
                package.name, dependency.name
            ));
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        if let Err(error) = run() {
            panic!("{error:#}");
        }
    }

    #[test]
    fn untidy_sources_are_found() {
        let long = format!("//! Docs.\n{}", "\n".repeat(MAX_LINES));
        for (text, want) in [
            ("//! Docs.\n", 0),
            ("use std::fs;\n", 1),
            (long.as_str(), 1),
        ] {
            assert_eq!(
                source_problems(Path::new("a.rs"), text).len(),
                want,
                "{text:.20}"
            );
        }
        assert!(source_problems(Path::new("a/generated/b.rs"), &long).is_empty());
    }

    #[test]
    fn dead_paths_in_documents_are_found() {
        let text =
            "`xtask/src/tidy.rs` is here, `xtask/src/nothing.rs` is not; `apps/v1` is a group";
        let found = dead_paths(&crate::root(), Path::new("README.md"), text);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("xtask/src/nothing.rs"));
    }
}
