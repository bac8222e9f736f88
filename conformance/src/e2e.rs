//! Runs an upstream `e2e.test` binary against a cluster and sums up what it reports.
//!
//! Specs that may run side by side go through a pool of processes in small batches, so that one slow spec holds up
//! nobody; serial ones run afterwards, one at a time. A run that is interrupted lets its processes clean up, and
//! reports what it has.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Specs given to one process at a time: its start costs about a second, and a batch holds its other specs up.
const BATCH: usize = 5;
/// A batch that takes longer is interrupted: the longest wait of a single spec is fifteen minutes.
const BATCH_LIMIT: Duration = Duration::from_secs(3600);
/// What an interrupted process has to clean up and to write its report.
const CLEAN_UP: Duration = Duration::from_secs(120);

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary.
    pub e2e_test: PathBuf,
    /// Regular expression that names must match.
    pub focus: String,
    /// Regular expression that names must not match.
    pub skip: Option<String>,
    /// The cluster.
    pub kubeconfig: PathBuf,
    /// kubectl for the specs that need it.
    pub kubectl: Option<PathBuf>,
    /// Where reports and output go.
    pub report: PathBuf,
    /// Processes at once for specs that allow it.
    pub procs: usize,
}

/// How a spec can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// It found something wrong, or did not come to its end.
    Failed,
    /// It found that it does not apply to this cluster.
    Skipped,
}

/// How one spec went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its whole name.
    pub name: String,
    /// What came of it.
    pub verdict: Verdict,
    /// Seconds it took.
    pub seconds: f64,
    /// Why it failed or was skipped.
    pub message: String,
}

/// All outcomes of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One per spec.
    pub outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SuiteReport {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    #[serde(default)]
    run_time: f64,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Reads a ginkgo JSON report: every spec that was chosen. Ginkgo calls skipped both what was not chosen and what found
/// at run time that it does not apply; only the latter took time and said why.
fn read_report(json: &[u8]) -> anyhow::Result<Vec<Outcome>> {
    let suites: Vec<SuiteReport> =
        serde_json::from_slice(json).context("the report is not ginkgo's")?;
    let specs = suites
        .into_iter()
        .flat_map(|suite| suite.spec_reports.unwrap_or_default());
    let ran = specs.filter(|spec| {
        let chosen = match spec.state.as_str() {
            "skipped" => spec.failure.is_some(),
            state => state != "pending",
        };
        spec.leaf_node_type == "It" && chosen
    });
    Ok(ran
        .map(|spec| {
            let mut texts = spec.container_hierarchy_texts.unwrap_or_default();
            texts.push(spec.leaf_node_text);
            Outcome {
                name: texts.join(" "),
                verdict: match spec.state.as_str() {
                    "passed" => Verdict::Passed,
                    "skipped" => Verdict::Skipped,
                    _ => Verdict::Failed,
                },
                seconds: spec.run_time / 1e9,
                message: spec
                    .failure
                    .map(|failure| failure.message)
                    .unwrap_or_default(),
            }
        })
        .collect())
}

/// A regular expression (Go's RE2) that matches exactly the given names at the end of a text.
fn exactly(names: &[String]) -> String {
    let escaped = names.iter().map(|name| {
        name.chars()
            .fold(String::with_capacity(name.len() + 8), |mut text, c| {
                if r"\.+*?()|[]{}^$".contains(c) {
                    text.push('\\');
                }
                text.push(c);
                text
            })
    });
    format!("(?:{})$", escaped.collect::<Vec<_>>().join("|"))
}

/// Runs everything that matches and returns how it went. A spec that left no report counts as failed.
///
/// # Errors
/// When the binary cannot be run at all, or nothing matches.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    std::fs::create_dir_all(&options.report)
        .with_context(|| format!("creating {}", options.report.display()))?;
    let names = list(options).await?;
    if names.is_empty() {
        bail!(
            "no spec of {} matches {:?}",
            options.e2e_test.display(),
            options.focus
        );
    }
    let (serial, parallel): (Vec<String>, Vec<String>) = names
        .into_iter()
        .partition(|name| name.contains("[Serial]") || name.contains("[Disruptive]"));
    println!(
        "{} specs side by side in {} processes, then {} one at a time",
        parallel.len(),
        options.procs,
        serial.len()
    );
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    let interrupted = stop.clone();
    let (mut int, mut term) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::spawn(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            () = interrupted.cancelled() => return,
        }
        println!("interrupted: waiting until the specs that run have cleaned up");
        interrupted.cancel();
    });
    let mut report = Report::default();
    for (what, names, procs, batch) in [
        ("parallel", parallel, options.procs.max(1), BATCH),
        ("serial", serial, 1, 1),
    ] {
        let outcomes = run_pool(options, what, names, procs, batch, &stop).await?;
        report.outcomes.extend(outcomes);
    }
    drop(guard);
    let table = options.report.join("table.txt");
    std::fs::write(&table, report.to_string())
        .with_context(|| format!("writing {}", table.display()))?;
    Ok(report)
}

