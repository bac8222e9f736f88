//! `keelson images`: the images of a cluster made with `keelson up`.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::cluster::layout::Layout;
use crate::node::containerd;

/// The command line of `images`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Import OCI or docker archives
    Import {
        /// Folder that holds everything of the cluster
        #[arg(long, default_value = crate::cluster::DEFAULT_DATA_DIR)]
        data_dir: PathBuf,
        /// Archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// Imports, and says what came of each file. A file that is no archive does not keep the others out.
///
/// # Errors
/// When a file could not be imported, after all were tried.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let Command::Import { data_dir, files } = flags.command;
    let layout = Layout::new(&data_dir)?;
    if !layout.containerd_socket().exists() {
        bail!(
            "no cluster runs in {}; start one with `keelson up`",
            layout.root().display()
        );
    }
    let mut failed = 0;
    for file in &files {
        let imported = match std::fs::metadata(file) {
            Ok(_) => containerd::import(&layout, file).await,
            Err(error) => Err(error).context("cannot be read"),
        };
        match imported {
            Ok(names) if names.is_empty() => println!("{}: imported", file.display()),
            Ok(names) => println!("{}: imported {}", file.display(), names.join(", ")),
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error:#}", file.display());
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} files were not imported", files.len());
    }
    Ok(())
}
