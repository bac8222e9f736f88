//! `keelson conformance`: runs an upstream `e2e.test` against a cluster.

use std::path::PathBuf;

use anyhow::{Context, bail};
use keelson_conformance::e2e;

use crate::cluster::layout::Layout;
use crate::node::containerd;

/// The command line of `conformance`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Upstream's e2e.test binary
    #[arg(long)]
    e2e_test: PathBuf,
    /// Regular expression of the specs to run
    #[arg(long, default_value = r"\[Conformance\]")]
    focus: String,
    /// Regular expression of specs to leave out
    #[arg(long)]
    skip: Option<String>,
    /// Folder of image archives to import first
    #[arg(long)]
    images: Option<PathBuf>,
    /// Folder for reports
    #[arg(long, default_value = "conformance-report")]
    report: PathBuf,
    /// Processes at once for specs that may run side by side
    #[arg(long, default_value_t = 4)]
    procs: usize,
    /// Folder of the cluster
    #[arg(long, default_value = crate::cluster::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Another cluster's kubeconfig [default: that of --data-dir]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// kubectl for the specs that use it [default: the one in PATH]
    #[arg(long)]
    kubectl: Option<PathBuf>,
}

/// Runs the suite and prints one table.
///
/// # Errors
/// When the suite cannot be run, or a spec did not pass.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let layout = Layout::new(&flags.data_dir)?;
    if let Some(dir) = &flags.images {
        let entries =
            std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
        let mut archives: Vec<PathBuf> = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        archives.retain(|path| path.extension().is_some_and(|e| e == "tar"));
        archives.sort();
        for archive in archives {
            containerd::import(&layout, &archive)
                .await
                .with_context(|| format!("importing {}", archive.display()))?;
        }
    }
    let options = e2e::Options {
        e2e_test: flags.e2e_test,
        focus: flags.focus,
        skip: flags.skip,
        kubeconfig: flags
            .kubeconfig
            .unwrap_or_else(|| layout.admin_kubeconfig()),
        kubectl: flags.kubectl,
        report: flags.report,
        procs: flags.procs,
    };
    let report = e2e::run(&options).await?;
    print!("\n{report}");
    match report.failed() {
        0 => Ok(()),
        failed => bail!(
            "{failed} of {} specs failed; reports are in {}",
            report.outcomes.len(),
            options.report.display()
        ),
    }
}