/// The names of all specs that match, by a dry run.
async fn list(options: &Options) -> anyhow::Result<Vec<String>> {
    let path = options.report.join("list.json");
    let mut command = Command::new(&options.e2e_test);
    command
        .arg("--ginkgo.dry-run")
        .arg(format!("--ginkgo.focus={}", options.focus))
        .arg(format!("--ginkgo.json-report={}", path.display()));
    if let Some(skip) = &options.skip {
        command.arg(format!("--ginkgo.skip={skip}"));
    }
    let output = command
        .arg("--provider=skeleton")
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("running {}", options.e2e_test.display()))?;
    if !output.status.success() {
        bail!(
            "{} cannot list its specs: {}",
            options.e2e_test.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let json = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(read_report(&json)?
        .into_iter()
        .map(|outcome| outcome.name)
        .collect())
}

async fn run_pool(
    options: &Options,
    what: &str,
    names: Vec<String>,
    procs: usize,
    batch: usize,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Outcome>> {
    let batches: VecDeque<(usize, Vec<String>)> = names
        .chunks(batch)
        .map(<[String]>::to_vec)
        .enumerate()
        .collect();
    let total = names.len();
    let queue = Arc::new(Mutex::new(batches));
    let mut workers = tokio::task::JoinSet::new();
    let done = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..procs {
        let (options, what, queue, done, stop) = (
            options.clone(),
            what.to_owned(),
            queue.clone(),
            done.clone(),
            stop.clone(),
        );
        workers.spawn(async move {
            loop {
                // A poisoned lock means that another worker panicked; its outcomes are missing and counted as failed.
                let next = queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
                let Some((number, names)) = next.filter(|_| !stop.is_cancelled()) else {
                    return anyhow::Ok(());
                };
                let label = format!("{what}-{number:03}");
                let outcomes = run_batch(&options, &label, names, &stop).await?;
                let mut done = done.lock().unwrap_or_else(|e| e.into_inner());
                for outcome in outcomes {
                    done.push(outcome.clone());
                    let mark = match outcome.verdict {
                        Verdict::Passed => "ok  ",
                        Verdict::Failed => "FAIL",
                        Verdict::Skipped => "skip",
                    };
                    println!(
                        "{mark} {:>4}/{total} {:>6.1} s  {}",
                        done.len(),
                        outcome.seconds,
                        outcome.name
                    );
                }
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker panicked")??;
    }
    let outcomes = done.lock().unwrap_or_else(|e| e.into_inner()).clone();
    Ok(outcomes)
}

async fn run_batch(
    options: &Options,
    label: &str,
    names: Vec<String>,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Outcome>> {
    let json = options.report.join(format!("{label}.json"));
    let log = options.report.join(format!("{label}.log"));
    forget(&json)?;
    let out = std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut command = Command::new(&options.e2e_test);
    command
        .arg(format!("--ginkgo.focus={}", exactly(&names)))
        .arg(format!("--ginkgo.json-report={}", json.display()))
        .args([
            "--ginkgo.no-color",
            // Longer than the limit of a batch, which says what ran.
            "--ginkgo.timeout=2h",
            "--provider=skeleton",
            "--disable-log-dump=true",
            "--node-os-distro=custom",
            "--allowed-not-ready-nodes=0",
        ])
        .arg(format!("--kubeconfig={}", options.kubeconfig.display()));
    if let Some(kubectl) = &options.kubectl {
        command.arg(format!("--kubectl-path={}", kubectl.display()));
    }
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        // A terminal's Ctrl-C reaches it through this runner only: a second one would cut its clean-up short.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .with_context(|| format!("running {}", options.e2e_test.display()))?;
    let why = tokio::select! {
        status = child.wait() => format!("no report ({})", status?),
        () = stop.cancelled() => {
            interrupt(&mut child).await?;
            String::from("interrupted")
        }
        () = tokio::time::sleep(BATCH_LIMIT) => {
            interrupt(&mut child).await?;
            format!("still running after {} s", BATCH_LIMIT.as_secs())
        }
    };
    let (mut reported, why) = match reported(&json)? {
        Reported::Outcomes(outcomes) => (outcomes, why),
        Reported::Nothing => (BTreeMap::new(), why),
        Reported::Broken(error) => (BTreeMap::new(), format!("{why}: {error:#}")),
    };
    let missing = |name: String| Outcome {
        name,
        verdict: Verdict::Failed,
        seconds: 0.0,
        message: format!("{why}; see {}", log.display()),
    };
    Ok(names
        .into_iter()
        .map(|name| reported.remove(&name).unwrap_or_else(|| missing(name)))
        .collect())
}

/// What a process left as its report.
#[derive(Debug)]
enum Reported {
    /// By name.
    Outcomes(BTreeMap<String, Outcome>),
    /// It did not get so far.
    Nothing,
    /// It was killed while it wrote, say: a matter of its specs, not of the run.
    Broken(anyhow::Error),
}

fn reported(json: &Path) -> anyhow::Result<Reported> {
    let text = match std::fs::read(json) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Reported::Nothing),
        Err(error) => return Err(error).with_context(|| format!("reading {}", json.display())),
    };
    Ok(match read_report(&text) {
        Ok(outcomes) => Reported::Outcomes(
            outcomes
                .into_iter()
                .map(|outcome| (outcome.name.clone(), outcome))
                .collect(),
        ),
        Err(error) => Reported::Broken(error),
    })
}

/// Deletes the report that an earlier run left: it would be taken for that of a process that leaves none.
fn forget(json: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(json) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("deleting {}", json.display()))
        }
        _ => Ok(()),
    }
}

/// Asks a process to end, as Ctrl-C does, and makes it end when it does not.
async fn interrupt(child: &mut Child) -> anyhow::Result<()> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        match kill_process(pid, Signal::INT) {
            // Ended just now.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("interrupting e2e.test"),
        }
    }
    if timeout(CLEAN_UP, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

/// The SIG in a spec's name, `[sig-node] Pods ...`.
fn sig(name: &str) -> &str {
    name.split(['[', ']'])
        .find(|part| part.starts_with("sig-"))
        .unwrap_or("other")
}

impl Report {
    /// How many did not pass.
    pub fn failed(&self) -> usize {
        self.outcomes
            .iter()
            .filter(|outcome| outcome.verdict == Verdict::Failed)
            .count()
    }
}

#[derive(Default)]
struct Row {
    passed: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
}

impl Row {
    fn add(&mut self, outcome: &Outcome) {
        match outcome.verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed => self.failed += 1,
            Verdict::Skipped => self.skipped += 1,
        }
        self.seconds += outcome.seconds;
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let Row {
            passed,
            failed,
            skipped,
            seconds,
        } = self;
        writeln!(
            f,
            "{name:<22} {passed:>7} {failed:>7} {skipped:>8} {seconds:>9.0}"
        )
    }
}

