//! Admission policies: cases in `cases.txt`.

use super::{Harness, run_file};

#[tokio::test(flavor = "multi_thread")]
async fn policies_decide() {
    let harness = Harness::start().await;
    let findings = run_file(&harness, "policy/cases.txt", include_str!("cases.txt")).await;
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
