//! Chores of the repository: `cargo xtask gen` writes the checked-in tables made from the API facts, `cargo xtask tidy`
//! keeps the habits that a tool can keep.

mod gen_go;
mod gen_table;
mod tidy;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Chores of the repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the tables below machinery/src made from ../shared/facts (KEELSON_SHARED overrides the folder).
    Gen {
        /// Write nothing; fail when a checked-in table differs from what would be written.
        #[arg(long)]
        check: bool,
        /// Also refresh xtask/facts/go-fields.txt from this Kubernetes source checkout.
        #[arg(long, value_name = "DIR")]
        go_api: Option<PathBuf>,
    },
    /// Check what a tool can check of this repository's habits.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Gen { check, go_api } => gen_table::run(check, go_api.as_deref()),
        Command::Tidy => tidy::run(),
    }
}

/// The root of this checkout.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of shared facts: `KEELSON_SHARED`, or `shared` beside the checkout.
fn shared() -> PathBuf {
    match std::env::var_os("KEELSON_SHARED") {
        Some(dir) => dir.into(),
        None => root().join("../shared"),
    }
}