/// One table: SIG, passed, failed, skipped, seconds; then the names of those that failed.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        let mut total = Row::default();
        for outcome in &self.outcomes {
            rows.entry(sig(&outcome.name)).or_default().add(outcome);
            total.add(outcome);
        }
        writeln!(
            f,
            "{:<22} {:>7} {:>7} {:>8} {:>9}",
            "SIG", "passed", "failed", "skipped", "seconds"
        )?;
        for (sig, row) in rows {
            row.write(f, sig)?;
        }
        total.write(f, "total")?;
        let failed = |outcome: &&Outcome| outcome.verdict == Verdict::Failed;
        for outcome in self.outcomes.iter().filter(failed) {
            let first = outcome.message.lines().next().unwrap_or_default();
            writeln!(
                f,
                "failed: {}\n        {}",
                outcome.name,
                first.chars().take(300).collect::<String>()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{"SpecReports": [
        {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "runs [Conformance]", "State": "passed", "RunTime": 1500000000},
        {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "fails", "State": "failed", "RunTime": 1, "Failure": {"Message": "timed out\nmore"}},
        {"ContainerHierarchyTexts": ["[sig-apps] Job"], "LeafNodeType": "It", "LeafNodeText": "not chosen", "State": "skipped", "RunTime": 0},
        {"ContainerHierarchyTexts": ["[sig-apps] Job"], "LeafNodeType": "It", "LeafNodeText": "skips itself", "State": "skipped", "RunTime": 1, "Failure": {"Message": "needs three nodes"}},
        {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed", "RunTime": 7}
    ]}]"#;

    #[test]
    fn reports_become_one_table() {
        let report = Report {
            outcomes: read_report(REPORT.as_bytes()).unwrap(),
        };
        let want = "SIG                     passed  failed  skipped   seconds\n\
                    sig-apps                     0       0        1         0\n\
                    sig-node                     1       1        0         2\n\
                    total                        1       1        1         2\n\
                    failed: [sig-node] Pods fails\n        timed out\n";
        assert_eq!(report.to_string(), want);
        assert_eq!(report.failed(), 1);
        assert!(read_report(b"{}").is_err());
    }

    #[test]
    fn names_are_matched_to_the_letter() {
        assert_eq!(
            exactly(&["[a] b (c)".into(), "d+".into()]),
            r"(?:\[a\] b \(c\)|d\+)$"
        );
    }

    #[tokio::test]
    async fn neither_a_broken_nor_an_old_report_passes_a_spec() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("serial-000.json");
        let options = Options {
            e2e_test: "/bin/true".into(),
            focus: String::new(),
            skip: None,
            kubeconfig: PathBuf::new(),
            kubectl: None,
            report: dir.path().to_owned(),
            procs: 1,
        };
        std::fs::write(&json, REPORT).unwrap();
        let name = String::from("[sig-node] Pods runs [Conformance]");
        let outcomes = run_batch(
            &options,
            "serial-000",
            vec![name],
            &CancellationToken::new(),
        )
        .await
        .unwrap();
        assert_eq!(outcomes[0].verdict, Verdict::Failed);
        assert!(outcomes[0].message.starts_with("no report"));
        std::fs::write(&json, &REPORT[..100]).unwrap();
        assert!(matches!(reported(&json), Ok(Reported::Broken(_))));
        std::fs::write(&json, REPORT).unwrap();
        let Ok(Reported::Outcomes(outcomes)) = reported(&json) else {
            panic!("the report is whole");
        };
        assert_eq!(outcomes.len(), 3);
    }
}
